"""Variations of the context update and of composition, tried by `alignment.py --tune`; none is in the pack.

Each replaces a function of the pack for as long as a batch is sampled, and is otherwise run by the pack's own node.
q [b, h, n, d], k [b, h, t, d], weights [b, t, 1] or None (the token weights that the node was given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from rivals.attend_and_excite import attention_map
from shapes_model import pack_module

#: term(q, k, weights) -> what gamma_attn multiplies, like k
Term = Callable[[Tensor, Tensor, Tensor | None], Tensor]


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

    module = pack_module("ebca_core.update")
    return _replaced(pack_module("comfyui_binding.runtime.prompt_update"), "key_step", key_step)


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
    layer = pack_module("comfyui_binding.runtime.layer").Layer
    original = layer.project
    dims = (-1,) if per_token else (-2, -1)

    def project(self, step):
        moved = original(self, step)
        norm = torch.linalg.vector_norm(moved, dim=dims, keepdim=True).clamp(min=1e-9)
        return moved * (torch.linalg.vector_norm(self.context, dim=dims, keepdim=True) / norm)

    return _replaced(layer, "project", project)


def small_steps(count: int):
    """`count` steps in each layer, each from the keys that the one before has moved; gammas are those of one step."""
    update = pack_module("comfyui_binding.runtime.prompt_update").PromptUpdate
    original = update.step

    def step(self, layer):
        for _ in range(count):
            original(self, layer)
            layer = replace(layer, k=layer.keys_of(self.moved(layer.context)))

    return _replaced(update, "step", step)


def spread_norm(temperature: float):
    """The norm term with softmax over ||k||^2 / temperature: at 1 nearly all of it falls on the loudest token."""

    def norm_term(keys, repeats=None):
        share = (keys.float().square().sum(-1, keepdim=True) / temperature).softmax(-2)
        return keys * share.to(keys.dtype)

    return _replaced(pack_module("ebca_core.update"), "norm_term", norm_term)


def even_norms():
    """Words louder than their mean are made quieter and the others louder: down the variance of ||k||^2 / mean."""

    def term(q, k, weights):
        chosen = torch.ones_like(k[:, 0, :, :1]) if weights is None else (weights != 0).to(k.dtype)
        norms = k.square().sum((1, 3))[..., None]
        mean = (norms * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True)
        return k * (chosen * (1 - norms / mean))[:, None]

    return _with_term(term)


def keys_only():
    """The update moves what pixels look for, and what they find stays the prompt as it came."""
    patches = pack_module("comfyui_binding.runtime.layer_patches").LayerPatches
    original = patches._hand_context

    def hand_context(self, n, context, value, extra_options, **kwargs):
        n, keys, _ = original(self, n, context, value, extra_options, **kwargs)
        return n, keys, value

    return _replaced(patches, "_hand_context", hand_context)


def claimed(sharpness: float):
    """Composition: each spot of the image takes most of the object whose words it reads most."""
    return _with_shares(lambda reads: (sharpness * reads.log()).softmax(0))


def lacking(sharpness: float):
    """Composition: the object whose words no spot reads much has most of the weight, in each layer anew."""
    return _with_shares(lambda reads: (-sharpness * reads.amax(-2, keepdim=True).log()).softmax(0))


OBJECT_WORDS = slice(2, 4)  # of "a red circle", behind the start token and the article


def _with_shares(shares: Callable[[Tensor], Tensor]):
    """The edits' alphas are shared out among them: shares(reads [edits, b, n, 1]) of sum 1 over the edits.

    reads: the part of its attention that an image token gives to the two words of an edit's prompt.
    """
    composition = pack_module("comfyui_binding.runtime.edit_composition")
    original = composition.EditComposition._pull

    def pull(self, layer, chunk, strands, out, has_other_branches):
        if not chunk.prompt.positive:
            return original(self, layer, chunk, strands, out, has_other_branches)
        q = layer.q[chunk.rows]
        found = [attention_map(q, strand.k, layer.heads)[..., OBJECT_WORDS].sum(-1) for strand in strands]
        parts = shares(torch.stack(found)[..., None].float()) * len(strands)
        weights = [
            part.to(q.dtype) * self._edit_weight(strand.edit, chunk, layer)
            for part, strand in zip(parts, strands, strict=True)
        ]
        outs = [layer.attend(q, strand.k, strand.v, chunk.position) for strand in strands]
        return composition.mix_contexts(out, outs, weights)

    return _replaced(composition.EditComposition, "_pull", pull)


EXPERIMENTS = {
    function.__name__: function
    for function in (
        balanced, centred, claimed, competing, even_norms, keys_only, lacking, relative, reversed_pull, small_steps,
        spread_norm,
    )
}  # fmt: skip
