"""The plan of a preparation: the clips of each shard, written once and kept next to the shards.

OUT/plan/plan.json contains the options and the hours of each shard; OUT/plan/train-00000.jsonl and so on contain the
clips of the shard with that name; problems.jsonl lists unusable clips. The folder is written atomically, memory use
does not depend on the size of the corpus, and a resumed preparation has the same shards.
"""

import collections
import contextlib
import json
import pathlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TextIO

from smalle.saving_smalle import atomic_folder, write_json

from .audio import Clip, Problem
from .corpora import corpus_clips

SPLITS = "train", "eval", "test"
REQUEST = (  # options that determine the plan and the shards
    *("corpora", "codec", "asr", "libriheavy_cuts", "min_snr", "max_seconds", "exclude", "speeds", "shard_hours"),
    *("eval_clips", "eval_speakers", "test_speakers", "codebooks", "gate", "references"),
)


def choose_speakers(speakers: Iterable[str], wanted: Sequence[str], seed: str) -> set[str]:
    """The speakers to hold out, given by name or as a number. Raises ValueError for unknown names or too many."""
    speakers = sorted(speakers)
    if len(wanted) == 1 and wanted[0].isdigit() and wanted[0] not in speakers:
        count = int(wanted[0])
        if count >= len(speakers):
            raise ValueError(
                f"cannot hold out {count} speakers: the corpus has {len(speakers)}, and none would be left to train on"
            )
        return set(random.Random(seed).sample(speakers, count))
    unknown = sorted(set(wanted) - set(speakers))
    if unknown:
        raise ValueError(f"no speakers named {unknown[:5]}: the corpus has {len(speakers)}, such as {speakers[:5]}")
    return set(wanted)


def split_function(counts: dict[str, int], request: dict, seed: int = 0) -> Callable[[int, str], str]:
    """A function (index of a clip, its speaker) -> split. counts: number of clips per speaker.

    Speakers in eval and test are in no other split. Without eval_speakers, eval consists of `eval_clips` random clips.
    """
    test = choose_speakers(counts, request["test_speakers"], f"test {seed}")
    held_out = choose_speakers(counts.keys() - test, request["eval_speakers"], f"eval {seed}")
    total = sum(counts.values())
    drawn = set(random.Random(seed).sample(range(total), min(request["eval_clips"], total))) if not held_out else set()

    def split_of(index, speaker):
        return "test" if speaker in test else "eval" if speaker in held_out or index in drawn else "train"

    return split_of


def list_clips(folder: pathlib.Path, request: dict) -> dict[str, int]:
    """Writes all clips to folder/all.jsonl and problems to folder/problems.jsonl; returns clips per speaker."""
    counts: collections.Counter[str] = collections.Counter()
    options = {"cuts": request["libriheavy_cuts"], "min_snr": request["min_snr"], "max_seconds": request["max_seconds"]}
    with (
        open(folder / "all.jsonl", "w", encoding="utf-8") as clips,
        open(folder / "problems.jsonl", "w", encoding="utf-8") as problems,
    ):
        for corpus in request["corpora"]:
            for clip in corpus_clips(corpus, untranscribed=bool(request["asr"]), **options):
                if isinstance(clip, Problem):
                    problems.write(clip.to_json() + "\n")
                elif clip.speaker not in request["exclude"]:
                    clips.write(clip.to_json() + "\n")
                    counts[clip.speaker] += 1
    return counts


def write_shards(folder: pathlib.Path, clips: Iterable[tuple[str, Clip]], shard_hours: float) -> dict[str, float]:
    """Writes (split, clip) to folder/SPLIT-NUMBER.jsonl, about `shard_hours` each; returns the hours of each shard."""
    hours: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        files: dict[str, tuple[str, TextIO]] = {}  # the current shard of each split
        for split, clip in clips:
            if split not in files or hours[files[split][0]] >= shard_hours:
                if split in files:
                    files[split][1].close()
                name = f"{split}-{sum(other.startswith(f'{split}-') for other in hours):05d}"
                file = open(folder / f"{name}.jsonl", "w", encoding="utf-8")
                files[split], hours[name] = (name, stack.enter_context(file)), 0.0
            name = files[split][0]
            files[split][1].write(clip.to_json() + "\n")
            hours[name] += clip.seconds / 3600
    return hours


def make_plan(folder: pathlib.Path, request: dict) -> dict[str, float]:
    """Writes the lists of clips to `folder`; returns the hours of each shard.

    Raises ValueError if there is nothing to prepare, or nothing left to train on.
    """
    if not all(0.5 <= speed <= 2 for speed in request["speeds"]):
        raise ValueError(f"--speeds {request['speeds']}: expected 0.5 to 2; other speeds do not sound human")
    counts = list_clips(folder, request)
    if not counts:
        problems = (folder / "problems.jsonl").read_text(encoding="utf-8").splitlines()
        found = f"{len(problems)} cannot be used, the first: {problems[0]}" if problems else "all of them are excluded"
        raise ValueError(f"no clips in {', '.join(request['corpora'])}: {found}")
    split_of = split_function(counts, request)

    def clips():
        with open(folder / "all.jsonl", encoding="utf-8") as lines:
            for index, clip in enumerate(map(Clip.from_json, lines)):
                split = split_of(index, clip.speaker)
                for speed in request["speeds"] if split == "train" else (1.0,):
                    yield split, clip.at_speed(speed)

    hours = write_shards(folder, clips(), request["shard_hours"])
    (folder / "all.jsonl").unlink()
    if not any(name.startswith("train") for name in hours):
        raise ValueError(
            f"--eval-clips {request['eval_clips']}: the corpus has {sum(counts.values())} clips, and none would be "
            "left to train on; use a smaller number"
        )
    return hours


def load_or_make_plan(out: pathlib.Path, request: dict) -> dict[str, float]:
    """The hours of each shard, from the existing plan or from a new one.

    request: the options of the preparation (REQUEST). Raises ValueError if the existing plan has different options.
    """
    path, request = out / "plan" / "plan.json", json.loads(json.dumps(request))
    if not path.is_file():
        with atomic_folder(path.parent) as folder:
            write_json(folder / "plan.json", {"request": request, "parts": make_plan(folder, request)})
    plan = json.loads(path.read_text(encoding="utf-8"))
    if changed := [key for key in request if plan["request"].get(key) != request[key]]:
        raise ValueError(
            f"{out} was started with a different {', '.join(changed)}: use the same options, or another folder"
        )
    return plan["parts"]


def read_planned_clips(out: pathlib.Path, shard: str) -> list[Clip]:
    """The clips of one shard."""
    with open(out / "plan" / f"{shard}.jsonl", encoding="utf-8") as lines:
        return [Clip.from_json(line) for line in lines]
