"""The score "one place each": against a loop over positions, and what it says of maps that were drawn by hand."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ebca_core import claims, one_place_score, peaks
from support import toy
from support.one_place import score_by_loops

GRIDS = [(8, 8), (16, 16), (6, 11), (12, 5)]


def blobs(*places, size=8, width=1.0):
    """A map [size, size] with a round blob at each place (row, column)."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return 1e-3 + sum(torch.exp(-((rows - r) ** 2 + (columns - c) ** 2) / (2 * width**2)) for r, c in places)


def score(*objects):
    return float(one_place_score(torch.stack(objects)[None]))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_score_equals_the_loop_over_positions(grid, count):
    objects = toy.noise(4, count, *grid).double().mul(3).softmax(dim=1)
    expected = [score_by_loops(one) for one in objects.numpy()]
    np.testing.assert_allclose(one_place_score(objects).numpy(), expected, rtol=1e-12)


def test_score_of_an_image_does_not_depend_on_its_neighbours():
    objects = toy.noise(5, 3, 8, 8).exp()
    alone = torch.cat([one_place_score(one[None]) for one in objects])
    assert torch.equal(one_place_score(objects), alone)


def test_one_place_each_is_better_than_an_object_drawn_twice():
    circle, square = blobs((1, 1)), blobs((6, 6))
    assert score(circle, square) > 0.8
    assert score(blobs((1, 1), (1, 6)), square) < score(circle, square) - 0.8


def test_overlap_is_no_second_place():
    """Words leak: each is also read a little where the other object is, which the claims leave out."""
    circle, square = blobs((1, 1)), blobs((6, 6))
    leaking = score(circle + 0.4 * square, square + 0.4 * circle)
    assert leaking > score(circle, square) - 0.1
    assert leaking > score_by_loops(torch.stack([circle + 0.4 * square]).numpy()) + 0.3  # without the other's claim


def test_brightness_does_not_matter():
    objects = [blobs((1, 1)), blobs((6, 6), (6, 2))]
    assert score(*objects) == pytest.approx(score(*(1e-4 * one for one in objects)), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_close(dtype):
    objects = toy.noise(3, 3, 8, 8).softmax(dim=1)
    torch.testing.assert_close(one_place_score(objects.to(dtype)), one_place_score(objects), atol=2e-2, rtol=0)


def test_maps_without_attention_have_a_finite_score():
    assert score(torch.zeros(8, 8), torch.zeros(8, 8)) == 0.0
    assert math.isfinite(score(torch.zeros(8, 8), blobs((1, 1))))


def test_peaks_are_where_the_claims_are_highest():
    objects = torch.stack([blobs((1, 2)), blobs((6, 5))])[None]
    assert peaks(claims(objects)).tolist() == [[1 * 8 + 2, 6 * 8 + 5]]
