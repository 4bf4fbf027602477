"""hibari's voice (package hibari-tts, Apache-2.0), which reads texts for the training of a converter.

It speaks about 100 times as fast as real time on one core, and reports the duration of each phone or takes it as input.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .phones import PHRASE_END, Reading

RATE = 24000  # Hz
FRAME = 0.025  # seconds
COUNTS = "/Clip_output_0"  # tensor of the durations of phonemes in frames


def session_with(path: str | Path, tensor: str, given: bool = False) -> Any:
    """A single-threaded ONNX Runtime session whose last output, or if `given` last input, is an inner tensor."""
    import onnx
    import onnxruntime

    model = onnx.load(str(path))
    if given:
        for node in model.graph.node:
            node.output[:] = [f"unused {name}" if name == tensor else name for name in node.output]
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, ["phonemes"]))
    else:
        model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class HibariVoice:
    """hibari's voice."""

    def __init__(self) -> None:
        from hibari import Hibari

        self.tts, self.rng = Hibari(), np.random.default_rng(0)
        self.natural = session_with(self.tts.model_path, COUNTS)

    @functools.cached_property
    def timed(self) -> Any:
        """The session that takes the durations of phonemes as input."""
        return session_with(self.tts.model_path, COUNTS, given=True)

    def inputs(self, phonemes: Sequence[str], pace: float = 1.0) -> dict[str, np.ndarray]:
        """The inputs of a session for known phonemes (N); a pace of 2 is twice as fast."""
        return {"ids": np.array([self.tts.ids(phonemes)], np.int64), "speed": np.array([pace], np.float32)}

    def frames(self, phonemes: Sequence[str]) -> np.ndarray:
        """The voice's own durations (N + 2,) in frames, of known phonemes (N) and of the pauses at both ends."""
        return self.natural.run(None, self.inputs(phonemes))[-1]

    def speak(self, phonemes: Sequence[str], frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Waveform of known phonemes (N) and the pauses at both ends with given durations (N + 2,) in frames."""
        from hibari import dsp

        parts = self.timed.run(None, {**self.inputs(phonemes), COUNTS: frames.astype(np.float32)})
        return dsp.synth(*(part[0] for part in parts), rng)

    def read(self, text: str) -> Reading:
        """Speaks a text at the voice's own pace, which varies a little."""
        from hibari import dsp

        symbols, starts, waves, offset = "", list[float](), [np.zeros(0, np.float32)], 0.0
        for phonemes in self.tts.phonemize(text):
            known = "".join(phoneme for phoneme in phonemes if phoneme in self.tts.vocab)
            *parts, frames = self.natural.run(None, self.inputs(known, self.rng.uniform(0.95, 1.1)))
            waves.append(dsp.synth(*(part[0] for part in parts), self.rng).astype(np.float32))
            symbols += known + PHRASE_END
            starts += (offset + np.cumsum(frames)[:-1] * FRAME).tolist()
            offset += len(waves[-1]) / RATE
        return symbols, starts, np.concatenate(waves)
