"""Variations of the context update, tried by `alignment.py --tune`; none is in the pack.

Each replaces a function of the pack for as long as a batch is sampled, and is otherwise run by the pack's own node.
q [b, h, n, d], k [b, h, t, d], weights [b, t, 1] or None (the token weights that the node was given).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

PACK = str(Path(__file__).resolve().parents[1]).replace(".", "_x_")  # the name that ComfyUI gives it

#: term(q, k, weights) -> what gamma_attn multiplies, like k
Term = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _module(name: str) -> ModuleType:
    return sys.modules[f"{PACK}.comfyui_binding.{name}"]


@contextmanager
def _replaced(owner, name: str, new) -> Iterator[None]:
    old = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


def _with_term(term: Term):
    """The attention term of the update is `term`."""

    def key_step(keys, queries, heads, attention, gamma_attn, gamma_norm, token_weights=None, mask=None, repeats=None):
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (queries, keys))
        step = term(q, k, token_weights).transpose(1, 2).flatten(-2).to(keys.dtype)
        return gamma_attn * step - gamma_norm * module.norm_term(keys, repeats)

    module = sys.modules[f"{PACK}.ebca_core.update"]
    return _replaced(_module("prompt_update"), "key_step", key_step)


def energies(q: Tensor, k: Tensor) -> Tensor:
    """E_t = -(1/beta) logsumexp_n(beta q_n . k_t), summed over heads: [b, t, 1]."""
    beta = q.shape[-1] ** -0.5
    return -torch.logsumexp(beta * k @ q.mT, -1).sum(1)[..., None] / beta


def pull(q: Tensor, k: Tensor) -> Tensor:
    """The paper's attention term."""
    return (k @ q.mT * q.shape[-1] ** -0.5).softmax(-1) @ q


def balanced(temperature: float):
    """Words compete for the update: a share of it by softmax of their energies, the most to the least found."""

    def term(q, k, weights):
        if weights is None:
            raise ValueError("Expected token weights: balanced needs to know the words.")
        found = energies(q, k).masked_fill(weights == 0, -torch.inf)
        share = (found / (temperature * q.shape[1])).softmax(1) * (weights != 0).sum(1, keepdim=True)
        return pull(q, k) * share[:, None]

    return _with_term(term)


def competing(sharpness: float, temperature: float | None):
    """Words compete for pixels: with A_nt the layer's own attention, E_t = -(1/sharpness) log sum_n A_nt^sharpness.

    With a temperature the words with the highest energy count most (Attend-and-Excite's loss, in closed form).
    """
    return _with_term(lambda q, k, weights: competing_term(q, k, weights, sharpness, temperature))


def competing_term(q: Tensor, k: Tensor, weights: Tensor | None, sharpness: float, temperature: float | None) -> Tensor:
    """-dE/dk, without the factor beta, of E = sum over words of their weight times E_t."""
    log_a = (q @ k.mT * q.shape[-1] ** -0.5).log_softmax(-1)  # [b, h, n, t]
    weights = torch.ones_like(k[:, 0, :, :1]) if weights is None else weights
    if temperature is not None:
        lacking = -torch.logsumexp(sharpness * log_a, -2).mean(1)[..., None] / sharpness
        share = (lacking.masked_fill(weights == 0, -torch.inf) / temperature).softmax(1)
        weights = share * (weights != 0).sum(1, keepdim=True)
    found = (sharpness * log_a).softmax(-2) * weights[:, None].mT
    return (found - log_a.exp() * found.sum(-1, keepdim=True)).mT @ q


def reversed_pull():
    """Up the energy instead of down: what the direction is worth."""
    return _with_term(lambda q, k, weights: -pull(q, k) * (1 if weights is None else weights[:, None]))


def centred():
    """Queries less their mean over pixels: what moves all keys alike changes no softmax over tokens."""

    def term(q, k, weights):
        return pull(q - q.mean(-2, keepdim=True), k) * (1 if weights is None else weights[:, None])

    return _with_term(term)


def relative(per_token: bool):
    """The step has the context's own norm times gamma: of the whole prompt, or token by token."""
    layer = _module("layer").Layer
    original = layer.project
    dims = (-1,) if per_token else (-2, -1)

    def project(self, step):
        moved = original(self, step)
        norm = torch.linalg.vector_norm(moved, dim=dims, keepdim=True).clamp(min=1e-9)
        return moved * (torch.linalg.vector_norm(self.context, dim=dims, keepdim=True) / norm)

    return _replaced(layer, "project", project)


def small_steps(count: int):
    """`count` steps in each layer, each from the keys that the one before has moved; gammas are those of one step."""
    update = _module("prompt_update").PromptUpdate
    original = update.step

    def step(self, layer):
        for _ in range(count):
            original(self, layer)
            layer = replace(layer, k=layer.keys_of(self.moved(layer.context)))

    return _replaced(update, "step", step)


EXPERIMENTS = {
    function.__name__: function for function in (balanced, centred, competing, reversed_pull, relative, small_steps)
}
