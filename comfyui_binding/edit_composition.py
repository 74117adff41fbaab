"""The composition of edits, through one call of the U-Net."""

from __future__ import annotations

from torch import Tensor

from ..ebca_core import composition_weight_sum, key_step, mix_contexts
from .layer import Layer, accumulated, moved
from .prompt_update import PromptUpdate
from .prompts import Chunk
from .settings import Edit
from .unet_call import REGIONS, UNetCall


class EditComposition:
    """Edits have a context for each positive prompt; on any other prompt they share one copy of that prompt's own.

    All of these move, layer by layer, and are carried to the next call.
    """

    def __init__(self, call: UNetCall, prompt_update: PromptUpdate):
        run = call.run
        self._call = call
        self._prompt_update = prompt_update
        self._edits = run.settings.edits
        self._weighted = [edit for edit in self._edits if run.is_weighted(edit, call.sigma)]
        self._moving = [edit for edit in self._edits if run.is_moving(edit, call.sigma)]
        self._carried = self._read_carried() if self.is_active else {}
        self.begin()

    @property
    def is_active(self) -> bool:
        return bool(self._weighted or self._moving)

    def begin(self) -> None:
        """Start again from what was carried when the call began."""
        self._changes = dict(self._carried)

    def finish(self) -> None:
        """Carry the changes to the next call."""
        for (edit, chunk), change in self._changes.items():
            if change is not self._carried[edit, chunk]:
                self._call.carry_on(edit, chunk, change)

    def mix(self, layer: Layer, out: Tensor, has_other_branches: bool) -> Tensor:
        """Mix the edits' outputs into the layer's, [b, n, (h d)], and move the edits' contexts."""
        obstacle = self._obstacle(layer)
        if obstacle is not None:
            self._call.run.warn_once(f"EBCA leaves out the edits, for {obstacle}.")
            return out
        if has_other_branches:
            out = out.clone()  # the pack that made it may hold on to it
        for chunk in self._call.chunks:
            rows = chunk.rows
            text = out[rows]
            if has_other_branches and self._weighted:
                text = layer.attend(layer.q[rows], layer.k[rows], layer.v[rows], chunk.position)
            pull = (self._on_positive if chunk.prompt.positive else self._on_other)(layer, chunk, text)
            if pull is not None:
                out[rows] += pull
        return out

    def _read_carried(self) -> dict[tuple[Edit | None, Chunk], Tensor | None]:
        """Changes [b, t, c] so far: of each edit for every positive prompt, of the shared copy (None) for any other."""
        return {
            (edit, chunk): self._call.carried(edit, chunk)
            for chunk in self._call.chunks
            for edit in (self._edits if chunk.prompt.positive else (None,))
        }

    def _obstacle(self, layer: Layer) -> str | None:
        if not self._call.has_own_rows(layer):
            return REGIONS
        has_masks = any(edit.mask is not None for edit in self._weighted)
        return self._call.mask_obstacle(layer) if has_masks else None

    def _on_positive(self, layer: Layer, chunk: Chunk, text: Tensor) -> Tensor | None:
        """Each edit attends to its own context, and moves it. Returns what is added to the chunk's output."""
        q = layer.q[chunk.rows]
        outs, weights = [], []
        for edit in self._edits:
            if edit not in self._weighted and edit not in self._moving:
                continue
            context = moved(self._call.run.edit_rows(edit, chunk, layer.context), self._changes[edit, chunk])
            k = layer.keys_of(context)
            if edit in self._weighted:
                outs.append(layer.attend(q, k, layer.values_of(context), chunk.position))
                weights.append(self._weight(edit, chunk, layer))
            if edit in self._moving:
                self._move(edit, chunk, layer, q, k, edit.gamma_attn, edit.gamma_norm, repeats=None)
        return mix_contexts(text, outs, weights) if outs else None

    def _on_other(self, layer: Layer, chunk: Chunk, text: Tensor) -> Tensor | None:
        """All edits attend to the shared copy, which moves by the mean of their updates."""
        rows, change = chunk.rows, self._changes[None, chunk]
        if change is not None and change.shape[1] != layer.context.shape[1]:  # repeated beside a longer prompt
            change = self._changes[None, chunk] = change.repeat(1, layer.context.shape[1] // change.shape[1], 1)
        q, k, pull = layer.q[rows], layer.k[rows], None
        differs = change is not None or self._prompt_update.has_moved(layer.context, chunk)
        if differs:  # else the copy gives what the prompt itself gives
            context = moved(layer.context[rows], change)
            k = layer.keys_of(context)
            if self._weighted:
                v = layer.values_of(layer.value[rows] if layer.has_split_text else context)
                total = composition_weight_sum([self._weight(edit, chunk, layer) for edit in self._weighted])
                pull = mix_contexts(text, [layer.attend(q, k, v, chunk.position)], [total])
        if self._moving:
            gamma_attn = sum(edit.gamma_attn for edit in self._moving) / len(self._edits)
            gamma_norm = sum(edit.gamma_norm for edit in self._moving) / len(self._edits)
            repeats = self._call.repeats(layer)
            repeats = None if repeats is None else repeats[rows]
            self._move(None, chunk, layer, q, k, gamma_attn, gamma_norm, repeats)
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
        repeats: Tensor | None,
    ) -> None:
        unit = max(gamma_attn, gamma_norm)
        attention = layer.attend_exchanged
        step = key_step(k, q, layer.heads, attention, gamma_attn / unit, gamma_norm / unit, repeats=repeats)
        self._changes[edit, chunk] = accumulated(self._changes[edit, chunk], layer.project(step), unit)

    def _weight(self, edit: Edit, chunk: Chunk, layer: Layer) -> float | Tensor:
        """The edit's signed alpha; under a mask one for each image token, [b, n, 1]."""
        return edit.weight if edit.mask is None else edit.weight * self._call.mask_rows(edit.mask, [chunk], layer)
