"""Exponential moving average of weights, standalone and as a callback of the Trainer."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from smalle.saving_smalle import atomic_write


class MovingAverage:
    """Maintains an average of parameters in single precision. The decay rises to `decay`, to forget the first steps.

    Args:
        parameters: The parameters by name; `update` reads their current values.
        decay: The final decay, 0 to 1.
    """

    def __init__(self, parameters: dict[str, Tensor], decay: float):
        self.parameters, self.decay = parameters, decay
        self.average = {name: parameter.detach().float().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the current parameters, after `step` steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [self.parameters[name].detach().float() for name in self.average]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    def load(self, saved: dict[str, Tensor]) -> None:
        """Restores a saved average."""
        self.average = {name: saved[name].to(value.device) for name, value in self.average.items()}

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Copies the average into the parameters."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])

    @contextlib.contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Inside the block, the parameters have the values of the average; after it, their own values again."""
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.copy_to_parameters()
        try:
            yield
        finally:
            for name, value in own.items():
                self.parameters[name].copy_(value)


class EMACallback(TrainerCallback):
    """Averages the trained weights, saves the average with each checkpoint, and puts it into the model at the end."""

    FILE = "ema.safetensors"

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average: MovingAverage | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.average = MovingAverage(self.parameters, self.decay)
        path = Path(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)
        if state.global_step and path.is_file():
            self.average.load(load_file(path))

    def on_step_end(self, args, state, control, **kwargs):
        self.average.update(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir, f"checkpoint-{state.global_step}", self.FILE)
            with atomic_write(path) as temporary:
                save_file(self.average.average, temporary)

    def applied(self) -> contextlib.AbstractContextManager:
        """As `MovingAverage.applied`; has no effect before and after training."""
        return self.average.applied() if self.average else contextlib.nullcontext()

    def on_train_end(self, args, state, control, **kwargs):
        self.average.copy_to_parameters()
        self.average = None
