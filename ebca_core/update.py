"""Bayesian context update: one gradient step on the log posterior of the text context (paper, section 3.2).

The gradient with respect to the keys is `key_step`; as K = C W_k^T, the context moves by `key_step @ W_k`. Whoever
owns the weights does that product, for W_k may be quantised, patched or on another device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: attention(query [b, i, (h d)], key [b, j, (h d)], value [b, j, (h d)], heads) -> [b, i, (h d)], scaled by 1 / sqrt(d)
Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def attention_term(
    keys: Tensor, queries: Tensor, heads: int, attention: Attention, mask: Tensor | None = None
) -> Tensor:
    """-dE(K | Q)/dk_t = sum over n of softmax_n(beta k_t . q_n) m_n q_n: attention with exchanged roles.

    keys [b, t, (h d)], queries [b, n, (h d)], mask [b or 1, n, 1] in [0, 1] -> [b, t, (h d)].
    The mask weighs the queries that enter the sum; the softmax itself is not masked (paper, section 4.2, inpainting).
    """
    values = queries if mask is None else queries * mask
    return attention(keys, queries, values, heads)


def norm_term(keys: Tensor, repeats: Tensor | None = None) -> Tensor:
    """dE(K)/dk_t = softmax_t(||k_t||^2) k_t.

    keys [b, t, (h d)] -> [b, t, (h d)]. The norms are taken in float32 at least: ||k||^2 overflows float16.
    repeats [b, 1, 1]: how often the prompt's own tokens stand in keys one after the other. The softmax over r copies
    gives each copy 1/r of the token's share, so the factor r restores the step of the prompt alone.
    """
    norms = torch.linalg.vector_norm(keys, dim=-1, keepdim=True, dtype=torch.promote_types(keys.dtype, torch.float32))
    share = norms.square().softmax(dim=-2)
    if repeats is not None:
        share = share * repeats
    return keys * share.to(keys.dtype)


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
) -> Tensor:
    """G_t = gamma_attn * w_t * attention_term_t - gamma_norm * norm_term_t (paper, equation of the context update).

    keys [b, t, (h d)], queries [b, n, (h d)], token_weights [b or 1, t, 1] (default 1), mask and repeats as in the two
    terms -> [b, t, (h d)]. Unmasked, `G @ W_k` is minus the gradient with respect to the context of
    gamma_attn * sum_t w_t E_t(K | Q) + gamma_norm * E(K). A term whose gamma is zero is not computed.
    """
    step = None
    if gamma_attn != 0:
        step = attention_term(keys, queries, heads, attention, mask)
        if gamma_attn != 1:
            step = step * gamma_attn
        if token_weights is not None:
            step = step * token_weights
    if gamma_norm != 0:
        pull = norm_term(keys, repeats)
        step = pull * -gamma_norm if step is None else step.sub(pull, alpha=gamma_norm)
    return torch.zeros_like(keys) if step is None else step
