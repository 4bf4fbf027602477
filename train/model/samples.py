"""Speech in the run: at each evaluation the model says some sentences, to be heard, seen and judged."""

import pathlib
import sys

import torch
from transformers import TrainerCallback

from smalle.alignment_smalle import monotonicity
from smalle.audio_smalle import write_wav
from smalle.codec_smalle import load_codec
from smalle.hub_smalle import write_json

from ..evaluation.evaluate import judge_recordings, write_rows
from ..evaluation.pictures import alignment_picture, png


def open_board(folder):
    """A writer of TensorBoard; None where that is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder)


class Samples(TrainerCallback):
    """Says `count` sentences of the evaluation data, in the voice of another utterance of the same speaker.

    They go to output_dir/samples/STEP: 0001.wav, 0001.png (the alignment), reference-0001.wav (what the speaker said,
    through the codec), manifest.jsonl and report.json, and to TensorBoard where it is installed. judge: a program as
    smalle.train.evaluation.evaluate takes, whose word errors, skips and repeats are reported too.
    """

    def __init__(
        self,
        dataset,
        tokenizer,
        arguments,
        codec,
        count=4,
        max_seconds=12.0,
        seed=0,
        judge=None,
        judge_python=sys.executable,
    ):
        self.dataset, self.tokenizer, self.folder = dataset, tokenizer, pathlib.Path(arguments.output_dir)
        self.codec, self.max_frames, self.seed = codec, int(max_seconds * dataset.frame_rate), seed
        self.judge, self.judge_python, self.board = judge, judge_python, None
        self.pairs = self._pairs(count)

    def _pairs(self, count):
        """(prompt, sentence): indices of neighbouring utterances of a speaker, each as long as may be said."""
        by_speaker, pairs = {}, []
        for index, speaker in enumerate(self.dataset.speakers):
            if self.dataset.lengths[index] <= self.max_frames:
                by_speaker.setdefault(speaker, []).append(index)
        for first in range(0, max(map(len, by_speaker.values()), default=0) - 1, 2):
            pairs += [indices[first : first + 2] for indices in by_speaker.values() if len(indices) > first + 1]
        if not pairs:
            raise ValueError(f"samples: no speaker of data.eval has two utterances of up to {self.max_frames} frames")
        return pairs[:count]

    @torch.no_grad()
    def _say(self, model, prompt, sentence):
        """Codes (T, Q), their map (T, N) or None, and monotonicity or None."""
        (said, codes, *_), (text, *_) = self.dataset[(prompt,)], self.dataset[(sentence,)]
        inputs = self.tokenizer([f"{said} {text}"], return_tensors="pt").to(model.device)
        reads = model.config.has_alignment
        out = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            seed=self.seed,
            audio_codes=codes[None].to(model.device),
            max_new_tokens=self.max_frames,
            output_alignments=reads,
            return_dict_in_generate=True,
        )
        length = int(out.lengths[0])
        if not reads:
            return out.sequences[0, :length], None, None
        steady = monotonicity(out.alignments, out.lengths, inputs["attention_mask"])
        return out.sequences[0, :length], out.alignments[0, :length].float().cpu(), float(steady[0])

    def _wave(self, codes):
        """The waveform (L,) of codes (T, Q); a tenth of a second of silence for none."""
        if not len(codes):
            return torch.zeros(self.codec.sampling_rate // 10).numpy()
        return self.codec.decode(codes.T[None].to(next(self.codec.parameters()).device))[0].cpu().numpy()

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if isinstance(self.codec, str):
            self.codec = load_codec(self.codec).to(model.device).eval()
            self.board = open_board(self.folder / "runs" / "samples")
        folder, rows, steadiness = self.folder / "samples" / str(state.global_step), [], []
        folder.mkdir(parents=True, exist_ok=True)
        for number, (prompt, sentence) in enumerate(self.pairs, 1):
            text, original, *_ = self.dataset[(sentence,)]
            codes, alignment, steady = self._say(model, prompt, sentence)
            name, wave = f"{number:04d}", self._wave(codes)
            write_wav(folder / f"{name}.wav", wave, self.codec.sampling_rate)
            write_wav(folder / f"reference-{name}.wav", self._wave(original), self.codec.sampling_rate)
            rows.append({"audio": f"{name}.wav", "text": text, "reference": f"reference-{name}.wav"})
            if self.board:
                self.board.add_audio(name, wave[None], state.global_step, self.codec.sampling_rate)
                self.board.add_text(name, text, state.global_step)
            if alignment is not None:
                picture = alignment_picture(alignment)
                steadiness.append(steady)
                (folder / f"{name}.png").write_bytes(png(picture))
                if self.board:
                    self.board.add_image(name, picture, state.global_step, dataformats="HWC")
        self._report(folder, rows, steadiness, state)

    def _report(self, folder, rows, steadiness, state):
        """Numbers about the samples: to report.json, the Trainer's history and TensorBoard."""
        manifest, report = write_rows(folder, rows), {"rows": rows, "summary": {}}
        if self.judge:
            report = judge_recordings(self.judge, self.judge_python, manifest, threads=1)
        if steadiness:
            report["summary"]["monotonicity"] = round(sum(steadiness) / len(steadiness), 4)
        write_json(folder / "report.json", report)
        summary = {name: value for name, value in report["summary"].items() if isinstance(value, int | float)}
        numbers = {f"samples_{name}": value for name, value in summary.items()}
        state.log_history.append({"step": state.global_step, **numbers})
        print({"step": state.global_step, **numbers}, flush=True)
        if self.board:
            for name, value in numbers.items():
                self.board.add_scalar(name.replace("_", "/", 1), value, state.global_step)
            self.board.flush()
