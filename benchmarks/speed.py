"""How fast a checkpoint speaks: times real time from text to samples, first audio, peak memory.

usage: python benchmarks/speed.py [MODEL] [--runtimes torch int8] [--seconds 10] [--threads 1] [--note TEXT]

MODEL is a checkpoint's folder; without one, a model of the paper's shape (64M, GLA) with EnCodec and Vocos in their
published sizes, all with random weights. Speech is streamed for batch 1, in pieces of up to ten seconds that do not end
earlier, after a short one that warms up. Each runtime speaks in a process of its own, whose peak memory is counted with
loading. Times are by the clock; beside them those of the processor (one thread: what the clock would say on a machine
without other work). Prints a table in Markdown and appends a row for each measurement to benchmarks/results.jsonl.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results.jsonl"
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody knows why it should, or whether it will again. "
PIECE = 10.0  # seconds
COLUMNS = {
    "runtime": "runtime", "seconds": "speech (s)", "real_time": "times real time", "real_time_cpu": "by processor time",
    "first_audio_s": "first audio (s)", "first_audio_cpu_s": "by processor time", "peak_mb": "peak memory (MB)",
}  # fmt: skip


def random_checkpoint(folder):
    """The paper's shape and the codec it used, without training."""
    from transformers import AutoTokenizer, EncodecConfig, EncodecModel

    from smalle.codec_smalle import EncodecCodec
    from smalle.vocos_smalle import Vocos, VocosConfig

    torch.manual_seed(0)
    model = SmallEForTextToSpeech(SmallEConfig())
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "checkpoints" / "smalle-mini")
    processor = SmallEProcessor(tokenizer)
    processor._codec = EncodecCodec(EncodecModel(EncodecConfig()), Vocos(VocosConfig(num_bandwidths=4)))
    processor.save_pretrained(folder)
    model.save_pretrained(folder)
    processor._codec.save_pretrained(folder / "codec")


def prepared(source, work, runtime):
    """A copy of a checkpoint with the exported step that a runtime needs, or a random one."""
    if not work.exists():
        if source is None:
            random_checkpoint(work)
        else:
            shutil.copytree(source, work, ignore=shutil.ignore_patterns("*.onnx"))
    for exported in work.glob("*.onnx"):
        exported.unlink()
    if runtime != "torch":
        from smalle.export import export

        export(work, int8=runtime == "int8")
    return work


def listen(processor, model, seconds):
    """Streams speech; (seconds of audio, until the first audio, until the last), by both clocks."""
    frames = int(min(seconds, PIECE) * model.config.frame_rate)
    started, samples, first = (time.perf_counter(), time.process_time()), 0, None
    text = SENTENCE * max(1, round(seconds / PIECE))
    way = dict(seed=0, longest=len(SENTENCE), min_new_tokens=frames, max_new_tokens=frames)
    for wave in processor.stream(model, text, **way):
        samples += len(wave)
        first = first or (time.perf_counter(), time.process_time())
    last = time.perf_counter(), time.process_time()
    waits = [[moment - start for moment, start in zip(moments, started)] for moments in (first, last)]
    return samples / processor.sampling_rate, *waits


def speak(folder, runtime, seconds, threads):
    """Measures in this process: what a row holds."""
    torch.set_num_threads(threads)
    processor = SmallEProcessor.from_pretrained(folder)
    model = SmallEForTextToSpeech.from_pretrained(folder).eval()
    model.step_runtime = "torch" if runtime == "torch" else "onnx"
    listen(processor, model, 1.0)
    audio, first, last = listen(processor, model, seconds)
    return {
        "parameters": model.num_parameters(),
        "seconds": round(audio, 2),
        "real_time": round(audio / last[0], 2),
        "real_time_cpu": round(audio / last[1], 2),
        "first_audio_s": round(first[0], 3),
        "first_audio_cpu_s": round(first[1], 3),
        "peak_mb": round(peak_memory()),
    }


def peak_memory():
    """MB that this process has held at most. getrusage would count the parent's, too, where the system tells more."""
    status = pathlib.Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine():
    """The processor's name and how many of its cores there are."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit():
    """The commit that is measured, with a + where files differ from it."""
    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "smalle") else "")


def measure(arguments, folder, runtime):
    """One row, measured in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--runtimes", runtime, "--seconds", str(arguments.seconds),
               "--threads", str(arguments.threads), "--child"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return {
        "benchmark": "speed", "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(), "machine": machine(), "torch": torch.__version__,
        "model": pathlib.Path(arguments.model).name if arguments.model else "random weights, the paper's shape",
        "runtime": runtime, "threads": arguments.threads, **json.loads(done.stdout.splitlines()[-1]),
        **({"note": arguments.note} if arguments.note else {}),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--runtimes", nargs="+", default=["torch", "int8"], choices=["torch", "float", "int8"])
    parser.add_argument("--seconds", type=float, default=10.0, help="of speech")
    parser.add_argument("--threads", type=int, default=1, help="of torch; ONNX Runtime has one")
    parser.add_argument("--note", help="what else is to be known, kept in the row")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(speak(arguments.model, *arguments.runtimes, arguments.seconds, arguments.threads)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for runtime in arguments.runtimes:
            folder = prepared(arguments.model, pathlib.Path(work) / "checkpoint", runtime)
            rows.append(measure(arguments, folder, runtime))
            with RESULTS.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print(f"{rows[0]['model']}, {rows[0]['machine']}, torch threads: {arguments.threads}\n")
    table = [COLUMNS.values(), ["---"] * len(COLUMNS), *([row[name] for name in COLUMNS] for row in rows)]
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in table))


if __name__ == "__main__":
    main()
