"""What a process does to files, and its death at one of these operations."""

import os
import signal
import sys

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class FileOperations:
    """Counts this process's changes of files, as Python's audit events report them, from now on.

    last: the number of the operation before which the process is killed (SIGKILL), from 0; None: it lives.
    """

    def __init__(self, last: int | None = None):
        self.count, self.last = 0, last
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        exchanges = event == "ctypes.dlsym" and arguments[1] == "renameat2"
        if event in CHANGES or writes or exchanges:
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1
