"""Classifies the frames of the reading voice of pairs into parts of phones.

Trains a network to recognize the phones of the readings, whose times are known. Aligns recordings with readings by it,
and clusters the frames of each phone of the readings by their envelopes.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalle.codec_smalle import FrameNetwork
from smalle.saving_smalle import atomic_write
from smalle.voices_smalle import CENTROID, VoiceConverter

from ..codec.quantizer import kmeans, nearest
from ..codec.recipe import StageOptions
from .pairs import Pair
from .phones import NUM_PHONES, SILENCE, align
from .stage import FRAMES, ConversionStage, centred, disguise, smooth_envelope, warp

RECORDED_SHARE = 0.75  # of the training samples
LOWEST = -8.0  # log probability of a phone
CLASSES = 2, 12  # fewest and most of a phone
SPLIT_FRAMES = 12_000  # most frames of a phone to cluster


class PhoneStage(ConversionStage):
    """Trains a network to recognize phones in warped readings, whose phone times are known.

    After a first alignment it also learns from the half of the recordings that were aligned best.
    """

    def __init__(
        self,
        converter: VoiceConverter,
        network: FrameNetwork,
        pairs: Sequence[Pair],
        aligned: Sequence["Aligned"],
        options: StageOptions,
    ):
        super().__init__(converter, nn.ModuleDict({"network": network}), options)
        self.network, self.pairs = network, pairs
        limit = np.median([row.fit for row in aligned]) if aligned else 0.0
        self.aligned = [row for row in aligned if row.fit >= limit]

    def sample(self, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Frames (150, 2 * num_mels) and phones (150,), -1 where there is none."""
        if self.aligned and random.random() < RECORDED_SHARE:
            row = self.aligned[int(random.integers(len(self.aligned)))]
            mel, phones = row.pair.mel, row.pair.phones[torch.from_numpy(row.recorded)]
        else:
            pair = self.pairs[int(random.integers(len(self.pairs)))]
            mel, phones = pair.source, pair.spoken
        start = int(random.integers(max(1, len(phones) - FRAMES + 1)))
        frames = warp(centred(mel)[2 * start : 2 * (start + FRAMES)], math.exp(random.normal(0, 0.1)))
        frames, phones = disguise(frames, random), phones[start : start + FRAMES]
        missing = FRAMES - len(phones)
        return F.pad(frames.reshape(len(phones), -1), (0, 0, 0, missing)), F.pad(phones, (0, missing), value=-1)

    def step(self, step: int, progress: float) -> dict[str, Tensor]:
        random = self.begin(step)
        samples = zip(*[self.sample(random) for _ in range(self.options.batch_size)])
        frames, phones = (torch.stack(values) for values in samples)
        with torch.autocast("cpu", torch.bfloat16):
            output = self.network.apply_blocks(frames.transpose(1, 2))[0]
        loss = F.cross_entropy(output.float(), phones, ignore_index=-1, label_smoothing=0.05)
        self.update(loss, step, progress)
        return {"phones": loss}

    def save(self, folder: Path) -> None:
        """Writes the network with the averaged weights."""
        with self.average.applied(), atomic_write(folder / "phones.pt") as path:
            torch.save(self.network.state_dict(), path)


def phone_network(converter: VoiceConverter) -> FrameNetwork:
    """A network like the converter's encoder, for phones."""
    config, size = converter.config, converter.codec_config.feature_size
    sizes = config.content_size, config.content_intermediate_size, config.content_num_layers
    return FrameNetwork(size, NUM_PHONES, *sizes)


class Aligned(NamedTuple):
    """A pair with its alignment.

    Holds the index in the phone sequence for each codec frame of the recording (T / 2,) and of the reading (S / 2,),
    and the mean log probability of the recording's frames.
    """

    pair: Pair
    recorded: np.ndarray
    read: np.ndarray
    fit: float


@torch.no_grad()
def align_pair(network: FrameNetwork, pair: Pair) -> Aligned:
    """Aligns the phones of a pair with its recording and its reading."""
    paths, fits = [], []
    for frames in (pair.mel, pair.source):
        output = network.apply_blocks(centred(frames).reshape(1, -1, 2 * frames.shape[1]).transpose(1, 2))[0]
        logs = output[0].log_softmax(0).clamp(min=LOWEST).T.numpy()
        path, fit = align(logs, pair.phones.numpy())
        paths.append(path)
        fits.append(fit)
    return Aligned(pair, paths[0], paths[1], fits[0])


class Classes(NamedTuple):
    """Classes of the frames of the reading voice.

    Holds the phone (K,) and the mean standardized envelope (K, 48) of each class, the moments (2, 48) that standardize
    envelopes, and the class of each frame of each reading (S / 2,).
    """

    phones: Tensor
    centroids: Tensor
    moments: Tensor
    labels: list[Tensor]


def split_phone(features: Tensor, count: int) -> Tensor:
    """Centres (count, C) of the envelopes (N, C) of a phone, by k-means over at most SPLIT_FRAMES of them."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(features), generator=generator)[:SPLIT_FRAMES]
    return kmeans(features[chosen], count, 12, generator)


def fit_classes(aligned: Sequence[Aligned], count: int) -> Classes:
    """Clusters the frames of each phone of the readings by their envelopes and those of their neighbours.

    Makes about `count` classes in all, more for frequent phones. Silence is one class.
    """
    envelopes = [smooth_envelope(row.pair.source) for row in aligned]
    joined = torch.cat(envelopes)
    moments = torch.stack((joined.mean(0), joined.std(0) + 1e-3))
    weights = torch.ones(CENTROID)
    weights[[0, CENTROID // 2]] = 0.6  # loudness
    standard = [(x - moments[0]) / moments[1] for x in envelopes]
    padded = [F.pad((x * weights).T[None], (1, 1), mode="replicate")[0].T for x in standard]
    features = torch.cat([torch.cat((0.4 * x[:-2], x[1:-1], 0.4 * x[2:]), 1) for x in padded])
    phones = torch.cat([row.pair.phones[torch.from_numpy(row.read)] for row in aligned])
    shares = phones.bincount(minlength=NUM_PHONES).double().sqrt()
    shares[SILENCE] = 0
    counts = (shares / shares.sum() * count).round().long().clamp(*CLASSES)
    counts[SILENCE] = 1
    labels, first = torch.zeros(len(phones), dtype=torch.long), 0
    for phone in range(NUM_PHONES):
        chosen = (phones == phone).nonzero()[:, 0]
        if len(chosen):
            centres = split_phone(features[chosen], int(counts[phone]))
            labels[chosen] = first + nearest(features[chosen], centres)
        first += int(counts[phone])
    joined, sizes = torch.cat(standard), labels.bincount(minlength=first).clamp(min=1)
    centroids = torch.zeros(first, CENTROID).index_add_(0, labels, joined) / sizes[:, None]
    owners = torch.arange(NUM_PHONES).repeat_interleave(counts)
    return Classes(owners, centroids, moments, list(labels.split([len(x) for x in envelopes])))
