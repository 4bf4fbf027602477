"""The fuzzer of the native library compiles and finds nothing in a moment; fuzz_native.py runs it for longer."""

import pytest

from tests.reliability.fuzz_native import compile_fuzzer, run_fuzzer


def test_the_native_library_neither_reads_nor_writes_beyond_its_memory(tmp_path):
    if reason := compile_fuzzer(tmp_path / "fuzzer", "-O0"):
        pytest.skip(reason.splitlines()[-1])
    (tmp_path / "corpus").mkdir()
    for function in range(6):
        for kernels in range(5):
            (tmp_path / "corpus" / f"{function}{kernels}").write_bytes(bytes([function, kernels, *range(40)]))
    done = run_fuzzer(tmp_path / "fuzzer", tmp_path / "corpus", "-runs=300", "-seed=1")
    assert done.returncode == 0, done.stderr
