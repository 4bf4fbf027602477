"""Audio samples during training: at each evaluation, the model synthesizes sentences of the evaluation data."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback

from smalle import SmallEForTextToSpeech
from smalle.alignment_smalle import monotonicity
from smalle.audio_smalle import write_wav
from smalle.generation_smalle import SmallEGenerateOutput
from smalle.saving_smalle import write_json

from ..data.dataset import CodesDataset
from ..data.prepare import Codec, load_codec_on
from ..evaluation.report import alignment_picture, png
from ..evaluation.scoring import score, write_manifest
from .recipe import SampleOptions

MAX_SECONDS = 12.0  # longest sentence, and longest prompt
SEED = 0


def open_board(folder: Path):
    """A TensorBoard writer; None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)


def decode(codec: Codec, codes: Tensor) -> np.ndarray:
    """The waveform (L,) of codes (T, Q); a tenth of a second of silence if there are none."""
    if not len(codes):
        return np.zeros(codec.sampling_rate // 10, np.float32)
    return codec.decode(codes.T[None].to(next(codec.parameters()).device))[0].cpu().numpy()


class AudioSamples(TrainerCallback):
    """Synthesizes sentences of the evaluation data, with another utterance of the same speaker as the prompt.

    Writes OUTPUT_DIR/samples/STEP: 0001.wav, 0001.png (the alignment), reference-0001.wav (the recording, decoded from
    its codes), manifest.jsonl and report.json. Also logs to TensorBoard if it is installed.

    Raises:
        ValueError: If no speaker has two utterances of up to MAX_SECONDS.
    """

    def __init__(
        self, dataset: CodesDataset, tokenizer: PreTrainedTokenizerBase, output_dir: str, options: SampleOptions
    ):
        self.dataset, self.tokenizer, self.folder, self.options = dataset, tokenizer, Path(output_dir), options
        self.max_frames = int(MAX_SECONDS * dataset.frame_rate)
        self.codec: Codec | None = None
        self.board: Any = None
        self.pairs = self._pairs()

    def _pairs(self) -> list[list[int]]:
        """[prompt, sentence]: indices of two utterances of a speaker."""
        by_speaker: dict[str, list[int]] = {}
        pairs: list[list[int]] = []
        for index, speaker in enumerate(self.dataset.speakers):
            if self.dataset.lengths[index] <= self.max_frames:
                by_speaker.setdefault(speaker, []).append(index)
        for first in range(0, max(map(len, by_speaker.values()), default=0) - 1, 2):
            pairs += [indices[first : first + 2] for indices in by_speaker.values() if len(indices) > first + 1]
        if not pairs:
            raise ValueError(f"samples: no speaker of data.eval has two utterances of up to {self.max_frames} frames.")
        return pairs[: self.options.count]

    @torch.no_grad()
    def _synthesize(
        self, model: SmallEForTextToSpeech, prompt: int, sentence: int
    ) -> tuple[Tensor, Tensor | None, float | None]:
        """Codes (T, Q), their alignment (T, N) and its monotonicity; the last two are None without an alignment."""
        recording, text = self.dataset[(prompt,)], self.dataset[(sentence,)].text
        inputs = self.tokenizer([f"{recording.text} {text}"], return_tensors="pt").to(model.device)
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            seed=SEED,
            audio_codes=recording.codes[None].to(model.device),
            max_new_tokens=self.max_frames,
            output_alignments=model.config.has_alignment,
            return_dict_in_generate=True,
        )
        assert isinstance(out, SmallEGenerateOutput)
        length = int(out.lengths[0])
        if out.alignments is None:
            return out.sequences[0, :length], None, None
        (value,) = monotonicity(out.alignments, out.lengths, inputs["attention_mask"])
        return out.sequences[0, :length], out.alignments[0, :length].float().cpu(), float(value)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if self.codec is None:
            self.codec = load_codec_on(self.options.codec, model.device)
            self.board = open_board(self.folder / "runs" / "samples")
        codec, board = self.codec, self.board
        folder, rows, values = self.folder / "samples" / str(state.global_step), [], []
        folder.mkdir(parents=True, exist_ok=True)
        for number, (prompt, sentence) in enumerate(self.pairs, 1):
            recording = self.dataset[(sentence,)]
            codes, alignment, value = self._synthesize(model, prompt, sentence)
            name, wave = f"{number:04d}", decode(codec, codes)
            write_wav(folder / f"{name}.wav", wave, codec.sampling_rate)
            write_wav(folder / f"reference-{name}.wav", decode(codec, recording.codes), codec.sampling_rate)
            rows.append({"audio": f"{name}.wav", "text": recording.text, "reference": f"reference-{name}.wav"})
            if board:
                board.add_audio(name, wave[None], state.global_step, codec.sampling_rate)
                board.add_text(name, recording.text, state.global_step)
            if alignment is not None:
                picture = alignment_picture(alignment)
                values.append(value)
                (folder / f"{name}.png").write_bytes(png(picture))
                if board:
                    board.add_image(name, picture, state.global_step, dataformats="HWC")
        self._report(folder, rows, values, state)

    def _report(self, folder, rows, monotonicities, state) -> None:
        """Writes report.json, and logs its numbers to the Trainer's history and to TensorBoard."""
        manifest, report = write_manifest(folder, rows), {"rows": rows, "summary": {}}
        if self.options.scorer:
            report = score(manifest, self.options.scorer, self.options.scorer_python or sys.executable)
        if monotonicities:
            report["summary"]["monotonicity"] = round(sum(monotonicities) / len(monotonicities), 4)
        write_json(folder / "report.json", report)
        summary = {name: value for name, value in report["summary"].items() if isinstance(value, int | float)}
        numbers = {f"samples_{name}": value for name, value in summary.items()}
        state.log_history.append({"step": state.global_step, **numbers})
        print({"step": state.global_step, **numbers}, flush=True)
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, state.global_step)
            self.board.flush()
