"""Commands that are killed, or whose disk is full, at random moments: run once more, they end as if nothing had been.

  CRASHES=200 python -m pytest tests/reliability/test_crashes.py      # in place of 5 of each kind, 1 of trainings

prints a row for each command then, with its processor time. Every second process is killed just before one of its own
changes of files, the others after a random processor time, and up to five in a row before one may end. SEED: of the
moments and sizes (0).
"""

import contextlib
import gc
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import smalle.train.adapt.clone
import smalle.train.data.prepare
import torch
import yaml
from tqdm import tqdm

import smalle.cli.read  # (imported once: each run is a fork of this process)
import smalle.cli.say  # noqa: F401
from smalle.cli import main as cli
from smalle.native_smalle import load_library
from tests.reliability.file_operations import FileOperations
from tests.train.test_whole import MODEL

resource = pytest.importorskip("resource", reason="this system limits no file sizes")
pytest.importorskip("markdown_it")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
SEED = int(os.environ.get("SEED", 0))
FEW = int(os.environ.get("CRASHES", 1))  # of what takes seconds
SENTENCES = "Hello you.", "It is a door.", "Nobody asked!", "How are you?", "It is late.", "We go home."
QUICK = "data.frames_per_batch=150 data.max_seconds=4 data.eval_batches=1 training.max_steps=1 training.warmup_steps=0"


@dataclass(frozen=True)
class Job:
    """A command that is run in a folder.

    arguments: of the command. again: what is added when it is run once more. results: what has to be the same after it
    as without a crash, as patterns of paths. others: patterns of what else it writes, such as logs.
    crashes: of each kind.
    """

    arguments: Callable[[Path], list[str]]
    results: tuple[str, ...]
    again: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    crashes: int = int(os.environ.get("CRASHES", 5))


JOBS = {
    "say": Job(
        lambda parts: ["say", "Nobody asked! It is a door.", "--model", f"{parts}/tiny", "-o", "a.wav"], ("a.wav",)
    ),
    "read": Job(
        lambda parts: ["read", f"{parts}/book.md", "--model", f"{parts}/tiny", "-o", "book", "--format", "wav"],
        ("book/*.wav", "book/*.srt"),
        others=("book/*",),
    ),
    "prepare": Job(
        lambda parts: [
            *("prepare", f"{parts}/corpus", "--codec", f"{parts}/tiny/codec", "--output", "codes", "--threads", "1"),
            *("--shard-hours", "0.0003", "--eval-clips", "1"),
        ],
        ("codes/*.parquet",),
        others=("codes/**/*",),
    ),
    "train": Job(
        lambda parts: ["train", f"{parts}/recipe.yaml"],
        ("model/model.safetensors",),
        ("--resume",),
        ("model/**/*", "cache/**/*"),
        crashes=FEW,
    ),
    "finetune": Job(
        lambda parts: ["finetune", "finetune-state", f"{parts}/corpus", f"{parts}/tiny", "out", *QUICK.split()],
        ("out/voices/*.safetensors",),
        others=("out/*",),
        crashes=FEW,
    ),
    "clone": Job(
        lambda parts: [
            *("clone", f"{parts}/long.wav", "It is late and we go home to the open door.", f"{parts}/tiny", "new"),
            *("--codec-minutes", "0", "data.recombined=20", *QUICK.split()),
        ],
        ("new/model.safetensors", "new/voices/*.safetensors"),
        others=("new/**/*",),
        crashes=FEW,
    ),
}


def spawn(
    arguments: list[str], folder: Path, limit: int | None = None, last: int | None = None, seconds: float = 0
) -> int:
    """Starts a command in a folder as a forked process; its identifier.

    limit: bytes that a file may have. last: before which of its changes of files it is killed. seconds: of processor
    time, after which the kernel ends it (SIGPROF, which nothing catches); 0: it does not.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        tempfile.tempdir = str(folder / "temporary")
        os.mkdir(tempfile.tempdir)
        sys.stdout = sys.stderr = io.StringIO()
        torch.cuda.is_available = lambda: False
        tqdm.set_lock(threading.RLock())  # its own lock is shared by processes, and stays locked where one is killed
        operations = FileOperations(last)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        code = cli.main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            text = f"{sys.stdout.getvalue()}{operations.count} changes of files\n"
            Path(tempfile.tempdir or "", "output.txt").write_text(text)
        os._exit(code)


def wait(child: int) -> int:
    """The exit code of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(arguments: list[str], folder: Path, **ends) -> int:
    """Runs a command in a folder, as spawn() starts it; its exit code, or minus the signal that ended it."""
    shutil.rmtree(folder / "temporary", ignore_errors=True)
    return wait(spawn(arguments, folder, **ends))


def processor_time() -> float:
    """Seconds that the tests' process and its ended children have computed."""
    return sum(os.times()[:4])


