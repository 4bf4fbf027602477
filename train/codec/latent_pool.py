"""Latents and codes of recordings, held in memory, and random pieces of them."""

import torch
from tqdm import tqdm

from .audio_pool import draw_places


class LatentPool:
    """Latents before quantization (N, D), float16, and codes (N, Q) of an AudioPool, each file at a gain of its own."""

    def __init__(self, codec, pool, frames, gain_db=(0.0, 0.0)):
        """frames: length of a piece."""
        ends = [*pool.offsets[1:].tolist(), len(pool.samples)]
        latents, codes = [], []
        for start, end in zip(pool.offsets.tolist(), tqdm(ends, desc="latents", unit="file", mininterval=2)):
            end -= (end - start) % codec.hop_length
            gain = torch.empty((), device=pool.samples.device).uniform_(*gain_db, generator=pool.generator)
            with torch.no_grad():
                waveform = pool.samples[None, start:end].float() * (10 ** (gain / 20) / 32768)
                found = codec.encoder(codec.analyse(waveform))
                latents.append(found[0].T.half())
                codes.append(codec.quantizer.encode(found)[0].T.to(torch.int16))
        device, lengths = latents[0].device, torch.tensor([len(part) for part in latents])
        if lengths.max() < frames:
            raise ValueError(f"no file has {frames} frames, the longest has {lengths.max()}; lower refiner.frames")
        self.latents, self.codes, self.generator = torch.cat(latents), torch.cat(codes), pool.generator
        self.offsets = (lengths.cumsum(0) - lengths).to(device)
        self.choices = (lengths - frames + 1).clamp(min=0).cumsum(0).to(device)
        self.steps = torch.arange(frames, device=device)

    def pieces(self, count):
        """Latents (count, D, frames), float32, and codes (count, Q, frames), int64."""
        file, start = draw_places(self.choices, count, self.generator)
        rows = (self.offsets[file] + start)[:, None] + self.steps
        return self.latents[rows].float().transpose(1, 2), self.codes[rows].long().transpose(1, 2)
