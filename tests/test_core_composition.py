"""Composition, its smallest denominator, masks and windows: against loops and brute force."""
from __future__ import annotations

import math
import random

import pytest
import torch

from ebca_core import (
    Window,
    attention_over_both,
    composition_weight_sum,
    mask_on_grid,
    mix_contexts,
    smallest_denominator,
    within_norm,
)
from support import oracle
from support.sampling import relative_error

TENTHS = [i / 10 for i in range(11)]
NONE = [None, None]


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the mixture -----------------------------------------------------------------------------------------------------


def mixed(main, edits, weights):
    """(out_main + sum w_i out_i) / (1 + sum w_i), image token by image token; weights [edit][b][n]."""
    out = torch.empty_like(main)
    for b, n in [(b, n) for b in range(main.shape[0]) for n in range(main.shape[1])]:
        own = [float(weight[b][n]) for weight in weights]
        out[b, n] = (main[b, n] + sum(w * edit[b, n] for w, edit in zip(own, edits, strict=True))) / (1 + sum(own))
    return out


@pytest.mark.parametrize("signed", [(0.7,), (-0.4,), (0.75, -0.65), (1.3, 1.3, -2.0), (0.5, 0.0)])
@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "masks"])
def test_mixture_is_the_weighted_mean(signed, masked):
    main, *edits = normal(len(signed) + 1, 2, 9, 8, seed=1)
    masks = normal(len(signed), 2, 9, 1, seed=2).sigmoid() if masked else torch.ones(len(signed), 2, 9, 1).double()
    weights = [weight * mask for weight, mask in zip(signed, masks, strict=True)]

    pull = mix_contexts(main, edits, weights if masked else signed)

    assert relative_error(main + pull, mixed(main, edits, weights)) < 1e-12


def test_number_and_mask_weights_mix():
    main, first, second = normal(3, 2, 9, 8, seed=3)
    mask = normal(1, 9, 1, seed=4).sigmoid()
    weights = [torch.full((2, 9, 1), 0.8).double(), (-0.3 * mask).expand(2, -1, -1)]
    pull = mix_contexts(main, [first, second], [0.8, -0.3 * mask])
    assert relative_error(main + pull, mixed(main, [first, second], weights)) < 1e-7  # 0.8 above is float32


def test_weights_of_zero_leave_exactly_nothing():
    main, edit = normal(2, 1, 4, 8, seed=5)
    assert torch.equal(mix_contexts(main, [edit], [0.0]), torch.zeros_like(main))
    half = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(1, 4, 1)
    assert mix_contexts(main, [edit], [0.7 * half])[:, 1::2].abs().max() == 0


@pytest.mark.parametrize("limit", [1.0, 1.5, 2.5])
def test_norm_of_each_token_stays_within_the_limit(limit):
    main, far = normal(2, 2, 40, 8, seed=6)
    far = far * normal(2, 40, 1, seed=7).exp()  # some within the limit, some beyond

    kept = within_norm(far, main, limit)

    expected = torch.stack([oracle.within(*rows, limit) for rows in zip(far, main, strict=True)])
    assert relative_error(kept, expected) < 1e-12
    is_within = far.abs().sum(-1) <= limit * main.abs().sum(-1)
    assert 0 < is_within.float().mean() < 1
    assert torch.equal(kept[is_within], far[is_within])
    assert torch.equal(within_norm(main, main, limit), main)


def test_limit_of_the_norm_is_finite_where_the_main_output_is_zero():
    """And in half precision, whose sums of magnitudes leave its range."""
    zero, far = torch.zeros(1, 3, 8), normal(1, 3, 8, seed=8).float()
    assert torch.equal(within_norm(far, zero, 2.0), zero)
    assert torch.equal(within_norm(zero, zero, 2.0), zero)
    large = torch.full((1, 2, 4096), 60.0, dtype=torch.float16)
    assert torch.equal(within_norm(large, large / 2, 1.5), large * 0.75)


def test_edit_that_equals_the_main_output_changes_nothing():
    main = normal(1, 4, 8, seed=6)
    assert mix_contexts(main, [main, main], [0.7, -0.2]).abs().max() < 1e-15


def test_weights_sum():
    mask = torch.tensor([0.0, 1.0]).view(1, 2, 1)
    assert composition_weight_sum([0.5, -0.25]) == 0.25
    assert composition_weight_sum([0.5, -1 * mask]).flatten().tolist() == [0.5, -0.5]


# --- two groups of keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 30.0, 2000.0], ids=["even", "peaked", "beyond the range of exp"])
@pytest.mark.parametrize("keys", [(9, 9), (40, 1), (1, 40)], ids=str)
def test_attention_over_both_is_that_over_all_keys(keys, size):
    queries = size * normal(2, 3, 7, 8, seed=9)
    k, v = normal(2, 2, 3, sum(keys), 8, seed=10)
    scores = queries @ k.mT
    alone = [(part.softmax(-1) @ values, part.logsumexp(-1))
             for part, values in zip(scores.split(keys, -1), v.split(keys, -2), strict=True)]  # fmt: skip
    (first, second), sums = zip(*alone, strict=True)
    assert relative_error(attention_over_both(first, second, *sums), scores.softmax(-1) @ v) < 1e-12


