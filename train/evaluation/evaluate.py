"""Speaks the lines of a text file, or clones the voices of a manifest, with a checkpoint; a judge may listen.

    python -m smalle.train.evaluation.evaluate CHECKPOINT SENTENCES OUT [--voice NAME] [--seed N] [--judge score.py | --asr NAME]
    python -m smalle.train.evaluation.evaluate CHECKPOINT OUT --clone MANIFEST.jsonl
    python -m smalle.train.evaluation.evaluate CHECKPOINT SENTENCES.txt OUT --runtime int8     # after `smalle export CHECKPOINT`
    python -m smalle.train.evaluation.evaluate CHECKPOINT PARAGRAPHS.txt OUT --stream          # a long text, sentence by sentence

Every option that changes a recording stands in the name of the folder under OUT. It gets 0001.wav, 0001.png (where in
the text each frame was read), ..., manifest.jsonl, report.json, which names the judge, and index.html for people.
Recordings that lie there already are kept, so an interrupted run goes on where it stopped, and a finished one can be
judged later, without the model.

Beside what the judge counts, "cut" is how many utterances max_new_tokens ended (in a stream: any of their pieces) and
not the model itself, "run_on" how many were heard to go on behind their text.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from smalle.audio_smalle import write_wav
from smalle.export import STEPS
from smalle.hub_smalle import write_json, write_jsonl, write_text
from smalle.runtime_smalle import FILES, exported

from ..data.audio import read_audio
from .asr import Transcriber
from .page import results_page
from .pictures import alignment_picture, png
from .speaking import Speech, Utterance, encode, speak, stream
from .word_errors import align, runs_on, words
from .word_errors import judge as hear

RUNTIMES = {"torch": None, **STEPS}  # and the exported step that each runs


@dataclass(frozen=True)
class Settings:
    """What a result depends on. `texts` is the file of sentences or of prompts, `generate` goes to `model.generate`.

    stream: texts are spoken one by one by `processor.stream`, without pictures of where the text was read.
    """

    checkpoint: str
    texts: Path
    clone: bool = False
    voice: str | None = None
    seed: int = 0
    batch_size: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    runtime: str = "torch"
    stream: bool = False
    generate: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name."""
        voice = "clone" if self.clone else self.voice or "default"
        parts = [
            Path(self.checkpoint).resolve().name,
            self.texts.stem,
            f"voice-{voice}",
            f"seed-{self.seed}",
            f"batch-{self.batch_size}",
            self.dtype,
            self.device,
            self.runtime,
        ]
        parts += ["stream"] * self.stream
        parts += [f"{key}-{value}" for key, value in sorted(self.generate.items())]
        return "_".join(parts).replace(os.sep, "-")


def read_sentences(path: Path) -> list[Utterance]:
    """One utterance for each line that is not empty; of a .jsonl, a line is {"text", "reference"?}. ValueError when
    there is none."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    rows = [json.loads(line) if path.suffix == ".jsonl" else {"text": line} for line in lines if line]
    references = [path.parent.resolve() / row["reference"] if row.get("reference") else None for row in rows]
    utterances = [Utterance(row["text"], reference=reference) for row, reference in zip(rows, references)]
    if not utterances:
        raise ValueError(f"{path} holds no text: give a file with one sentence a line")
    return utterances


def read_prompts(path: Path) -> list[Utterance]:
    """Rows {"audio", "audio_text"?, "text", "reference"?}, paths relative to the manifest.

    ValueError names the line that is none."""
    utterances = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            files = {key: path.parent.resolve() / row[key] for key in ("audio", "reference") if row.get(key)}
            utterance = Utterance(row["text"], files["audio"], row.get("audio_text"), files.get("reference"))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path}, line {number}: expected a JSON object with "audio" and "text"; got {line[:60]!r}'
            ) from error
        for file in files.values():
            if not file.is_file():
                raise ValueError(f"{path}, line {number}: {file} does not exist")
        utterances.append(utterance)
    if not utterances:
        raise ValueError(f"{path} holds no rows")
    return utterances


def read_text(path: Path) -> str:
    """The text of a UTF-8 file; ValueError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from error


