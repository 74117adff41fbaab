"""Distance of a set of pictures to drawn ones in the statistics of their colours and edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import sqrtm

Palette = Sequence[tuple[int, int, int]]  # the colours of a world, 0..255

OFF_PALETTE = 0.15  # a pixel further than this from every colour of the world has none of them
EDGE = 0.1  # a step between neighbours above this is an edge


@dataclass(frozen=True)
class ImageStatistics:
    """mean [f] and covariance [f f] of `statistics` over a set of pictures."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, images: Sequence[np.ndarray], palette: Palette) -> ImageStatistics:
        values = np.stack([statistics(image, palette) for image in images])
        return cls(values.mean(0), np.cov(values.T))


def statistics(image: np.ndarray, palette: Palette) -> np.ndarray:
    """Of a picture [h w 3], 0..1: mean and deviation of each channel, share of pixels with no colour of the world, mean
    step between neighbours, share of edges."""
    steps = np.concatenate([np.abs(np.diff(image, axis=axis)).max(-1).ravel() for axis in (0, 1)])
    distances = np.linalg.norm(image[..., None, :] - np.float32(palette) / 255, axis=-1).min(-1)
    strange, edges = (distances > OFF_PALETTE).mean(), (steps > EDGE).mean()
    return np.array([*image.mean((0, 1)), *image.std((0, 1)), strange, steps.mean(), edges])


def distance(found: ImageStatistics, reference: ImageStatistics) -> float:
    """Fréchet distance (Dowson and Landau 1982) in units of the reference's deviations:
    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))."""
    scale = np.sqrt(np.diag(reference.covariance))
    difference = (found.mean - reference.mean) / scale
    ours, theirs = (covariance / np.outer(scale, scale) for covariance in (found.covariance, reference.covariance))
    return float(difference @ difference + np.trace(ours + theirs - 2 * sqrtm(ours @ theirs).real))
