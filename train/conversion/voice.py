"""The voice that reads texts for a converter's training: hibari's (package hibari-tts, Apache-2.0), also at
given times.

It speaks about 100 times as fast as real time on one core, and says when it speaks each phone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .phones import PHRASE_END, Reading

RATE = 24000  # Hz
FRAME = 0.025  # seconds
COUNTS = "/Clip_output_0"  # tensor of the numbers of frames of each phoneme


class HibariVoice:
    """hibari's voice. Its graph tells the number of frames of each phoneme, or takes it."""

    def __init__(self) -> None:
        from hibari import Hibari

        self.tts, self.rng = Hibari(), np.random.default_rng(0)
        self.natural, self.timed = self._session(given=False), self._session(given=True)

    def _session(self, given: bool) -> Any:
        """A single-threaded session with the numbers of frames as its last output, or as its last input."""
        import onnx
        import onnxruntime

        model = onnx.load(str(self.tts.model_path))
        if given:
            for node in model.graph.node:
                node.output[:] = [f"unused {name}" if name == COUNTS else name for name in node.output]
            model.graph.input.append(onnx.helper.make_tensor_value_info(COUNTS, onnx.TensorProto.FLOAT, ["phonemes"]))
        else:
            model.graph.output.append(onnx.ValueInfoProto(name=COUNTS))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _inputs(self, phonemes: Sequence[str], pace: float = 1.0) -> dict[str, np.ndarray]:
        return {"ids": np.array([self.tts.ids(phonemes)], np.int64), "speed": np.array([pace], np.float32)}

    def frames(self, phonemes: Sequence[str]) -> np.ndarray:
        """Frames (N + 2,) of known phonemes, and of the pauses at both ends, as the voice would speak them."""
        return self.natural.run(None, self._inputs(phonemes))[-1]

    def speak(self, phonemes: Sequence[str], frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Waveform of known phonemes (N), with so many frames (N + 2,) for each and for the pauses at both ends."""
        from hibari import dsp

        parts = self.timed.run(None, {**self._inputs(phonemes), COUNTS: frames.astype(np.float32)})
        return dsp.synth(*(part[0] for part in parts), rng)

    def read(self, text: str) -> Reading:
        """A text, spoken at the voice's own pace, which varies a little."""
        from hibari import dsp

        symbols, starts, waves, offset = "", list[float](), [np.zeros(0, np.float32)], 0.0
        for phonemes in self.tts.phonemize(text):
            known = "".join(phoneme for phoneme in phonemes if phoneme in self.tts.vocab)
            *parts, frames = self.natural.run(None, self._inputs(known, self.rng.uniform(0.95, 1.1)))
            waves.append(dsp.synth(*(part[0] for part in parts), self.rng).astype(np.float32))
            symbols += known + PHRASE_END
            starts += (offset + np.cumsum(frames)[:-1] * FRAME).tolist()
            offset += len(waves[-1]) / RATE
        return symbols, starts, np.concatenate(waves)
