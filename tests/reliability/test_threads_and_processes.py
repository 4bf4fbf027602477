"""Many threads, cancelled streams and forked processes: the speech of one thread, and nothing left behind."""

import asyncio
import itertools
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from smalle import SmallEForTextToSpeech, SmallEProcessor, runtime_smalle
from smalle.native_smalle import load_library

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "smalle-mini"
FORK = """
import os, sys, time, torch
from smalle import SmallEForTextToSpeech, SmallEProcessor, runtime_smalle
runtime_smalle.threads_for = lambda size: 2  # as for a large model
torch.set_num_threads(2)
torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # which starts the pool of OpenMP
processor, model = (x.from_pretrained(sys.argv[1]) for x in (SmallEProcessor, SmallEForTextToSpeech))
model.eval().step_runtime = "native"
call = dict(**processor("Hello you."), seed=1, max_new_tokens=20)
begun = time.monotonic()
speech = model.generate(**call)
seconds = time.monotonic() - begun
child = os.fork()
if not child:
    os._exit(0 if torch.equal(model.generate(**call), speech) else 1)
while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < begun + 30 * seconds + 20:
    time.sleep(0.05)
if not status[0]:
    os.kill(child, 9)
sys.exit(os.waitstatus_to_exitcode(status[1]) if status[0] else "it hangs")
"""
needs_library = pytest.mark.skipif(load_library()[0] is None, reason=load_library()[1])
needs_checkpoint = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="the embedded checkpoint is not here")


@needs_library
@pytest.mark.parametrize("runtime, helpers", [("native", 0), ("native", 2), ("torch", 0)])
def test_eight_threads_at_a_cold_start_say_what_one_says(make_tiny, monkeypatch, runtime, helpers):
    monkeypatch.setattr(runtime_smalle, "threads_for", lambda size: 1 + helpers)

    def speak(model, seed):
        ids = torch.randint(3, 60, (1, 4 + seed), generator=torch.Generator().manual_seed(seed))
        return model.generate(ids, seed=seed, max_new_tokens=12, top_k=[0, 0, 0])

    def at_once(seed):
        barrier.wait()
        return speak(cold, seed)

    warm, cold = make_tiny(), make_tiny()
    warm.step_runtime = cold.step_runtime = runtime
    expected, barrier = [speak(warm, seed) for seed in range(8)], threading.Barrier(8)
    for _ in range(4):
        cold.native_weights = None
        with ThreadPoolExecutor(8) as threads:
            assert all(map(torch.equal, threads.map(at_once, range(8)), expected))


@needs_checkpoint
def test_thirty_cancelled_streams_leave_no_thread_after_a_second():
    processor = SmallEProcessor.from_pretrained(CHECKPOINT)
    model = SmallEForTextToSpeech.from_pretrained(CHECKPOINT).eval()

    async def leave():
        sizes = itertools.chain([4], itertools.repeat(400))  # of chunks: each is left in the middle of a long one
        stream = processor.astream(model, "Nobody asked, and nobody knew. " * 20, chunk_frames=sizes)
        await anext(stream)
        await stream.aclose()

    async def leave_together(count):
        await asyncio.gather(*(leave() for _ in range(count)))

    asyncio.run(leave_together(1))  # which loads the codec and packs the weights
    before = threading.active_count()
    asyncio.run(leave_together(30))
    work, begun = time.process_time(), time.monotonic()  # a second of this process, however busy the machine is
    while threading.active_count() > before and time.process_time() < work + 1 and time.monotonic() < begun + 60:
        time.sleep(0.02)
    assert threading.active_count() <= before


@needs_library
@needs_checkpoint
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system has no fork")
def test_a_forked_process_speaks_by_the_native_runtime():
    """PyTorch's own operations of two OpenMP threads hang there, see docs/reliability.md."""
    done = subprocess.run([sys.executable, "-c", FORK, CHECKPOINT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
