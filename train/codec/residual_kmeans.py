"""Where a codec starts: principal components of its features, and residual k-means for its codebooks."""

import torch


def principal_components(features, size):
    """Mean (C,), basis (size, C) and standard deviations (size,) of features (N, C), largest first."""
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    values, vectors = torch.linalg.eigh((centred.T @ centred / len(features)).cpu())
    order = values.argsort(descending=True)[:size]
    basis, deviations = vectors[:, order].T, values[order].clamp(min=0).sqrt()
    return mean.float(), basis.float().to(features.device), deviations.float().to(features.device)


def nearest(points, centres, rows=32768):
    """Index (N,) of the centre (K, D) nearest to each point (N, D), in slices that fit in memory."""
    bias = (centres**2).sum(1)
    return torch.cat([torch.addmm(bias, part, centres.T, alpha=-2).argmin(1) for part in points.split(rows)])


def kmeans(points, count, iterations, generator):
    """Centres (count, D) of points (N, D); a centre that loses all its points moves to a random one."""

    def some(number):
        return points[torch.randint(len(points), (number,), generator=generator, device=points.device)]

    centres = some(count)
    for _ in range(iterations):
        index = nearest(points, centres)
        number = torch.bincount(index, minlength=count).to(points.dtype)[:, None]
        sums = torch.zeros_like(centres).index_add_(0, index, points)
        centres = torch.where(number > 0, sums / number.clamp(min=1), some(count))
    return centres


def residual_kmeans(points, codebooks, count, iterations=20, seed=0):
    """Codebooks (Q, count, D), each the k-means of what those before it left; and the rms of the rest after each."""
    generator = torch.Generator(points.device).manual_seed(seed)
    residual, books, rest = points.clone(), [], []
    for _ in range(codebooks):
        book = kmeans(residual, count, iterations, generator)
        residual = residual - book[nearest(residual, book)]
        books.append(book)
        rest.append(residual.square().sum(1).mean().sqrt().item())
    return torch.stack(books), rest
