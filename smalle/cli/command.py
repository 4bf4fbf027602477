"""What all commands share: parsers that show a module's docstring, and errors without a traceback."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

Main = Callable[[Sequence[str] | None], int | None]


def command_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """A parser whose help shows the description with its line breaks."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=formatter)


def interrupt(*_):
    """A signal handler that makes SIGTERM act like Ctrl-C, so that temporary files are removed."""
    raise KeyboardInterrupt


def run_command(name: str, main: Main, argv: Sequence[str] | None = None) -> int:
    """Runs main(argv); returns the exit code: that of main or 0, 2 for wrong input, 130 if it was interrupted."""
    handler = signal.signal(signal.SIGTERM, interrupt)
    try:
        return main(argv) or 0
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, handler)
