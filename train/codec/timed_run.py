"""A training loop with a time limit, a log, checkpoints to resume from, and recovery from NaN."""

import json
import math
import signal
import time
from pathlib import Path

import torch
from torch import Tensor

from smalle.saving_smalle import atomic_folder, atomic_write

from .recipe import StageOptions
from .stages import Stage


class TimedRun:
    """Trains a stage for its `minutes`, which include the time of earlier, resumed runs.

    Writes the codec to OUTPUT, state and log to OUTPUT.training.

    Args:
        origin: stage, data and codec of the run. A run resumes only from a checkpoint with the same values.
        seconds_per_step: seconds of audio per step, for the log.
    """

    def __init__(self, stage: Stage, options: StageOptions, origin: dict[str, str], seconds_per_step: float):
        self.stage, self.options, self.origin, self.seconds_per_step = stage, options, origin, seconds_per_step
        self.output = Path(options.output)
        self.folder = self.output.with_name(self.output.name + ".training")
        self.state = self.folder / "state.pt"
        self.step, self.spent, self.failures, self.stopped = 0, 0.0, 0, False

    def save_checkpoint(self) -> None:
        """Writes state and codec; logs the validation."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {"step": self.step, "spent": self.spent, "origin": self.origin, "stage": self.stage.state_dict()}
        with atomic_write(self.state) as path:
            torch.save(state, path)
        with atomic_folder(self.output) as folder:
            self.stage.save(folder)
        self._log("checkpoint", self.stage.validate())

    def resume(self) -> None:
        """Continues from the checkpoint, if there is one. Raises ValueError if it has another origin."""
        if not self.state.is_file():
            return
        state = torch.load(self.state, map_location="cpu", weights_only=True)
        for name, now in self.origin.items():
            if state["origin"][name] != now:
                raise ValueError(
                    f"{self.state} belongs to another run: {name} was {state['origin'][name]}, now {now}. "
                    "Start again with --fresh, or name another output."
                )
        self.stage.load_state_dict(state["stage"])
        self.step, self.spent = state["step"], state["spent"]
        print(f"resumed at step {self.step}, {self.spent / 60:.1f} minutes", flush=True)

    def run(self) -> None:
        """Trains. SIGINT and SIGTERM write a checkpoint and raise KeyboardInterrupt: what comes next needs the end."""
        handlers = {name: signal.signal(name, self._stop) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._train()
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
        self.save_checkpoint()
        if self.stopped:
            raise KeyboardInterrupt

    def _stop(self, *_):
        self.stopped = True

    def _train(self):
        options, limit = self.options, 60 * self.options.minutes
        logged = saved = before = time.monotonic()
        logged_step, totals = self.step, None
        while self.spent < limit and not self.stopped:
            values = self.stage.step(self.step, self.spent / limit)
            scalars = torch.stack([value.detach().float() for value in values.values()])
            totals = scalars if totals is None else totals + scalars
            now = time.monotonic()
            self.step, self.spent, before = self.step + 1, self.spent + now - before, now
            if now - logged < options.log_seconds and self.spent < limit:
                continue
            self._log_means(list(values), totals, self.step - logged_step, now - logged)
            if totals.isfinite().all():
                if now - saved >= options.checkpoint_seconds:
                    self.save_checkpoint()
                    saved = time.monotonic()
            else:
                self._recover()
            logged_step, totals = self.step, None
            before = logged = time.monotonic()  # does not count checkpoints

    def _recover(self):
        """Returns to the last checkpoint, at most three times. The time since then still counts."""
        self.failures += 1
        if self.failures > 3 or not self.state.is_file():
            raise ValueError(f"the loss is not finite at step {self.step}; lower the learning rate")
        print(f"the loss is not finite at step {self.step}: back to the last checkpoint", flush=True)
        spent = self.spent
        self.resume()
        self.spent = spent

    def _log_means(self, names: list[str], totals: Tensor, steps: int, seconds: float):
        means = dict(zip(names, (totals / steps).tolist(), strict=True))
        rate = steps / seconds
        self._log("train", {**means, "steps_per_second": rate, "audio_per_second": rate * self.seconds_per_step})

    def _log(self, kind: str, values: dict[str, float]):
        print(f"{kind} step {self.step} min {self.spent / 60:.2f}", *(f"{k} {v:.4g}" for k, v in values.items()))
        self.folder.mkdir(parents=True, exist_ok=True)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        row = {"kind": kind, "step": self.step, "minutes": self.spent / 60, **finite}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