def found(folder: Path, patterns: tuple[str, ...]) -> set[Path]:
    return {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def output(folder: Path) -> str:
    """What the last command in a folder printed."""
    path = folder / "temporary" / "output.txt"
    return path.read_text() if path.is_file() else ""


def results(job: Job, folder: Path) -> dict[str, str]:
    """Digests of a job's results by path."""
    files = sorted(found(folder, job.results))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def changes_of_files(folder: Path) -> int:
    """How many the last command in a folder made."""
    return int(output(folder).splitlines()[-1].split()[0])


def check_nothing_else(job: Job, folder: Path):
    """No temporary file is left, and nothing in a place of its own."""
    known = found(folder, (*job.results, *job.others, "temporary/**/*"))
    assert not {path for path in folder.rglob("*") if path.is_file()} - known
    assert not [path for path in folder.rglob("*.partial") if "temporary" not in path.parts]


def check_whole(job: Job, folder: Path, expected: dict[str, str]) -> bool:
    """After a crash: what looks whole is whole. Whether all results are there."""
    found = results(job, folder)
    assert found.items() <= expected.items(), "something half-written was taken for whole"
    return found == expected


def check_end(job: Job, folder: Path, expected: dict[str, str], code: int, whole: bool):
    """After a command that was run once more, and ended with a code: it gave the expected results alone. whole: they
    were there before; a finished clone is not made again."""
    assert code == 0 or whole, f"it ended with {code}: {output(folder)}"
    assert results(job, folder) == expected
    check_nothing_else(job, folder)


@pytest.fixture(scope="session")
def parts(tiny_checkpoint, record, tmp_path_factory):
    """A checkpoint, a corpus, a book, a recording and a recipe."""
    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(tiny_checkpoint, folder / "tiny")
    (folder / "corpus").mkdir()
    for index, text in enumerate(SENTENCES):
        record(folder / "corpus" / f"{index}.wav", 0.4 + 0.05 * index, 110)
        (folder / "corpus" / f"{index}.txt").write_text(text)
    record(folder / "long.wav", 2, 140)
    (folder / "book.md").write_text("# One\n\nIt is a door.\n\n# Two\n\nNobody asked!\n")
    load_library()  # before the forks, one of which would compile it
    assert run(JOBS["prepare"].arguments(folder), folder) == 0, output(folder)
    recipe = {
        "model": MODEL,
        "data": dict(
            train=f"{folder}/codes/train.parquet",
            eval=f"{folder}/codes/eval.parquet",
            tokenizer=f"{folder}/tiny",
            cache_dir="cache",
            frames_per_batch=200,
            max_seconds=4,
            single_utterance_probability=0.3,
            eval_batches=1,
        ),
        "objective": dict(codebook_weights=[1.0] * 3, text_dropout=0.0),
        "training": dict(output_dir="model", max_steps=4, save_steps=2, learning_rate=1e-3, warmup_steps=1),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@dataclass(frozen=True)
class Undisturbed:
    """What a job gives undisturbed (`results`), in how many seconds of processor time and changes of files, and its
    largest file."""

    expected: dict[str, str]
    seconds: float
    changes: int
    largest: int


@pytest.fixture(scope="module", params=JOBS)
def job(request, parts, tmp_path_factory):
    job, folder = JOBS[request.param], tmp_path_factory.mktemp(request.param)
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all memory of this process
    begun = processor_time()
    assert run(job.arguments(parts), folder) == 0, output(folder)
    seconds, expected = processor_time() - begun, results(job, folder)
    assert expected
    check_nothing_else(job, folder)
    largest = max(path.stat().st_size for path in found(folder, job.results))
    yield job, Undisturbed(expected, seconds, changes_of_files(folder), largest)
    gc.unfreeze()


def test_a_killed_command_run_again_ends_as_if_nothing_had_been(job, parts, tmp_path, report):
    job, undisturbed = job
    moments, killed, runs, begun = random.Random(SEED), 0, 0, processor_time()
    while killed < job.crashes:
        (folder := tmp_path / "work").mkdir()
        arguments, whole, code = job.arguments(parts), False, -signal.SIGKILL
        crashes = min(moments.randint(1, 5), job.crashes - killed)
        while code in (-signal.SIGKILL, -signal.SIGPROF):
            if not crashes:
                ends = {}
            elif runs % 2:
                ends = {"last": moments.randrange(undisturbed.changes)}
            else:
                ends = {"seconds": moments.uniform(0.001, undisturbed.seconds)}
            code, runs = run(arguments, folder, **ends), runs + 1
            if code in (-signal.SIGKILL, -signal.SIGPROF):
                killed, crashes = killed + 1, crashes - 1
                arguments, whole = [*job.arguments(parts), *job.again], check_whole(job, folder, undisturbed.expected)
        check_end(job, folder, undisturbed.expected, code, whole)
        shutil.rmtree(folder)
    report(f"{killed} times killed in {processor_time() - begun:.0f} s of processor time, without a finding")


def test_a_command_on_a_full_disk_says_so_and_run_again_ends_as_if_nothing_had_been(job, parts, tmp_path, report):
    job, undisturbed = job
    sizes, begun = random.Random(SEED), processor_time()
    for _ in range(job.crashes):
        (folder := tmp_path / "work").mkdir()
        code = run(job.arguments(parts), folder, limit=sizes.randrange(undisturbed.largest))
        assert code == 2, f"it ended with {code}: {output(folder)}"
        whole = check_whole(job, folder, undisturbed.expected)
        code = run([*job.arguments(parts), *job.again], folder)
        check_end(job, folder, undisturbed.expected, code, whole)
        shutil.rmtree(folder)
    seconds = processor_time() - begun
    report(f"{job.crashes} times on a full disk in {seconds:.0f} s of processor time, without a finding")
