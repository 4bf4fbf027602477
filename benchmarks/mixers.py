"""Every sequence mixer in the paper's shape, side by side: sizes, training throughput, latency of one step.

  python benchmarks/mixers.py [--device cuda] [--dtype bfloat16] [--frames 256] [--batch 1] [--mixers gla mamba]
      [--threads 1] [--processor-time]

Prints a table in Markdown. Each model is the paper's Small-E (width 512, 9 + 6 + 6 layers) with random weights and one
mixer in all layers. Training is forward, backward and AdamW over a batch of texts of 64 tokens, in frames of audio a
second; a step is one new frame for a batch of one, in single precision. Times are medians of wall-clock time, or of
processor time on a machine that other programs share. PyTorch and the kernels of flash-linear-attention are measured
one after the other, where a mixer has both and they run.
"""

import argparse
import pathlib
import platform
import statistics
import sys
import time

import torch
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from smalle import SmallEConfig, SmallEForTextToSpeech  # noqa: E402
from smalle.cache_smalle import map_tensors  # noqa: E402
from smalle.mixers_smalle import MIXERS  # noqa: E402

HEADS = {"rwkv5": 8, "rwkv6": 8, "rwkv7": 8, "mamba2": 16}  # as narrow as published: 64 channels; others have 2
TEXT_TOKENS = 64
COLUMNS = (
    "mixer",
    "heads",
    "parameters (M)",
    "in each mixer (M)",
    "fla path",
    "training (frames/s)",
    "with fla",
    "one step (ms)",
    "with fla",
    "state (kB)",
)


def clocked(function, device, repeats, clock):
    """Median seconds of a call, after a warm-up call."""
    times = []
    for _ in range(repeats + 1):
        started = clock()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(clock() - started)
    return statistics.median(times[1:])


def training_step(model, batch, frames, dtype):
    """A function that makes one training step."""
    config, device = model.config, model.device
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    text = torch.randint(3, config.vocab_size, (batch, TEXT_TOKENS), device=device)
    codes = torch.randint(config.codebook_size, (batch, frames, config.num_codebooks), device=device)

    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model(input_ids=text, decoder_input_ids=codes, labels=codes).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoding_step(model):
    """A function that decodes one frame, and the bytes of the recurrent state."""
    config, device = model.config, model.device
    text = torch.randint(3, config.vocab_size, (1, TEXT_TOKENS), device=device)
    frame = torch.randint(config.codebook_size, (1, 1, config.num_codebooks), device=device)

    @torch.inference_mode()
    def read(**past):
        return model(decoder_input_ids=frame, use_cache=True, **past).cache

    state, sizes = read(input_ids=text), []
    map_tensors(lambda tensor: sizes.append(tensor.nbytes), state.recurrent)
    return lambda: read(cache=state), sum(sizes)


def measure(mixer, arguments):
    """One row of the table."""
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    torch.manual_seed(0)
    model = SmallEForTextToSpeech(SmallEConfig(mixer=mixer, mixer_heads=HEADS.get(mixer, 2))).to(device)
    own = sum(parameter.numel() for parameter in model.model.audio_encoder[0].mixer.parameters())
    clock = time.process_time if arguments.processor_time else time.perf_counter
    speeds, latencies = [], []
    for choice in ("torch", "fla"):
        model.config.mixer_kernel, latency = choice, None
        try:
            train = training_step(model.train(), arguments.batch, arguments.frames, dtype)
            speed = arguments.batch * arguments.frames / clocked(train, device, arguments.steps, clock)
            step, state = decoding_step(model.eval())
            latency = 1000 * clocked(step, device, 20, clock)
        except (ValueError, RuntimeError) as error:  # no kernel, no GPU, or one that fla refuses
            if choice == "torch":
                raise
            tqdm.write(f"{mixer}: {error}", file=sys.stderr)
        speeds.append("–" if latency is None else f"{speed:,.0f}")
        latencies.append("–" if latency is None else f"{latency:.1f}")
    heads = "–" if mixer == "mamba" else model.config.mixer_heads
    return (
        mixer,
        heads,
        f"{model.num_parameters() / 1e6:.1f}",
        f"{own / 1e6:.2f}",
        "no" if mixer == "mamba" else "yes",
        *speeds,
        *latencies,
        f"{state / 1000:,.0f}",
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of training")
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="timed training steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mixers", nargs="+", default=list(MIXERS), choices=list(MIXERS))
    parser.add_argument("--processor-time", action="store_true", help="measure processor time")
    arguments = parser.parse_args()
    if arguments.processor_time and (arguments.threads > 1 or arguments.device != "cpu"):
        parser.error("--processor-time is for one CPU thread: it adds up threads and does not see a GPU")
    torch.set_num_threads(arguments.threads)
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else f"{platform.machine()} CPU"
    print(
        f"{where}, threads: {arguments.threads}, torch {torch.__version__}, training in {arguments.dtype} on "
        f"{arguments.batch} × {arguments.frames} frames"
        f"{', processor time' if arguments.processor_time else ''}\n",
        flush=True,
    )
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    rows += [measure(mixer, arguments) for mixer in tqdm(arguments.mixers, leave=False)]
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in rows))


if __name__ == "__main__":
    main()
