"""Compiles the fuzzer of the native library (fuzz_native.c) and runs it; exits with 1 where it finds something.

  python -m tests.reliability.fuzz_native --seconds 3600 [--corpus FOLDER]

Needs clang with its sanitizers (Debian: clang and libclang-rt-dev).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SANITIZERS = [
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-g",
]


def compile_fuzzer(program: Path, optimization: str = "-O1") -> str:
    """Compiles the fuzzer; the reason why that fails, or "". -O0 compiles it in a fourth of the time."""
    if not shutil.which("clang"):
        return "clang is not installed"
    done = subprocess.run(
        ["clang", *SANITIZERS, optimization, SOURCE, "-o", program, "-lm"], capture_output=True, text=True
    )
    return done.stderr


def run_fuzzer(program: Path, corpus: Path, *limits: str) -> subprocess.CompletedProcess:
    """Fuzzes until a limit; a finding is kept beside the corpus."""
    kept = f"-artifact_prefix={corpus.parent}/"
    return subprocess.run([program, "-max_len=512", kept, *limits, corpus], capture_output=True, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="default: %(default)s")
    parser.add_argument("--corpus", type=Path, help="folder of inputs to begin with and to add to (default: none)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if reason := compile_fuzzer(Path(folder, "fuzzer")):
            print(reason, file=sys.stderr)
            return 2
        corpus = arguments.corpus or Path(folder, "corpus")
        corpus.mkdir(parents=True, exist_ok=True)
        done = run_fuzzer(Path(folder, "fuzzer"), corpus.resolve(), f"-max_total_time={arguments.seconds}")
    lines = done.stderr.splitlines()
    print("\n".join(lines[-40:] if done.returncode else [x for x in lines if " DONE " in x or x.startswith("Done ")]))
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
