"""One call of the U-Net: the context update and the composition, layer by layer.

For the length of the call every cross-attention layer gets two of ComfyUI's patches: `attn2_patch`, last in its list,
hands the layer the context as updated so far; `attn2_replace`, around any other pack's, sees the layer's queries and
keys and computes what the context of the next layer will be. Changes are kept apart from the contexts they belong to
(`context + change`), so that whatever other packs do to a context in between stays in force.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ebca_core import composition_weight_sum, key_step, mix_contexts
from .families import LayerKey, cross_attention_layers
from .layer import Layer, is_replaceable
from .run import Chunk, Run
from .settings import ContextUpdate, Edit


@dataclass(frozen=True, eq=False)
class UpdatePart:
    """A context update on some rows of the call: all of them, or those of one positive prompt."""

    update: ContextUpdate
    rows: slice
    chunks: Sequence[Chunk]


class DenoiserCall:
    """A layer that comes round again (some packs run the U-Net twice in one call) begins the call anew."""

    def __init__(self, run: Run, sigma: float | None, unet: torch.nn.Module, context: Tensor, chunks: Sequence[Chunk]):
        self._run = run
        self._sigma = sigma
        self._chunks = chunks
        self._context_shape = context.shape
        self._attn2 = run.once(unet, cross_attention_layers)
        self._order = {key: position for position, key in enumerate(self._attn2)}
        self._parts = [
            part for update in run.settings.updates if run.is_on(update.window, sigma) for part in self._split(update)
        ]
        self._scale = max((max(part.update.gamma_attn, part.update.gamma_norm) for part in self._parts), default=1.0)
        self._edits = run.settings.edits
        self._weighted = [edit for edit in self._edits if run.is_weighted(edit, sigma)]
        self._moving = [edit for edit in self._edits if run.is_moving(edit, sigma)]
        self._composes = bool(self._weighted or self._moving)
        self._carried = self._read_carried(context) if self._composes else {}
        self._begin()

    def _begin(self) -> None:
        self._position = -1
        self._inputs: tuple[Tensor, Tensor] | None = None
        self._changes: dict[torch.Size, Tensor] = {}  # of the main context, by its shape
        self._repeats: dict[torch.Size, Tensor | None] = {}
        self._weight_rows: dict[tuple[UpdatePart, int], Tensor] = {}
        self._edit_changes = dict(self._carried)

    def _split(self, update: ContextUpdate) -> list[UpdatePart]:
        if not update.positive_only:
            return [UpdatePart(update, slice(0, self._context_shape[0]), self._chunks)]
        return [UpdatePart(update, chunk.rows, [chunk]) for chunk in self._chunks if chunk.prompt.positive]

    def _read_carried(self, context: Tensor) -> dict[tuple[Edit | None, Chunk], Tensor | None]:
        """Changes of each edit's context for every positive prompt, of the shared negative one for every other."""
        return {
            (edit, chunk): self._run.carried(edit, chunk, (context if edit is None else edit.context).shape[1], context)
            for chunk in self._chunks
            for edit in (self._edits if chunk.prompt.positive else (None,))
        }

    # --- ComfyUI's side ---

    def patched(self, options: dict[str, Any]) -> dict[str, Any]:
        """The two entries of transformer_options that differ during the call."""
        patches = options.get("patches", {})
        replacements = options.get("patches_replace", {})
        others = replacements.get("attn2", {})
        ours = {
            key: partial(self._attend, key, others.get(key, others.get(key[:2])))
            for key in self._attn2
            if self._works_in(key) and self._may_replace(key)
        }
        return {
            "patches": {**patches, "attn2_patch": [*patches.get("attn2_patch", ()), self._hand_context]},
            "patches_replace": {**replacements, "attn2": {**others, **ours}},
        }

    def finish(self) -> None:
        """Commit what the edits carry to the next call."""
        for (edit, chunk), change in self._edit_changes.items():
            if change is not None:
                self._run.commit(edit, chunk, change, self._sigma)

    def _works_in(self, key: LayerKey) -> bool:
        return self._composes or any(part.update.layers is None or key in part.update.layers for part in self._parts)

    def _may_replace(self, key: LayerKey) -> bool:
        replaceable = is_replaceable(self._attn2[key])
        if not replaceable:
            self._run.warn_once(
                "EBCA leaves out cross-attention layers whose forward pass another node has replaced. Remove that node "
                "to have EBCA there."
            )
        return replaceable

    def _hand_context(self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any], **kwargs):
        """attn2_patch: give the layer the updated context, and keep what it was before."""
        position = self._order[(*extra_options["block"], extra_options["block_index"])]
        if position <= self._position:
            self._begin()
        self._position = position
        self._inputs = (context, value)
        updated = _moved(context, self._changes.get(context.shape))
        return n, updated, updated if value is context else value

    def _attend(
        self, key: LayerKey, other: Callable | None, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, **kwargs
    ) -> Tensor:
        """attn2_replace: the layer's attention, other packs' included, with the edits mixed in; then the update."""
        self._run.was_reached = True
        context, value = self._inputs
        layer = Layer(key, self._attn2[key], q, k, v, context, value, extra_options)
        out = layer.attend(q, k, v) if other is None else other(q, k, v, extra_options, **kwargs)
        if self._composes:
            out = self._compose(layer, out, has_other_branches=other is not None)
        if self._position < len(self._order) - 1:  # no layer would read what the last one changes
            self._update(layer)
        return out

    # --- the context update of the prompts themselves ---

    def _update(self, layer: Layer) -> None:
        step = None
        for part in self._parts:
            if part.update.layers is None or layer.key in part.update.layers:
                step = self._add_step(step, part, layer)
        if step is None:
            return
        if layer.has_split_text:
            self._run.warn_once(
                "Another node gives keys and values different texts: EBCA's update moves only the keys."
            )
        shape = layer.context.shape
        self._changes[shape] = _accumulated(self._changes.get(shape), layer.project(step), self._scale)

    def _add_step(self, total: Tensor | None, part: UpdatePart, layer: Layer) -> Tensor | None:
        """G of one part, in units of the call's largest gamma so that half precision holds it, added to the others'."""
        obstacle = self._obstacle(part, layer)
        if obstacle is not None:
            self._run.warn_once(f"EBCA leaves out a context update {obstacle}.")
            return total
        update = part.update
        rows = part.rows if layer.q.shape[0] == self._context_shape[0] else slice(None)
        repeats = self._repeats_in(layer)
        step = key_step(
            layer.k[rows],
            layer.q[rows],
            layer.heads,
            layer.attend_exchanged,
            update.gamma_attn / self._scale,
            update.gamma_norm / self._scale,
            self._token_weights(part, layer),
            self._mask(update.mask, part.chunks, layer),
            None if repeats is None else repeats[rows],
        )
        if total is None and step.shape == layer.k.shape:
            return step
        total = torch.zeros_like(layer.k) if total is None else total
        total[rows] += step
        return total

    def _obstacle(self, part: UpdatePart, layer: Layer) -> str | None:
        if layer.q.shape[0] != layer.k.shape[0]:
            return "in a layer where another node gives images and texts batches of different sizes"
        needs_rows = part.update.positive_only or part.update.token_weights is not None or part.update.mask is not None
        if needs_rows and layer.q.shape[0] != self._context_shape[0]:
            return (
                "that depends on the prompt's role (positive only, token weights or a mask), for another node splits "
                "prompts into regions"
            )
        if part.update.mask is not None and layer.q.shape[1] != layer.grid[0] * layer.grid[1]:
            return "with a mask, for another node merges image tokens"
        return None

    def _token_weights(self, part: UpdatePart, layer: Layer) -> Tensor | None:
        """Weights [rows of the part, t, 1]: the user's on positive prompts, 1 on the others."""
        if part.update.token_weights is None:
            return None
        key = (part, layer.k.shape[1])
        if key not in self._weight_rows:
            self._weight_rows[key] = self._make_token_weights(part, layer)
        return self._weight_rows[key]

    def _make_token_weights(self, part: UpdatePart, layer: Layer) -> Tensor:
        values, tokens = part.update.token_weights.values, layer.k.shape[1]
        own = [chunk.prompt.tokens or tokens for chunk in part.chunks if chunk.prompt.positive]
        is_own = layer.context.shape == self._context_shape
        if tokens % len(values) or (is_own and any(count != len(values) for count in own)):
            raise ValueError(
                f"Expected token weights for the {', '.join(map(str, own))} tokens of the positive prompt, but got "
                f"{len(values)}. Give EBCA Token Weights the text that the positive prompt encodes."
            )
        positive = self._run.cast(values, layer.k).repeat(tokens // len(values)).view(1, tokens, 1)
        rows = [positive if chunk.prompt.positive else torch.ones_like(positive) for chunk in part.chunks]
        return torch.cat([row.expand(len(chunk.images), -1, -1) for row, chunk in zip(rows, part.chunks, strict=True)])

    def _mask(self, mask: Tensor | None, chunks: Sequence[Chunk], layer: Layer) -> Tensor | None:
        return None if mask is None else self._run.mask_rows(mask, chunks, layer.grid, layer.q)

    def _repeats_in(self, layer: Layer) -> Tensor | None:
        """How often each row's own tokens stand in its keys, [b, 1, 1]; None where every row has them once."""
        shape = layer.context.shape
        if shape not in self._repeats:
            known = shape == self._context_shape
            self._repeats[shape] = self._known_repeats(layer) if known else _found_repeats(layer.context)
        return self._repeats[shape]

    def _known_repeats(self, layer: Layer) -> Tensor | None:
        tokens = self._context_shape[1]
        counts = [tokens // (chunk.prompt.tokens or tokens) for chunk in self._chunks]
        if set(counts) == {1}:
            return None
        return torch.cat(
            [
                layer.k.new_full((len(chunk.images), 1, 1), count, dtype=torch.float32)
                for chunk, count in zip(self._chunks, counts, strict=True)
            ]
        )

    # --- composition ---

    def _compose(self, layer: Layer, out: Tensor, has_other_branches: bool) -> Tensor:
        """Mix the edits' outputs into the layer's, and move the edits' contexts."""
        if layer.q.shape[0] != self._context_shape[0]:
            self._run.warn_once("EBCA leaves out its edits, for another node splits prompts into regions.")
            return out
        if has_other_branches:
            out = out.clone()  # the pack that made it may hold on to it
        for chunk in self._chunks:
            rows = chunk.rows
            text = out[rows]
            if has_other_branches and self._weighted:
                text = layer.attend(layer.q[rows], layer.k[rows], layer.v[rows])
            edited = self._edit_positive if chunk.prompt.positive else self._edit_negative
            pull = edited(layer, chunk, text)
            if pull is not None:
                out[rows] += pull
        return out

    def _edit_positive(self, layer: Layer, chunk: Chunk, text: Tensor) -> Tensor | None:
        """The edits on a positive prompt: each attends to its own context, and moves it."""
        q = layer.q[chunk.rows]
        outs, weights = [], []
        for edit in self._edits:
            if edit not in self._weighted and edit not in self._moving:
                continue
            context = _moved(self._run.edit_rows(edit, chunk, layer.context), self._edit_changes[edit, chunk])
            k = layer.keys_of(context)
            if edit in self._weighted:
                outs.append(layer.attend(q, k, layer.values_of(context)))
                weights.append(self._weight(edit, chunk, layer))
            if edit in self._moving:
                self._move(edit, chunk, layer, q, k, edit.gamma_attn, edit.gamma_norm)
        return mix_contexts(text, outs, weights) if outs else None

    def _edit_negative(self, layer: Layer, chunk: Chunk, text: Tensor) -> Tensor | None:
        """The edits on any other prompt: all attend to one copy of its context, which moves by their mean update."""
        rows, change = chunk.rows, self._edit_changes[None, chunk]
        q, k, pull = layer.q[rows], layer.k[rows], None
        if change is not None or layer.context.shape in self._changes:  # else the copy is the prompt's context itself
            context = _moved(layer.context[rows], change)
            k = layer.keys_of(context)
            if self._weighted:
                v = layer.values_of(layer.value[rows] if layer.has_split_text else context)
                total = composition_weight_sum([self._weight(edit, chunk, layer) for edit in self._weighted])
                pull = mix_contexts(text, [layer.attend(q, k, v)], [total])
        gamma_attn = sum(edit.gamma_attn for edit in self._moving) / len(self._edits)
        gamma_norm = sum(edit.gamma_norm for edit in self._moving) / len(self._edits)
        if self._moving:
            repeats = self._repeats_in(layer)
            self._move(None, chunk, layer, q, k, gamma_attn, gamma_norm, None if repeats is None else repeats[rows])
        return pull

    def _move(
        self,
        edit: Edit | None,
        chunk: Chunk,
        layer: Layer,
        q: Tensor,
        k: Tensor,
        gamma_attn: float,
        gamma_norm: float,
        repeats: Tensor | None = None,
    ) -> None:
        scale = max(gamma_attn, gamma_norm)
        step = key_step(
            k, q, layer.heads, layer.attend_exchanged, gamma_attn / scale, gamma_norm / scale, repeats=repeats
        )
        self._edit_changes[edit, chunk] = _accumulated(self._edit_changes[edit, chunk], layer.project(step), scale)

    def _weight(self, edit: Edit, chunk: Chunk, layer: Layer) -> float | Tensor:
        if edit.mask is None:
            return edit.weight
        return edit.weight * self._mask(edit.mask, [chunk], layer)


def _moved(context: Tensor, change: Tensor | None) -> Tensor:
    return context if change is None else (context + change).to(context.dtype)


def _accumulated(change: Tensor | None, step: Tensor, scale: float) -> Tensor:
    """change + scale * step, in float32 at least: the sum of many small steps."""
    if change is None:
        return step.to(torch.promote_types(step.dtype, torch.float32)) * scale
    return torch.add(change, step, alpha=scale)


def _found_repeats(context: Tensor) -> Tensor:
    """How often each row of a context [b, t, c] repeats its first tokens, up to ComfyUI's limit of 4 -> [b, 1, 1]."""
    tokens = context.shape[1]
    repeats = torch.ones(context.shape[0], dtype=torch.float32, device=context.device)
    for count in (2, 3, 4):
        if tokens % count == 0:
            own = tokens // count
            same = (context[:, own:] == context[:, :-own]).all(dim=2).all(dim=1)
            repeats = torch.where(same, float(count), repeats)
    return repeats.view(-1, 1, 1)
