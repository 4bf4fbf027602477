"""Exponential moving average of a model's weights, as a callback of the Trainer."""

import contextlib
import os

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback


class EMACallback(TrainerCallback):
    """Keeps the average while training; saved with each checkpoint and put into the model at the end.

    The decay starts low and rises to `decay`, so that the first steps are forgotten.
    """

    FILE = "ema.safetensors"

    def __init__(self, model, decay):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.average = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)
        if state.global_step and os.path.isfile(path):
            saved = load_file(path)
            self.average = {name: saved[name].to(p.device) for name, p in self.average.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        current = [self.parameters[name].detach().float() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def on_save(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        save_file(self.average, os.path.join(folder, f"{self.FILE}.partial"))
        os.replace(os.path.join(folder, f"{self.FILE}.partial"), os.path.join(folder, self.FILE))

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self):
        """The model speaks with the average meanwhile; with its own weights where nothing was averaged yet."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()} if self.average else {}
        for name in own:
            self.parameters[name].copy_(self.average[name])
        try:
            yield
        finally:
            for name, value in own.items():
                self.parameters[name].copy_(value)

    @torch.no_grad()
    def on_train_end(self, args, state, control, **kwargs):
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])
        self.average = None
