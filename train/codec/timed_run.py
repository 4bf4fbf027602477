"""A training loop that ends by the clock: log lines, checkpoints to resume from, and a way back from NaN."""

import json
import math
import os
import pathlib
import signal
import time

import torch


def replace_folder(save, folder):
    """Calls save(TEMPORARY) and moves its files into the folder, so that no reader meets a half-written one."""
    folder = pathlib.Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    save(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    for path in temporary.iterdir():
        os.replace(path, folder / path.name)
    temporary.rmdir()


class TimedRun:
    """Runs `stage` until `minutes` of training have passed, over all resumptions together.

    The stage has `step(step, fraction) -> {name: scalar tensor}`, `validate() -> {name: float}`, `state_dict()`,
    `load_state_dict(state)` and `save(folder)`; `fraction` is the share of the time that is spent. State and log lie
    in OUTPUT.training, the codec in OUTPUT. made_of: {name: text} of what a run is of; one of other things is not
    taken up.
    """

    def __init__(self, stage, output, minutes, seconds_per_step, log_seconds=2, checkpoint_seconds=60, made_of=None):
        self.stage, self.output, self.limit, self.made_of = stage, pathlib.Path(output), 60 * minutes, made_of
        self.seconds_per_step, self.log_seconds, self.checkpoint_seconds = (
            seconds_per_step,
            log_seconds,
            checkpoint_seconds,
        )
        self.folder = self.output.with_name(self.output.name + ".training")
        self.state = self.folder / "state.pt"
        self.step, self.spent, self.failures, self.stopped = 0, 0.0, 0, False

    def checkpoint(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.state.with_suffix(".tmp")
        state = {"step": self.step, "spent": self.spent, "made_of": self.made_of, "stage": self.stage.state_dict()}
        torch.save(state, temporary)
        os.replace(temporary, self.state)
        replace_folder(self.stage.save, self.output)
        self._write({"step": self.step, "minutes": self.spent / 60, **self.stage.validate()}, "checkpoint")

    def resume(self):
        """Takes up the last checkpoint, if there is one. ValueError where it was made of something else."""
        if self.state.is_file():
            state = torch.load(self.state, map_location="cpu", weights_only=True)
            before, now = state.get("made_of") or {}, self.made_of or {}
            for name in before.keys() & now.keys():
                if before[name] != now[name]:
                    raise ValueError(
                        f"{self.state} is of another run: {name} was {before[name]}, now {now[name]}. "
                        "--fresh begins anew, another output keeps both."
                    )
            self.stage.load_state_dict(state["stage"])
            self.step, self.spent = state["step"], state["spent"]
            print(f"resumed at step {self.step}, {self.spent / 60:.1f} minutes", flush=True)

    def run(self):
        """The loop. SIGINT and SIGTERM end it early, with a checkpoint."""
        handlers = {name: signal.signal(name, self._stop) for name in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._loop()
        finally:
            for name, handler in handlers.items():
                signal.signal(name, handler)
        self.checkpoint()

    def _stop(self, *_):
        self.stopped = True

    def _loop(self):
        logged = saved = last = time.monotonic()
        logged_step, totals = self.step, None
        while self.spent < self.limit and not self.stopped:
            terms = self.stage.step(self.step, self.spent / self.limit)
            values = torch.stack([value.detach().float() for value in terms.values()])
            totals = values if totals is None else totals + values
            self.step += 1
            now = time.monotonic()
            self.spent, last = self.spent + now - last, now
            if now - logged < self.log_seconds and self.spent < self.limit:
                continue
            steps = self.step - logged_step
            means = (totals / steps).tolist()
            if not all(map(math.isfinite, means)):
                self._recover()
            elif now - saved >= self.checkpoint_seconds:
                self.checkpoint()
                saved = time.monotonic()
            rate = steps / (time.monotonic() - logged)
            row = {"step": self.step, "minutes": self.spent / 60, **dict(zip(terms, means, strict=True))}
            self._write({**row, "steps_per_second": rate, "audio_per_second": rate * self.seconds_per_step})
            last = logged = time.monotonic()
            logged_step, totals = self.step, None

    def _recover(self):
        self.failures += 1
        if self.failures > 3 or not self.state.is_file():
            raise ValueError(f"the loss is not finite at step {self.step}; lower the learning rate")
        print(f"the loss is not finite at step {self.step}: back to the last checkpoint", flush=True)
        spent = self.spent
        self.resume()
        self.spent = spent

    def _write(self, row, head="train"):
        values = " ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "minutes"))
        print(f"{head} step {row['step']} min {row['minutes']:.2f} {values}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": head, **row}) + "\n")
