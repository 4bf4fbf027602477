"""The plan of a preparation: which clips make which shard, written once and kept beside the shards.

OUT/plan/plan.json holds what was asked for and the hours of each part; OUT/plan/train-00000.jsonl and so on hold the
clips of each part, which become one shard of the same name; problems.jsonl what could not be used. It is there whole
or not at all, and memory does not grow with the corpus. Whoever takes up the work later finds the same parts.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import time

from .clips import Clip, Problem
from .corpora import corpus_clips

SPLITS = "train", "eval", "test"


def choose(speakers, wanted, seed):
    """The speakers that are wanted: names, or how many. Raises ValueError where they are not there."""
    if len(wanted) == 1 and wanted[0].isdigit() and wanted[0] not in speakers:
        count = int(wanted[0])
        if count >= len(speakers):
            raise ValueError(f"{count} of {len(speakers)} speakers asked for: none would be left to train on")
        return set(random.Random(seed).sample(sorted(speakers), count))
    unknown = sorted(set(wanted) - set(speakers))
    if unknown:
        raise ValueError(f"no speakers named {unknown[:5]}: the corpus has {len(speakers)}, as {sorted(speakers)[:5]}")
    return set(wanted)


def dealer(counts, eval_speakers, test_speakers, eval_count, seed):
    """(index of a clip, its speaker) -> its split; counts: clips of each speaker.

    The speakers of eval and test are in no other split. Where no speakers are named, eval is `eval_count` clips of all.
    """
    test = choose(counts, test_speakers, f"test {seed}")
    held_out = choose({name: counts[name] for name in counts if name not in test}, eval_speakers, f"eval {seed}")
    if eval_speakers:
        return lambda index, speaker: "test" if speaker in test else "eval" if speaker in held_out else "train"
    total = sum(counts.values())
    some = set(random.Random(seed).sample(range(total), min(eval_count, total)))
    return lambda index, speaker: "test" if speaker in test else "eval" if index in some else "train"


class Parts:
    """Writes clips into parts of about `hours` for each split."""

    def __init__(self, folder, hours):
        self.folder, self.hours, self.written, self.files, self.counts = folder, hours, {}, {}, collections.Counter()

    def add(self, split, line, seconds):
        name = f"{split}-{max(0, self.counts[split] - 1):05d}"
        if split not in self.files or self.written[name] >= self.hours:
            if split in self.files:
                self.files[split].close()
            name = f"{split}-{self.counts[split]:05d}"
            self.counts[split] += 1
            self.files[split], self.written[name] = open(self.folder / f"{name}.jsonl", "w", encoding="utf-8"), 0.0
        self.files[split].write(line)
        self.written[name] += seconds / 3600

    def close(self):
        for file in self.files.values():
            file.close()
        return self.written


def collect(corpora, exclude, options, folder):
    """Writes all clips to folder/all.jsonl, problems to folder/problems.jsonl: clips of each speaker."""
    counts = collections.Counter()
    with (
        open(folder / "all.jsonl", "w", encoding="utf-8") as clips,
        open(folder / "problems.jsonl", "w", encoding="utf-8") as problems,
    ):
        for corpus in corpora:
            for clip in corpus_clips(corpus, **options):
                if isinstance(clip, Problem):
                    problems.write(clip.to_json() + "\n")
                elif clip.speaker not in exclude:
                    clips.write(clip.to_json() + "\n")
                    counts[clip.speaker] += 1
    return counts


def make_plan(
    out,
    corpora,
    exclude=(),
    eval_count=600,
    eval_speakers=(),
    test_speakers=(),
    shard_hours=2.0,
    seed=0,
    speeds=(1.0,),
    **options,
):
    """Writes OUT/plan; the options are those of `corpus_clips`. Raises ValueError where there is nothing to prepare."""
    if not all(0.5 <= speed <= 2 for speed in speeds):
        raise ValueError(f"--speeds {speeds}: expected 0.5 to 2, as 0.9 1 1.1; beyond, it is nobody's voice")
    folder = pathlib.Path(out) / "plan.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    counts = collect(corpora, set(exclude), options, folder)
    if not counts:
        raise ValueError(f"no clips in {list(map(str, corpora))}: {folder / 'problems.jsonl'} says what was found")
    split_of = dealer(counts, eval_speakers, test_speakers, eval_count, seed)
    parts = Parts(folder, shard_hours)
    with open(folder / "all.jsonl", encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            clip = Clip.from_json(line)
            split = split_of(index, clip.speaker)
            for played in map(clip.at_speed, speeds if split == "train" else [1.0]):
                parts.add(split, played.to_json() + "\n", played.seconds)
    (folder / "all.jsonl").unlink()
    hours = parts.close()
    if not any(name.startswith("train") for name in hours):
        raise ValueError(
            f"--eval {eval_count}: the corpus has {sum(counts.values())} clips, and none would be left to "
            "train on; give fewer"
        )
    return folder, hours


def load_or_make_plan(out, request, make, first):
    """Hours of each part. request: what was asked for, which has to be what an older plan was asked for.

    The first process makes the plan, the others wait for it.
    """
    path = pathlib.Path(out) / "plan" / "plan.json"
    if first and not path.is_file():
        folder, parts = make()
        (folder / "plan.json").write_text(json.dumps({"request": request, "parts": parts}, indent=1), encoding="utf-8")
        os.replace(folder, path.parent)
    if not path.is_file():
        print("waiting for the plan of the first process (RANK=0)", flush=True)
    while not path.is_file():
        time.sleep(0.2)
    plan = json.loads(path.read_text(encoding="utf-8"))
    if plan["request"] != json.loads(json.dumps(request)):
        changed = [key for key in request if plan["request"].get(key) != json.loads(json.dumps(request[key]))]
        raise ValueError(f"{out} was begun with another {', '.join(changed)}: finish that, or name another folder")
    return plan["parts"]


def read_part_of_plan(out, name):
    """The clips of one part."""
    with open(pathlib.Path(out) / "plan" / f"{name}.jsonl", encoding="utf-8") as lines:
        return [Clip.from_json(line) for line in lines]
