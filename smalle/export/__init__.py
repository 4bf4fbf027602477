"""Faster forms of a checkpoint, beside its weights."""

from .checkpoint import STEPS, export, fastest

__all__ = ["STEPS", "export", "fastest"]