def weights_digest(checkpoint: str, runtime: str) -> str | None:
    """SHA-256 over the safetensors files of a local checkpoint and what runs instead; None for one on the Hub."""
    files = sorted(Path(checkpoint).rglob("*.safetensors")) if Path(checkpoint).is_dir() else []
    files = [path for path in files if path.name not in FILES]
    if files and RUNTIMES[runtime]:
        names = RUNTIMES[runtime], FILES[RUNTIMES[runtime]]
        files += [path for name in names if (path := Path(checkpoint, name)).is_file()]
    return digest(files)


def digest(files) -> str | None:
    """SHA-256 over the contents of files; None for none."""
    sums = hashlib.sha256()
    for file in files:
        with Path(file).open("rb") as stream:
            while block := stream.read(1 << 20):
                sums.update(block)
    return sums.hexdigest() if files else None


def claim_folder(out: Path, settings: Settings, utterances: list[Utterance]) -> Path:
    """The folder of these settings, made where it is missing.

    Raises ValueError when it holds recordings of other weights, texts or voices under the same name.
    """
    folder, prompts = out / settings.name, [u.audio for u in utterances if u.audio]
    voice = [settings.voice] if settings.voice and Path(settings.voice).is_file() else []
    made_from = {
        "weights": weights_digest(settings.checkpoint, settings.runtime),
        "texts": [u.text for u in utterances],
        "prompts": list(map(str, prompts)),
        "said": [u.audio_text for u in utterances if u.audio],
        "voices": digest([*voice, *sorted(set(prompts))]),
    }
    record = folder / "made_from.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) != made_from:
        raise ValueError(f"{folder} holds recordings of other weights, texts or voices: delete it, or name another OUT")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, made_from)
    return folder


def load(settings: Settings):
    """(processor, model) of a checkpoint, the model in its dtype on its device with its runtime.

    ValueError where there is none, or nothing that the runtime could run.
    """
    from transformers import AutoModelForTextToWaveform, AutoProcessor

    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {settings.device!r} is not available here: use --device cpu")
    try:
        processor = AutoProcessor.from_pretrained(settings.checkpoint, trust_remote_code=True)
        model = AutoModelForTextToWaveform.from_pretrained(
            settings.checkpoint, trust_remote_code=True, dtype=getattr(torch, settings.dtype)
        )
    except OSError as error:
        raise ValueError(f"checkpoint {settings.checkpoint!r} cannot be loaded: {error}") from error
    model = model.to(settings.device).eval()
    choose_runtime(model, settings)
    return processor, model


def choose_runtime(model, settings: Settings) -> None:
    """Has the model take its steps as the settings say. ValueError where it cannot."""
    wanted = RUNTIMES[settings.runtime]
    if wanted:
        found = exported(model)
        if found is None or Path(found).name != wanted:
            raise ValueError(
                f"--runtime {settings.runtime} runs {wanted}, but {settings.checkpoint} would run "
                f"{Path(found).name if found else 'none'}: smalle export "
                f"{settings.checkpoint} --runtime {settings.runtime}"
            )
        if (settings.dtype, settings.device) != ("float32", "cpu"):
            raise ValueError(
                f"--runtime {settings.runtime} runs in float32 on the CPU, not in {settings.dtype} on "
                f"{settings.device}: add --device cpu --dtype float32"
            )
    model.step_runtime = settings.runtime if settings.runtime in ("torch", "native") else "onnx"


def missing_batches(folder: Path, utterances: list[Utterance], size: int) -> list[list[int]]:
    """Indices of the batches in which a recording is missing.

    The batches themselves never depend on what lies there: a resumed run draws the same numbers as an unbroken one.
    Texts of like length share a batch.
    """
    order = sorted(range(len(utterances)), key=lambda i: (len(utterances[i].text), i))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    return [batch for batch in batches if not all(wave_path(folder, i).is_file() for i in batch)]


def wave_path(folder: Path, index: int) -> Path:
    """Where the recording of one utterance lies."""
    return folder / f"{index + 1:04d}.wav"


