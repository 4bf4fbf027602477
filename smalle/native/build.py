"""Builds the C library. Needs only the standard library, so that an isolated build of a wheel can call `build`.

    python smalle/native/build.py            # after a change of the C sources: writes smalle/native_smalle.py
    python smalle/native/build.py FOLDER     # compiles the library into a folder, with $CC or cc

A library in smalle/native/ takes precedence over one in the user's cache.
"""

import hashlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap

FOLDER = pathlib.Path(__file__).resolve().parent
MODULE = FOLDER.parent / "native_smalle.py"
SOURCES = "smalle.c", "threads.h", "kernels.h", "vocos.h"  # the first is compiled and includes the others
# the parts of -ffast-math that preserve infinities and do not affect other code
FLAGS = (
    "-O3 -fPIC -shared -pthread -fvisibility=hidden -fno-math-errno -fno-trapping-math -fassociative-math "
    "-fno-signed-zeros -freciprocal-math"
)


def name() -> str:
    """The library's name, which changes with its sources and flags."""
    digest = hashlib.sha256(FLAGS.encode())
    for source in SOURCES:
        digest.update((FOLDER / source).read_bytes())
    return f"smalle-{digest.hexdigest()[:12]}"


def joined(source: str, width: int = 118) -> str:
    """C source without comments and indentation and with filled lines, to halve the number of lines."""
    source = re.sub(r"/\*.*?\*/", " ", source, flags=re.DOTALL).replace("\\\n", " ")
    lines: list[str] = []
    code: list[str] = []
    for line in (*source.splitlines(), "#"):
        if line.startswith("#"):
            lines += textwrap.wrap(
                " ".join(" ".join(code).split()), width, break_long_words=False, break_on_hyphens=False
            )
            lines.append(line)
            code = []
        else:
            code.append(line.strip())
    return "\n".join(lines[:-1]) + "\n"


def module() -> str:
    """The text of native_smalle.py: library.py with the C sources in it."""
    sources = (f'    "{source}": r"""{joined((FOLDER / source).read_text())}""",' for source in SOURCES)
    values = {
        'NAME, FLAGS = "", ""': f'NAME = "{name()}"\nFLAGS = "{FLAGS}"',
        "SOURCES: dict[str, str] = {}": "\n".join(("SOURCES = {", *sources, "}")),
    }
    text = (FOLDER / "library.py").read_text()
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    head = "# Generated from smalle/native by `python smalle/native/build.py`: change what is there."
    return f"{head}\n# ruff: noqa\n# fmt: off\n{text}"


def build(folder: str | os.PathLike) -> pathlib.Path:
    """Compiles the library into `folder`, under a name with a digest of its contents; returns its path.

    Raises OSError without a compiler, and subprocess.CalledProcessError if it fails.
    """
    with tempfile.TemporaryDirectory() as work:
        library = pathlib.Path(work, "library")
        compiler = shlex.split(os.environ.get("CC") or "cc")
        subprocess.run([*compiler, *FLAGS.split(), FOLDER / SOURCES[0], "-o", library, "-lm"], check=True)
        data = library.read_bytes()
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    path = pathlib.Path(folder, f"{name()}-{hashlib.sha256(data).hexdigest()[:16]}.so")
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(build(sys.argv[1]))
    else:
        MODULE.write_text(module())
