"""A recurrent state with the last steps beside it: what an exported step reads in place of a state.

Next to reading weights, a step spends most on reading and writing its states. So it only reads them; what the last
steps would have written stands beside them, and is added after `RECENT` steps.
"""

from typing import NamedTuple

import torch

RECENT = 16  # steps that may stand beside a state


class Recent(NamedTuple):
    """state (B, H, K, V); decay of it since, (B, H, 1, K); keys and values of the steps since, (B, H, RECENT, K or V),
    the newest last, keys decayed like what they wrote, zeros where there was no step yet."""

    state: torch.FloatTensor
    decay: torch.FloatTensor
    keys: torch.FloatTensor
    values: torch.FloatTensor

    @classmethod
    def begin(cls, state):
        """No steps beside a state."""
        zeros = (state.new_zeros(*state.shape[:2], RECENT, size) for size in state.shape[2:])
        return cls(state, torch.ones_like(state[:, :, None, :, 0]), *zeros)

    def step(self, q, k, v, log_decay):
        """As `recurrence_smalle.step`, one decay for each channel: output (B, 1, H, V) and what stands here then.

        Nothing is lost while there is `room`.
        """
        q, k, v, log_decay = (x.transpose(1, 2) for x in (q, k, v, log_decay))
        now = log_decay.exp()
        decay = self.decay * now
        keys, values = torch.cat((self.keys[:, :, 1:] * now, k), 2), torch.cat((self.values[:, :, 1:], v), 2)
        out = (q * decay) @ self.state + (q @ keys.transpose(-1, -2)) @ values
        return out.transpose(1, 2), Recent(self.state, decay, keys, values)

    def fold(self, own=False):
        """The state (B, H, K, V) after all steps; own: nobody else holds it, so that it may be written over."""
        written = self.keys.flatten(0, 1).transpose(-1, -2), self.values.flatten(0, 1)
        state = torch.mul(self.state, self.decay.transpose(-1, -2), out=self.state if own else None)
        return state.flatten(0, 1).baddbmm_(*written).view_as(state)

    def room(self):
        """Steps that may follow before `fold`: a key that is zero wrote nothing and may be dropped."""
        empty = (self.keys == 0).transpose(0, 2).flatten(1).all(1)
        return int(empty.long().cumprod(0).sum())