def make_recordings(settings: Settings, utterances: list[Utterance], folder: Path) -> dict | None:
    """Speaks what is missing.

    Returns {"audio_seconds", "work_seconds", "speed"}, or None when nothing was missing. Work is generating and
    decoding, without loading; the first batch, which warms up, counts only where it is the only one.
    """
    todo = missing_batches(folder, utterances, 1 if settings.clone or settings.stream else settings.batch_size)
    if not todo:
        return None
    processor, model = load(settings)
    untold = sum(u.audio is not None and u.audio_text is None for u in utterances)
    if untold and not model.config.speaker_layers:
        raise ValueError(
            f"{settings.texts}: {untold} rows without audio_text: expected what each recording says, for "
            f"{settings.checkpoint} has no speaker encoder"
        )
    times = []
    with tqdm(total=sum(map(len, todo)), desc="speaking", unit="utterance") as bar:
        for batch in todo:
            inputs = None if settings.stream else encode(processor, [utterances[i] for i in batch], settings.voice)
            seed = settings.seed + batch[0]
            torch.manual_seed(seed)
            start = time.perf_counter()
            if settings.stream:
                utterance = utterances[batch[0]]
                speeches = [stream(processor, model, utterance, settings.voice, seed, **settings.generate)]
            else:
                speeches = speak(processor, model, inputs, **settings.generate)
            seconds = sum(len(speech.wave) for speech in speeches) / processor.sampling_rate
            times.append((seconds, time.perf_counter() - start))
            keep(folder, dict(zip(batch, speeches, strict=True)), processor.sampling_rate)
            bar.update(len(batch))
    audio, work = np.sum(times[1:] or times, axis=0)
    return {
        "audio_seconds": round(float(audio), 2),
        "work_seconds": round(float(work), 2),
        "speed": round(float(audio / work), 2),
    }


def keep(folder: Path, speeches: dict[int, Speech], sampling_rate: int) -> None:
    """Writes what is not there: recordings, pictures of their alignments, and in cut.json whether they were cut."""
    new = {index: speech for index, speech in speeches.items() if not wave_path(folder, index).is_file()}
    cut = {wave_path(folder, index).name: speech.cut for index, speech in new.items()}
    write_json(folder / "cut.json", {**read_cut(folder), **cut})
    for index, speech in new.items():
        write_wav(wave_path(folder, index), speech.wave, sampling_rate)
    for index, speech in speeches.items():
        if speech.alignment is not None:
            wave_path(folder, index).with_suffix(".png").write_bytes(png(alignment_picture(speech.alignment)))


def read_cut(folder: Path) -> dict[str, bool]:
    """Of recordings, by the names of their files, whether they were cut."""
    path = folder / "cut.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_manifest(folder: Path, utterances: list[Utterance]) -> Path:
    """Lists the recordings as a judge reads them: {"audio", "text", "reference"?}; and "cut", where it is known."""
    rows, cut = [], read_cut(folder)
    for index, utterance in enumerate(utterances):
        name = wave_path(folder, index).name
        rows.append({"audio": name, "text": utterance.text, **({"cut": cut[name]} if name in cut else {})})
        if utterance.reference:
            rows[-1]["reference"] = str(utterance.reference)
    return write_rows(folder, rows)


def write_rows(folder: Path, rows: list[dict]) -> Path:
    """Writes manifest.jsonl; returns its path."""
    path = folder / "manifest.jsonl"
    write_jsonl(path, rows)
    return path