# --- the smallest denominator ----------------------------------------------------------------------------------------


def brute_force(weights, windows, masks):
    """The least 1 + sum w_i m_i over the middles of all tenths of the run, and over all pixels."""
    return min(
        float(sum(
            (weight * (torch.ones(1) if mask is None else mask)
             for weight, window, mask in zip(weights, windows, masks, strict=True)
             if window.start_percent < tenth + 0.05 < window.end_percent),
            start=torch.ones(1),
        ).min())
        for tenth in TENTHS[:-1]
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(40))
def test_smallest_denominator_is_found(seed):
    choose = random.Random(seed)
    count = choose.randint(1, 4)
    weights = [choose.uniform(-1, 1) for _ in range(count)]
    windows = [Window(*sorted(choose.sample(TENTHS, 2))) for _ in range(count)]
    masks = [choose.choice([None, normal(2, 3, 4, seed=100 * seed + i).sigmoid()]) for i in range(count)]
    found = smallest_denominator(weights, windows, masks, [None] * len(weights))
    # Above 1 it makes no difference whether moments count in which no edit is on.
    assert min(found, 1.0) == pytest.approx(min(brute_force(weights, windows, masks), 1.0), abs=1e-6)


def test_denominator_counts_what_is_left_when_an_addition_ends():
    weights, windows = [1.0, -1.5], [Window(0.0, 0.5), Window(0.0, 1.0)]
    assert smallest_denominator(weights, windows, NONE, NONE) == pytest.approx(-0.5)


def test_windows_that_do_not_meet_do_not_add_up():
    assert smallest_denominator([-0.6, -0.6], [Window(0, 0.5), Window(0.5, 1)], NONE, NONE) == pytest.approx(0.4)


def test_masks_that_do_not_meet_do_not_add_up():
    left = torch.tensor([[[1.0, 0.0]]])
    assert smallest_denominator([-0.6, -0.6], [Window(), Window()], [left, 1 - left], NONE) == pytest.approx(0.4)


def test_masks_of_different_shapes_are_taken_to_overlap():
    left = torch.tensor([[[1.0, 0.0]]])
    right = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]])
    assert smallest_denominator([-0.6, -0.6], [Window(), Window()], [left, right], NONE) == pytest.approx(-0.2)
    assert smallest_denominator([0.6, -0.6], [Window(), Window()], [left, right], NONE) == pytest.approx(0.4)


# --- masks on a grid -------------------------------------------------------------------------------------------------


def resized(mask, rows, columns):
    """Bilinear with align_corners=True, number by number: the corners of both grids coincide."""
    height, width = mask.shape
    out = torch.empty(rows, columns, dtype=mask.dtype)
    for i, j in [(i, j) for i in range(rows) for j in range(columns)]:
        y = i * (height - 1) / (rows - 1) if rows > 1 else 0.0
        x = j * (width - 1) / (columns - 1) if columns > 1 else 0.0
        top, left = min(int(y), height - 1), min(int(x), width - 1)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        upper = (1 - dx) * mask[top, left] + dx * mask[top, right]
        lower = (1 - dx) * mask[bottom, left] + dx * mask[bottom, right]
        out[i, j] = (1 - dy) * upper + dy * lower
    return out


@pytest.mark.parametrize("grid", [(8, 8), (4, 4), (5, 3), (1, 1), (1, 6), (7, 1), (13, 11)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (5, 9), (1, 1)], ids=str)
def test_mask_on_a_grid_is_bilinear_with_aligned_corners(grid, size):
    masks = normal(2, *size, seed=7).sigmoid()
    on_grid = mask_on_grid(masks, grid)
    assert on_grid.shape == (2, grid[0] * grid[1], 1)
    for mask, got in zip(masks, on_grid, strict=True):
        assert relative_error(got.view(grid), resized(mask, *grid)) < 1e-12


# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.7, 0.2), (0.0, 0.0), (1.0, 1.0), (-0.1, 1), (0, 1.1),
                                            (math.nan, 1), (0, math.nan), (-math.inf, 1)])  # fmt: skip
def test_impossible_window_is_refused_with_its_values(start, end):
    with pytest.raises(ValueError, match=rf"0 <= start < end <= 1, but got start {start} and end {end}\. Move"):
        Window(start, end)


def test_window_covers_its_start_and_not_its_end():
    window = Window(0.25, 0.75)
    assert [window.covers(p) for p in (0.0, 0.2499, 0.25, 0.5, 0.7499, 0.75, 1.0)] == [0, 0, 1, 1, 1, 0, 0]
    assert Window().covers(0.0)


def test_equal_windows_are_one():
    assert len({Window(0, 1), Window(0.0, 1.0), Window()}) == 1
