"""Training by the clock, as a callback and as the learning-rate schedule of the Trainer."""

import json
import math
import os
import time

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """Saves and stops after so many minutes of training, and paces the learning rate by the time spent.

    As the factor of a LambdaLR: linear warm-up over steps, then a cosine over the time down to `floor`. The time spent
    is saved with each checkpoint, so that a resumed run goes on where it was.
    """

    FILE = "clock.json"

    def __init__(self, minutes, warmup_steps, floor=0.03):
        self.minutes, self.warmup_steps, self.floor = minutes, warmup_steps, floor
        self.start, self.spent = time.time(), 0.0  # the share of the time that has passed

    def __call__(self, step):
        cosine = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * self.spent))
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * cosine

    def _look(self):
        """Reads the clock: of several processes all go by the first one's, or their steps would differ."""
        spent = torch.tensor(min(1.0, (time.time() - self.start) / (60 * self.minutes)), dtype=torch.float64)
        self.spent = float(broadcast(spent.to(PartialState().device)) if PartialState().num_processes > 1 else spent)

    def _path(self, args, state):
        return os.path.join(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.time()
        if state.global_step and os.path.isfile(self._path(args, state)):
            with open(self._path(args, state), encoding="utf-8") as file:
                self.start -= 60 * json.load(file)["minutes"]
        self._look()

    def on_step_end(self, args, state, control, **kwargs):
        self._look()
        if self.spent >= 1:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        with open(f"{self._path(args, state)}.partial", "w", encoding="utf-8") as file:
            json.dump({"minutes": (time.time() - self.start) / 60}, file)
        os.replace(f"{self._path(args, state)}.partial", self._path(args, state))
