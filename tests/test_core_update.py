"""The context update is one step down the two energies: against autograd, and against loops, in float64."""
from __future__ import annotations

import math
import random

import pytest
import torch

from ebca_core import attention_energy, attention_term, key_step, norm_energy, norm_term
from support.sampling import relative_error

SEEDS = range(24)


def attention(query, key, value, heads):
    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    out = torch.nn.functional.scaled_dot_product_attention(split(query), split(key), split(value))
    return out.transpose(1, 2).flatten(2)


def draw(seed):
    """Random sizes, contexts, W_k, queries, gammas, token weights and a mask, in float64."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    b, n, t, h = (choose.randint(1, most) for most in (3, 40, 20, 5))
    d, c = choose.randint(1, 12), choose.randint(1, 24)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return dict(
        heads=h, context=normal(b, t, c), w_k=normal(h * d, c) / c**0.5, queries=normal(b, n, h * d),
        gamma_attn=choose.uniform(0.001, 1), gamma_norm=choose.uniform(0.001, 1),
        token_weights=normal(1, t, 1).abs(), mask=normal(b, n, 1).sigmoid(),
    )


def looped_attention_term(keys, queries, heads, mask):
    """sum over n of softmax_n(beta k_t . q_n) m_n q_n, number by number."""
    out = torch.zeros_like(keys)
    d = keys.shape[-1] // heads
    for b, t, h in [(b, t, h) for b in range(len(keys)) for t in range(keys.shape[1]) for h in range(heads)]:
        head = slice(h * d, (h + 1) * d)
        scores = [math.exp(float(keys[b, t, head] @ q[head]) / d**0.5) for q in queries[b]]
        for score, weight, q in zip(scores, mask[b, :, 0], queries[b], strict=True):
            out[b, t, head] += score / sum(scores) * weight * q[head]
    return out


def looped_norm_term(keys):
    """softmax_t(||k_t||^2) k_t, number by number."""
    out = torch.zeros_like(keys)
    for b, rows in enumerate(keys):
        scores = [math.exp(float(k @ k)) for k in rows]
        for t, k in enumerate(rows):
            out[b, t] = scores[t] / sum(scores) * k
    return out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "token weights"])
def test_update_is_minus_the_gradient_of_the_energies(seed, weighted):
    case = draw(seed)
    context = case["context"].requires_grad_()
    keys = context @ case["w_k"].T
    token_weights = case["token_weights"] if weighted else torch.ones_like(case["token_weights"])
    attention_part = attention_energy(keys, case["queries"], case["heads"]) * token_weights[..., 0]
    energy = case["gamma_attn"] * attention_part.sum() + case["gamma_norm"] * norm_energy(keys).sum()
    (gradient,) = torch.autograd.grad(energy, context)

    step = key_step(
        keys.detach(), case["queries"], case["heads"], attention, case["gamma_attn"], case["gamma_norm"],
        token_weights=token_weights if weighted else None,
    )

    assert relative_error(step @ case["w_k"], -gradient) < 1e-10


@pytest.mark.parametrize("seed", range(6))
def test_masked_update_is_the_loop(seed):
    case = draw(seed)
    keys, mask = case["context"] @ case["w_k"].T, case["mask"]
    pull = looped_attention_term(keys, case["queries"], case["heads"], mask) * case["token_weights"]
    expected = case["gamma_attn"] * pull - case["gamma_norm"] * looped_norm_term(keys)

    step = key_step(
        keys, case["queries"], case["heads"], attention, case["gamma_attn"], case["gamma_norm"], case["token_weights"],
        mask,
    )

    assert relative_error(step, expected) < 1e-10


@pytest.mark.parametrize("seed", range(6))
def test_energies_are_the_loops(seed):
    case = draw(seed)
    keys, queries, heads = case["context"] @ case["w_k"].T, case["queries"], case["heads"]
    d = keys.shape[-1] // heads
    beta = d**-0.5
    attn = torch.zeros(keys.shape[:2], dtype=torch.float64)
    for b, t, h in [(b, t, h) for b in range(len(keys)) for t in range(keys.shape[1]) for h in range(heads)]:
        head = slice(h * d, (h + 1) * d)
        attn[b, t] -= math.log(sum(math.exp(beta * float(keys[b, t, head] @ q[head])) for q in queries[b])) / beta
    norm = torch.tensor([0.5 * math.log(sum(math.exp(float(k @ k)) for k in rows)) for rows in keys]).double()

    assert relative_error(attention_energy(keys, queries, heads), attn) < 1e-10
    assert relative_error(norm_energy(keys), norm) < 1e-6  # `norm` is float32


@pytest.mark.parametrize("seed", range(6))
def test_one_mask_serves_all_images(seed):
    case = draw(seed)
    keys, mask = case["context"] @ case["w_k"].T, case["mask"][:1]
    whole = attention_term(keys, case["queries"], case["heads"], attention, mask)
    each = attention_term(keys, case["queries"], case["heads"], attention, mask.expand(len(keys), -1, -1))
    assert torch.equal(whole, each)


def test_mask_of_ones_changes_nothing_and_mask_of_zeros_stops_the_attention_term():
    case = draw(1)
    keys = case["context"] @ case["w_k"].T
    args = keys, case["queries"], case["heads"], attention
    ones = torch.ones_like(case["mask"])
    assert torch.equal(attention_term(*args, ones), attention_term(*args))
    assert attention_term(*args, 0 * ones).abs().max() == 0


def test_repeated_prompt_moves_as_the_prompt_alone():
    keys = torch.randn(2, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    long = torch.cat([keys[:1].repeat(1, 3, 1), torch.cat([keys[1:]] * 3, dim=1).flip(1)])
    repeats = torch.tensor([3.0, 1.0]).view(2, 1, 1)
    own = torch.cat([norm_term(keys[:1]).repeat(1, 3, 1), norm_term(long[1:])])
    assert relative_error(norm_term(long, repeats), own) < 1e-12
    assert relative_error(norm_term(long), own) > 0.1  # without being told, it would not be so
    own = torch.cat([norm_energy(keys[:1]), norm_energy(long[1:])])
    assert relative_error(norm_energy(long, repeats), own) < 1e-12


def test_zero_gammas_compute_nothing():
    def refuse(*_):
        raise AssertionError("attention was called for gamma_attn = 0")

    keys = torch.ones(1, 3, 4)
    assert torch.equal(key_step(keys, keys, 2, refuse, 0.0, 0.5), -0.5 * norm_term(keys))
    assert torch.equal(key_step(keys, keys, 2, refuse, 0.0, 0.0), torch.zeros_like(keys))
    # A norm term of infinite keys would be nan, and stay nan times a gamma of 0.
    only_attention = key_step(keys * math.inf, keys, 2, lambda q, k, v, heads: v, 0.5, 0.0)
    assert torch.equal(only_attention, 0.5 * keys)
