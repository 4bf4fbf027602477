"""Training with a time limit: a callback that stops the run, and its learning-rate schedule."""

import json
import math
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback

from smalle.saving_smalle import write_json


class TimeBudget(TrainerCallback):
    """Saves and stops after `minutes` of training, and computes the learning rate from the elapsed time.

    As the factor of a LambdaLR: linear warm-up over steps, times a cosine over time that falls to `floor`. The elapsed
    time is saved with each checkpoint, so that a resumed run continues from it.

    Attributes:
        progress: Elapsed fraction of the time, 0 to 1.
    """

    FILE = "clock.json"

    def __init__(self, minutes: float, warmup_steps: float, floor: float = 0.03):
        self.minutes, self.warmup_steps, self.floor = minutes, warmup_steps, floor
        self.start, self.progress = time.time(), 0.0

    def __call__(self, step: int) -> float:
        cosine = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * self.progress))
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * cosine

    def update(self) -> None:
        """Updates `progress`. All processes use that of the first one, so that they stop at the same step."""
        progress = torch.tensor(min(1.0, (time.time() - self.start) / (60 * self.minutes)), dtype=torch.float64)
        if PartialState().num_processes > 1:
            progress = broadcast(progress.to(PartialState().device))
        self.progress = float(progress)

    def resume(self, checkpoint: Path) -> None:
        """Restores the elapsed time from the folder of a checkpoint, if it is there."""
        self.start = time.time()
        if (checkpoint / self.FILE).is_file():
            self.start -= 60 * json.loads((checkpoint / self.FILE).read_text(encoding="utf-8"))["minutes"]
        self.update()

    def on_train_begin(self, args, state, control, **kwargs):
        self.resume(Path(args.output_dir, f"checkpoint-{state.global_step}"))

    def on_step_end(self, args, state, control, **kwargs):
        self.update()
        if self.progress >= 1:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)
            write_json(path, {"minutes": (time.time() - self.start) / 60})
