"""What there is to look at in a cross-attention layer: its two energies and its attention.

The update (update.py) descends the energies and never needs their values.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def attention_energy(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """E(K | Q) of each text token: -(1/beta) * logsumexp over pixels n of (beta q_n . k_t), beta = 1 / sqrt(d).

    keys [b, t, (h d)], queries [b, n, (h d)] -> energies [b, t], summed over heads. Paper, section 3.1.
    Taken in float32 at least. Holds an [n, t] matrix per head: meant for looking at a run, not for its hot path.
    """
    beta = (keys.shape[-1] // heads) ** -0.5
    return -_logsumexp(similarity(keys, queries, heads)).sum(dim=1) / beta


def norm_energy(keys: Tensor) -> Tensor:
    """E(K) of a prompt: 1/2 * logsumexp over text tokens t of ||k_t||^2, over all heads together.

    keys [b, t, (h d)] -> energies [b], in float32 at least. Paper, section 3.1, in the form whose gradient is
    `update.norm_term` (the paper has the 1/2 inside the logsumexp).
    """
    return 0.5 * _logsumexp(_precise(keys).square().sum(dim=-1))


def attention_map(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """What each pixel reads of each text token: softmax over tokens t of (beta q_n . k_t), the mean of the heads.

    keys [b, t, (h d)], queries [b, n, (h d)] -> [b, t, n] in [0, 1], of sum 1 over t. Holds the matrix of all heads.
    """
    return similarity(keys, queries, heads).softmax(dim=-2).mean(dim=1)


def similarity(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """beta q_n . k_t in every head, beta = 1 / sqrt(d), in float32 at least.

    keys [b, t, (h d)], queries [b, n, (h d)] -> [b, h, t, n].
    """
    keys = rearrange(_precise(keys), "b t (h d) -> b h t d", h=heads)
    queries = rearrange(_precise(queries), "b n (h d) -> b h n d", h=heads)
    return torch.einsum("bhtd,bhnd->bhtn", keys * keys.shape[-1] ** -0.5, queries)


def _logsumexp(values: Tensor) -> Tensor:
    """Over the last dimension; of torch's own, a GPU would launch four times as many kernels."""
    return values[..., 0] - values.log_softmax(dim=-1)[..., 0]


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
