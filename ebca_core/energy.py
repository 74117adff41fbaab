"""The energies of one cross-attention layer over its text context, the step down them, and the mix of several contexts
(paper, sections 3.1 to 3.3).

Each energy's value stands beside its derivative with respect to the keys. As K = C W_k^T, the context moves by
`key_step @ W_k`. The caller computes that product (key_projection.py), because W_k may be quantised, patched or on
another device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from einops import rearrange
from torch import Tensor

#: attention(query [b, i, (h d)], key [b, j, (h d)], value [b, j, (h d)], heads) -> [b, i, (h d)], scaled by 1 / sqrt(d)
Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
Weight = float | Tensor

# --- E(K | Q): low where the image contains what a token describes ---


def attention_energy(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """E(K | Q) of each text token: -(1/beta) * logsumexp over image tokens n of (beta q_n . k_t), beta = 1 / sqrt(d).

    keys [b, t, (h d)], queries [b, n, (h d)] -> energies [b, t], summed over heads, in float32 at least. Paper, section
    3.1. Holds an [n, t] matrix per head: for diagnostics, not for the update.
    """
    beta = (keys.shape[-1] // heads) ** -0.5
    return -_logsumexp(similarity(keys, queries, heads)).sum(dim=1) / beta


def attention_term(
    keys: Tensor, queries: Tensor, heads: int, attention: Attention, mask: Tensor | None = None
) -> Tensor:
    """-dE(K | Q)/dk_t = sum over n of softmax_n(beta k_t . q_n) m_n q_n: attention with exchanged roles.

    keys [b, t, (h d)], queries [b, n, (h d)], mask [b or 1, n, 1] in [0, 1] -> [b, t, (h d)].
    The mask weights the queries that enter the sum; the softmax itself is not masked (paper, section 4.2, inpainting).
    """
    values = queries if mask is None else queries * mask
    return attention(keys, queries, values, heads)


# --- E(K): low where no single token dominates ---


def norm_energy(keys: Tensor, repeats: Tensor | None = None, words: Tensor | None = None) -> Tensor:
    """E(K) of a prompt: 1/2 * logsumexp over text tokens t of ||k_t||^2, over all heads together.

    keys [b, t, (h d)], repeats [b, 1, 1] as in `norm_term`, words [b, t]: the tokens that count, None for all ->
    energies [b] of the prompt's own tokens, in float32 at least. Paper, section 3.1, in the form whose gradient is
    `norm_term` (the paper has the 1/2 inside the logsumexp).
    """
    norms = _precise(keys).square().sum(dim=-1)
    energy = 0.5 * _logsumexp(norms if words is None else norms.masked_fill(~words, -torch.inf))
    return energy if repeats is None else energy - 0.5 * repeats.flatten().to(energy).log()


def norm_term(keys: Tensor, repeats: Tensor | None = None) -> Tensor:
    """dE(K)/dk_t = softmax_t(||k_t||^2) k_t.

    keys [b, t, (h d)] -> [b, t, (h d)]. The norms are taken in float32 at least: ||k||^2 overflows float16.
    repeats [b, 1, 1]: how many copies of the prompt's own tokens the keys hold. The softmax over r copies gives each
    copy 1/r of the token's share, so the factor r restores the step of the prompt alone.
    """
    norms = torch.linalg.vector_norm(keys, dim=-1, keepdim=True, dtype=torch.promote_types(keys.dtype, torch.float32))
    share = norms.square().softmax(dim=-2)
    if repeats is not None:
        share = share * repeats
    return keys * share.to(keys.dtype)


# --- both together ---


@dataclass(frozen=True)
class ContextEnergy:
    """The energy that the update descends: E(K | Q) and E(K), each as its value and its term of the step.

    To change it everywhere, edit the functions above, or give `EBCA` below others with their signatures; norm_term None
    leaves E(K) out. Prompts, edits and traces all take it from `Settings.energy` (comfyui_binding/runtime/settings.py),
    whose default it is: change that to have another energy on some MODELs only. Three rules of the binding hold for the
    default and must be checked for another energy: the step is linear in the two gammas (`DenoiserCall` divides both by
    the larger); the norm term is left out where a model normalises its keys (`DenoiserCall._no_gamma_norm` in
    runtime/denoiser_call.py); a mask of zeros drops the attention term
    (`ContextUpdate.with_constant_mask_resolved` in runtime/settings.py).
    """

    attention_energy: Callable[..., Tensor] = attention_energy
    attention_term: Callable[..., Tensor] = attention_term
    norm_energy: Callable[..., Tensor] = norm_energy
    norm_term: Callable[..., Tensor] | None = norm_term


EBCA = ContextEnergy()


def key_step(
    keys: Tensor,
    queries: Tensor,
    heads: int,
    attention: Attention,
    gamma_attn: float,
    gamma_norm: float,
    token_weights: Tensor | None = None,
    mask: Tensor | None = None,
    repeats: Tensor | None = None,
    energy: ContextEnergy = EBCA,
) -> Tensor:
    """G_t = gamma_attn * w_t * attention_term_t - gamma_norm * norm_term_t (paper, equation of the context update).

    keys [b, t, (h d)], queries [b, n, (h d)], token_weights [b or 1, t, 1] (default 1), mask and repeats as in the two
    terms -> [b, t, (h d)]. Unmasked, `G @ W_k` is minus the gradient with respect to the context of
    gamma_attn * sum_t w_t E_t(K | Q) + gamma_norm * E(K). A term whose gamma is zero is not computed.
    """
    step = None
    if gamma_attn != 0:
        step = energy.attention_term(keys, queries, heads, attention, mask)
        if gamma_attn != 1:
            step = step * gamma_attn
        if token_weights is not None:
            step = step * token_weights
    if gamma_norm != 0 and energy.norm_term is not None:
        norm = energy.norm_term(keys, repeats)
        step = norm * -gamma_norm if step is None else step.sub(norm, alpha=gamma_norm)
    return torch.zeros_like(keys) if step is None else step


def energy_values(
    keys: Tensor,
    queries: Tensor,
    heads: int,
    repeats: Tensor | None = None,
    energy: ContextEnergy = EBCA,
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """E(K | Q), summed over the tokens, and E(K) of each row [b], of the prompt's own tokens.

    keys [b, t, (h d)], queries [b, n, (h d)], repeats [b, 1, 1] as in `norm_term`. words [b, t]: the tokens that count,
    None for all; both energies of a row without words are 0.
    """
    attention, norm = energy.attention_energy(keys, queries, heads), energy.norm_energy(keys, repeats, words)
    if words is not None:
        attention, norm = attention.where(words, 0.0), norm.where(words.any(dim=1), 0.0)
    attention = attention.sum(dim=1)
    return attention if repeats is None else attention / repeats.flatten(), norm


# --- the layer's output ---


def attention_map(keys: Tensor, queries: Tensor, heads: int, hidden: Tensor | None = None) -> Tensor:
    """The attention of each image token to each text token: softmax over t of (beta q_n . k_t), the mean of the heads.

    keys [b, t, (h d)], queries [b, n, (h d)], hidden [b, t]: tokens that are masked -> [b, t, n] in [0, 1], of sum 1
    over t. Holds the matrix of all heads.
    """
    values = similarity(keys, queries, heads)
    if hidden is not None:
        values = values.masked_fill(hidden[:, None, :, None], -torch.inf)
    return values.softmax(dim=-2).mean(dim=1)


def composition_weight_sum(weights: Sequence[Weight]) -> Weight:
    """sum_i w_i, with w_i a number or, under a mask, [b or 1, n, 1]."""
    return reduce(add, weights)


def mix_contexts(main: Tensor, edits: Sequence[Tensor], weights: Sequence[Weight]) -> Tensor:
    """What composition adds to the main output: sum_i w_i (out_i - out_main) / (1 + sum_i w_i) (paper, section 3.3).

    main and each of edits [b, n, (h d)]; each weight a number or [b or 1, n, 1] -> [b, n, (h d)]. Edit i has the signed
    weight w_i = direction_i * alpha_i. In this form an output with other branches on top (an image prompt, say) keeps
    them unscaled, and where every weight is zero the result is exactly zero.
    """
    total = composition_weight_sum(weights)
    added = main * (-total / (1 + total))
    for edit, weight in zip(edits, weights, strict=True):
        share = weight / (1 + total)
        if isinstance(share, Tensor):
            added.addcmul_(edit, share)
        else:
            added.add_(edit, alpha=share)
    return added


def within_norm(mixed: Tensor, main: Tensor, limit: float) -> Tensor:
    """z * min(1, limit * |main| / |z|) with L1 norms: tau of normalised attention guidance (arXiv 2505.21179).

    mixed and main [b, n, c]; each image token has a norm of its own -> [b, n, c]. Tokens within the limit are kept bit
    for bit.
    """
    norm, bound = (
        torch.linalg.vector_norm(tensor, ord=1, dim=-1, keepdim=True, dtype=_precise(tensor).dtype)
        for tensor in (mixed, main)
    )
    bound = limit * bound
    return torch.where(norm > bound, mixed * (bound / norm), mixed).to(mixed.dtype)


def attention_over_both(first: Tensor, second: Tensor, first_sum: Tensor, second_sum: Tensor) -> Tensor:
    """Attention over two groups of keys together, from what it is over each: (e^L1 o1 + e^L2 o2) / (e^L1 + e^L2).

    first, second [b, h, n, d]: o1 and o2, the same queries' attention over each group alone; first_sum, second_sum
    [b, h, n]: L1 and L2, the logsumexp over the group's keys k of beta q_n . k -> [b, h, n, d]. Computed as
    o1 + sigmoid(L2 - L1) (o2 - o1), in which nothing overflows.
    """
    share = torch.sigmoid(second_sum - first_sum).unsqueeze(-1)
    precise = torch.promote_types(first.dtype, share.dtype)
    return torch.lerp(*(one.to(precise) for one in (first, second, share))).to(first.dtype)


def similarity(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """beta q_n . k_t in every head, beta = 1 / sqrt(d), in float32 at least.

    keys [b, t, (h d)], queries [b, n, (h d)] -> [b, h, t, n].
    """
    keys = rearrange(_precise(keys), "b t (h d) -> b h t d", h=heads)
    queries = rearrange(_precise(queries), "b n (h d) -> b h n d", h=heads)
    return torch.einsum("bhtd,bhnd->bhtn", keys * keys.shape[-1] ** -0.5, queries)


def _logsumexp(values: Tensor) -> Tensor:
    """Over the last dimension. torch.logsumexp launches four times as many kernels on a GPU."""
    return values[..., 0] - values.log_softmax(dim=-1)[..., 0]


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
