"""Small-E as the benchmarks load it: a checkpoint or random weights in the paper's shape, with a runtime."""

import pathlib

import torch

from benchmarks.timing import ROOT
from smalle import SmallEConfig, SmallEForTextToSpeech, SmallEProcessor

EMBEDDED = ROOT / "checkpoints" / "smalle-mini"
PAPER = "random weights, the paper's shape"
RUNTIMES = "torch", "native"
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody knows why it should, or whether it will again. "
PIECE = 10.0  # seconds
OURS = {  # name -> checkpoint (None: random weights), runtime
    "smalle-mini, native": (EMBEDDED, "native"),
    "smalle-mini, PyTorch": (EMBEDDED, "torch"),
    "Small-E 64M, native": (None, "native"),
    "Small-E 64M, PyTorch": (None, "torch"),
}


def random_checkpoint(folder):
    """Writes a checkpoint in the paper's shape (64M, GLA) with EnCodec in its published size, with random weights."""
    from transformers import AutoTokenizer, EncodecConfig, EncodecModel

    from smalle.codec_smalle import EncodecCodec
    from smalle.vocos_smalle import Vocos, VocosConfig

    torch.manual_seed(0)
    model = SmallEForTextToSpeech(SmallEConfig())
    processor = SmallEProcessor(AutoTokenizer.from_pretrained(EMBEDDED))
    processor.codec = EncodecCodec(EncodecModel(EncodecConfig()), Vocos(VocosConfig(num_bandwidths=4)))
    processor.save_pretrained(folder)
    model.save_pretrained(folder)


def prepared(source, work):
    """The folder of a checkpoint; with None that of one with random weights, which is made in the folder `work`."""
    if source is not None:
        return pathlib.Path(source)
    if not work.exists():
        random_checkpoint(work)
    return work


class Speaker:
    """A checkpoint that speaks for a given time."""

    def __init__(self, folder, runtime):
        self.processor = SmallEProcessor.from_pretrained(folder)
        self.model = SmallEForTextToSpeech.from_pretrained(folder).eval()
        self.model.step_runtime = runtime
        self.sampling_rate, self.parameters = self.processor.sampling_rate, self.model.num_parameters()

    def speak(self, seconds, rows=1):
        """Yields waveforms (L,): of a stream in pieces of up to ten seconds, or of each row of a batch."""
        frames = int(min(seconds, PIECE) * self.model.config.frame_rate)
        options = dict(seed=0, min_new_tokens=frames, max_new_tokens=frames)
        pieces = max(1, round(seconds / PIECE))
        if rows == 1:
            yield from self.processor.stream(self.model, SENTENCE * pieces, max_characters=len(SENTENCE), **options)
            return
        inputs = self.processor([SENTENCE] * rows)
        for _ in range(pieces):
            yield from self.processor.decode(self.model.generate(**inputs, **options, best_of=1))
