"""Builds the C library; needs the standard library alone, so that an isolated build of a wheel can call `build`.

    python smalle/native/build.py            # after a change of the C sources: writes smalle/native_source_smalle.py
    python smalle/native/build.py FOLDER     # compiles the library into a folder, with $CC or cc

A library found in smalle/native/ is used instead of one that is compiled into the user's cache.
"""

import hashlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
MODULE = FOLDER.parent / "native_source_smalle.py"
SOURCES = "smalle.c", "kernels.h"  # the first is compiled and includes the other
# of -ffast-math what keeps infinities and other code's arithmetic as they are
FLAGS = (
    "-O3 -fPIC -shared -fvisibility=hidden -fno-math-errno -fno-trapping-math -fassociative-math -fno-signed-zeros "
    "-freciprocal-math"
)


def name() -> str:
    """The library's name, which changes with its sources and flags."""
    digest = hashlib.sha256(FLAGS.encode())
    for source in SOURCES:
        digest.update((FOLDER / source).read_bytes())
    return f"smalle-{digest.hexdigest()[:12]}"


def joined(source: str, width: int = 118) -> str:
    """C without comments and indentation, short lines joined: the same program in fewer lines."""
    source = re.sub(r"/\*.*?\*/", " ", source, flags=re.DOTALL)
    lines = [""]
    for line in map(str.strip, source.replace("\\\n", " ").splitlines()):
        alone = line.startswith("#") or lines[-1].startswith("#")
        if line and (alone or len(lines[-1]) + len(line) >= width):
            lines.append(line)
        elif line:
            lines[-1] = f"{lines[-1]} {line}".strip()
    return "\n".join(filter(None, lines)) + "\n"


def module() -> str:
    """The text of native_source_smalle.py."""
    lines = [
        '"""Generated from smalle/native by `python smalle/native/build.py`: the C library, for remote code.',
        "",
        "The sources themselves have comments and other lines.",
        '"""',
        "",
        "# ruff: noqa",
        "# fmt: off",
        "",
        f'NAME = "{name()}"',
        f'FLAGS = "{FLAGS}"',
        "SOURCES = {",
        *(f'    "{source}": r"""{joined((FOLDER / source).read_text())}""",' for source in SOURCES),
        "}",
    ]
    return "\n".join(lines) + "\n"


def build(folder: str | os.PathLike) -> pathlib.Path:
    """Compiles the library into `folder`, under a name that holds a digest of its contents; returns its path.

    Raises OSError without a compiler and subprocess.CalledProcessError where it fails.
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
