"""Fits the parts of a codec that are not trained by gradients: principal components and codebooks."""

import torch
from torch import Tensor

from smalle.codec_smalle import BandExtension, SmallECodec

from .data import AudioPool


def principal_components(features: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Principal components (size, C) of centred features (N, C), largest first, and their deviations (size,)."""
    double = features.double()
    values, vectors = torch.linalg.eigh((double.T @ double / len(double)).cpu())
    order = values.argsort(descending=True)[:size]
    basis, deviations = vectors[:, order].T, values[order].clamp(min=0).sqrt()
    return basis.float().to(features.device), deviations.float().to(features.device)


def nearest(points: Tensor, centres: Tensor, rows: int = 32768) -> Tensor:
    """Index (N,) of the centre (K, D) nearest to each point (N, D), in slices that fit in memory."""
    bias = (centres**2).sum(1)
    return torch.cat([torch.addmm(bias, part, centres.T, alpha=-2).argmin(1) for part in points.split(rows)])


def kmeans(points: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Centres (count, D) of points (N, D). A centre without points moves to a random point."""

    def random_points():
        return points[torch.randint(len(points), (count,), generator=generator, device=points.device)]

    centres = random_points()
    for _ in range(iterations):
        index = nearest(points, centres)
        sizes = torch.bincount(index, minlength=count).to(points.dtype)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, index, points)
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), random_points())
    return centres


def residual_kmeans(
    points: Tensor, num_codebooks: int, codebook_size: int, iterations: int = 20, seed: int = 0
) -> tuple[Tensor, list[float]]:
    """Codebooks (Q, K, D), each by k-means of the residual of those before it, and the rms error after each."""
    generator = torch.Generator(points.device).manual_seed(seed)
    residual, codebooks, errors = points.clone(), [], []
    for _ in range(num_codebooks):
        codebook = kmeans(residual, codebook_size, iterations, generator)
        residual = residual - codebook[nearest(residual, codebook)]
        codebooks.append(codebook)
        errors.append(residual.square().sum(1).mean().sqrt().item())
    return torch.stack(codebooks), errors


@torch.no_grad()
def fit_band_extension(codec: SmallECodec, extension: BandExtension, pool: AudioPool, segments: int) -> None:
    """Fits a band extension to the full-band segments among random ones.

    Raises ValueError if there is no full-band segment.
    """
    batches = [pool.draw(min(256, segments - start)) for start in range(0, segments, 256)]
    full_band = torch.cat([batch.waveform[batch.bands == codec.config.num_mels] for batch in batches])
    if not len(full_band):
        raise ValueError(
            f"no recording reaches {codec.sampling_rate // 2} Hz; add full-band recordings, or set "
            "codec.band_extension to false"
        )
    mel = torch.cat([codec.analysis.mel(waveform) for waveform in full_band.split(256)])
    extension.fit(mel.clamp(min=codec.config.mel_floor).log().flatten(0, 1))


@torch.no_grad()
def fit_codec(codec: SmallECodec, pool: AudioPool, segments: int, iterations: int) -> None:
    """Fits the analysis and the codebooks of a codec to random segments, and prints their log-mel errors."""
    analysis = codec.analysis
    if analysis.extension is not None:
        fit_band_extension(codec, analysis.extension, pool, segments)
    batches = [pool.draw(min(256, segments - i)) for i in range(0, segments, 256)]
    features = torch.cat([analysis.features(analysis.mel(batch.waveform), batch.bands) for batch in batches])
    features = features.flatten(0, 1)
    mean = features.mean(0)
    scale = (features - mean).square().mean().sqrt()
    features = (features - mean) / scale
    basis, deviations = principal_components(features, codec.config.latent_size)
    latent_scale = deviations.square().mean().sqrt()
    codebooks, errors = residual_kmeans(
        features @ (basis.T / latent_scale), codec.num_codebooks, codec.codebook_size, iterations
    )
    analysis.mean.copy_(mean)
    analysis.scale.fill_(scale)
    analysis.projection.copy_(basis / latent_scale)
    codec.quantizer.codebooks.copy_(codebooks)
    dropped = (features.square().sum(1).mean() - deviations.square().sum()).clamp(min=0)
    errors = [(((error * latent_scale) ** 2 + dropped) / len(mean)).sqrt() * scale for error in errors]
    print(
        f"{len(features)} frames; log-mel values in nepers: deviation {scale:.3f}, rms error of the projection "
        f"{(dropped / len(mean)).sqrt() * scale:.3f}, after each codebook "
        + " ".join(f"{error:.3f}" for error in errors),
        flush=True,
    )
