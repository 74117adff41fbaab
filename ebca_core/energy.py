"""The two energies of one cross-attention layer. The update (update.py) descends them and never needs their values."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor


def attention_energy(keys: Tensor, queries: Tensor, heads: int) -> Tensor:
    """E(K | Q) of each text token: -(1/beta) * logsumexp over pixels n of (beta q_n . k_t), beta = 1 / sqrt(d).

    keys [b, t, (h d)], queries [b, n, (h d)] -> energies [b, t], summed over heads. Paper, section 3.1.
    Holds an [n, t] matrix per head: meant for looking at a run, not for its hot path.
    """
    keys = rearrange(keys, "b t (h d) -> b h t d", h=heads)
    queries = rearrange(queries, "b n (h d) -> b h n d", h=heads)
    beta = keys.shape[-1] ** -0.5
    similarity = beta * torch.einsum("bhtd,bhnd->bhtn", keys, queries)
    return -similarity.logsumexp(dim=-1).sum(dim=1) / beta


def norm_energy(keys: Tensor) -> Tensor:
    """E(K) of a prompt: 1/2 * logsumexp over text tokens t of ||k_t||^2, over all heads together.

    keys [b, t, (h d)] -> energies [b]. Paper, section 3.1, in the form whose gradient is `update.norm_term`
    (the paper has the 1/2 inside the logsumexp).
    """
    return 0.5 * keys.square().sum(dim=-1).logsumexp(dim=-1)