def judge_recordings(judge: Path, python: str, manifest: Path, threads: int) -> dict:
    """What the judge reports: {"summary", "rows"}. Called as PYTHON JUDGE MANIFEST --out FILE --threads N."""
    part = manifest.with_name(".judge.json.part")
    command = [python, str(judge), str(manifest), "--out", str(part), "--threads", str(threads)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads(part.read_text(encoding="utf-8"))
    part.unlink()
    return report


def listen(asr: str, manifest: Path, device: str) -> dict:
    """As `judge_recordings`, by a speech recognizer of transformers: a folder or Hub name. No MOS, no similarity."""
    transcriber = Transcriber(asr, device)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for row in tqdm(rows, desc="listening", unit="utterance"):
        wave = read_audio(manifest.parent / row["audio"], transcriber.sampling_rate)
        row["seconds"] = round(len(wave) / transcriber.sampling_rate, 3)
        (row["heard"],) = transcriber([wave], transcriber.sampling_rate) if np.abs(wave).max() > 1e-3 else ("",)
    return hear(rows)


def endings(recordings: list[dict], judged: list[dict]) -> dict:
    """How many utterances were cut, of the manifest's rows, and how many run on, of a judge's; None where not all
    tell."""
    known = {"cut": None, "run_on": None}
    if all("cut" in row for row in recordings):
        known["cut"] = sum(row["cut"] for row in recordings)
    if judged and all("heard" in row for row in judged):
        known["run_on"] = sum(runs_on(align(words(row["text"]), words(row["heard"]))) for row in judged)
    return known


def evaluate(
    settings: Settings,
    out: Path,
    judge: Path | None = None,
    judge_python: str = sys.executable,
    threads: int = 1,
    asr: str | None = None,
) -> dict:
    """Speaks, judges where a judge is given or an ASR, and writes report.json and index.html.

    Returns {"folder", "utterances", "audio_seconds"?, "work_seconds"?, "speed"?, and the summary of `endings` and of
    the judge}: seconds of audio for each second of work is the speed. Raises ValueError for bad input,
    CalledProcessError when a judge fails.
    """
    utterances = (read_prompts if settings.clone else read_sentences)(settings.texts)
    folder = claim_folder(out, settings, utterances)
    path = folder / "report.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    timing = make_recordings(settings, utterances, folder)
    manifest = write_manifest(folder, utterances)
    report = {**report, **({"timing": timing} if timing else {})}
    report["settings"] = {**asdict(settings), "texts": str(settings.texts)}
    write_json(path, report)
    if judge is not None:
        report |= {**judge_recordings(judge, judge_python, manifest, threads), "judge": judge.name}
    if asr is not None:
        report |= {**listen(asr, manifest, settings.device), "judge": asr}
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    report["summary"] = {**report.get("summary", {}), **endings(rows, report.get("rows", []))}
    write_json(path, report)
    write_text(folder / "index.html", results_page(folder, report.get("rows", rows), report))
    counts = {"folder": str(folder), "utterances": len(utterances)}
    return {**counts, **report.get("timing", {}), **report.get("summary", {})}


def option(text: str) -> tuple[str, object]:
    """KEY=VALUE as a pair; the value is JSON where it can be."""
    key, equals, value = text.partition("=")
    if not (equals and key.isidentifier()):
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, for example temperature=0.8; got {text!r}")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="smalle.train.evaluation.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="folder or Hub name")
    parser.add_argument(
        "sentences", type=Path, nargs="?", help='text file, one sentence a line; or .jsonl, rows {"text", "reference"?}'
    )
    parser.add_argument("out", type=Path, help="folder that gets the folder of this run")
    parser.add_argument(
        "--clone", type=Path, metavar="MANIFEST", help='rows {"audio", "audio_text"?, "text", "reference"?}'
    )
    parser.add_argument("--voice", help="one of the checkpoint's voices; its default otherwise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8, help="clones and streams are made one by one")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="what runs the steps: PyTorch, or the exported step in 8 bits or in single precision",
    )
    parser.add_argument("--stream", action="store_true", help="by processor.stream: texts of any length, one by one")
    parser.add_argument(
        "--generate",
        type=option,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of model.generate, as often as needed",
    )
    parser.add_argument("--threads", type=int, help="CPU threads of the model and of the judge")
    parser.add_argument("--judge", type=Path, help="program that scores a manifest")
    parser.add_argument("--asr", help="judge by this speech recognizer of transformers: folder or Hub name")
    parser.add_argument("--judge-python", default=sys.executable, help="the Python that runs the judge")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; 2 on bad input, 1 when the judge fails."""
    parser = arguments()
    args = parser.parse_intermixed_args(argv)
    if (args.sentences is None) == (args.clone is None):
        parser.error("give either SENTENCES or --clone MANIFEST")
    if args.clone and args.voice:
        parser.error("--voice has no meaning beside --clone: the prompts are the voices")
    if args.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {args.batch_size}")
    if args.judge and args.asr:
        parser.error("give --judge or --asr, not both")
    if args.judge and not args.judge.is_file():
        parser.error(f"judge {args.judge} does not exist")
    if args.threads:
        torch.set_num_threads(args.threads)
    settings = Settings(
        args.checkpoint,
        args.clone or args.sentences,
        args.clone is not None,
        args.voice,
        args.seed,
        1 if args.clone or args.stream else args.batch_size,
        args.dtype,
        args.device,
        args.runtime,
        args.stream,
        dict(args.generate),
    )
    try:
        summary = evaluate(settings, args.out, args.judge, args.judge_python, args.threads or 1, args.asr)
    except ValueError as error:
        parser.error(str(error))
    except subprocess.CalledProcessError as error:
        message = f"the judge failed with exit code {error.returncode}; the recordings are kept"
        print(f"{parser.prog}: {message}", file=sys.stderr)
        return 1
    print(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
