"""The composition of edits, through one call of the U-Net."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ebca_core import composition_weight_sum, key_step, mix_contexts
from ..trace.recorder import CallReadings
from .batch_layout import Chunk
from .layer import Layer, accumulated, moved
from .prompt_update import PromptUpdate
from .settings import Edit
from .unet_call import REGIONS, UNetCall


@dataclass(eq=False)
class _Strand:
    """A context that a chunk's rows attend to in one layer: an edit's, or (edit None) the copy that all edits share.

    text and value_text [b, t, c] give keys and values; no text where the layer's own keys serve, no value_text where
    the strand is not mixed in.
    """

    edit: Edit | None
    chunk: Chunk
    text: Tensor | None = None
    value_text: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None


class EditComposition:
    """Edits have a context for each positive prompt; on any other prompt they share one copy of that prompt's own.

    All of these move, layer by layer, and are carried to the next call.
    """

    def __init__(self, call: UNetCall, prompt_update: PromptUpdate, readings: CallReadings | None):
        run = call.run
        self._call = call
        self._prompt_update = prompt_update
        self._readings = readings
        self._edits = run.settings.edits
        self._weighted = run.weights(call.sigma)
        self._moving = run.gammas(call.sigma)
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
            self._call.run.warn_once(f"EBCA leaves out the edits, for {obstacle}. Remove that node to have them there.")
            return out
        strands = [strand for chunk in self._call.chunks for strand in self._strands(layer, chunk)]
        _attach_keys_and_values(layer, strands)
        if has_other_branches or "optimized_attention_override" in layer.options:
            out = out.clone()  # the pack that made it may hold on to it
        for chunk in self._call.chunks:
            weighted = [strand for strand in strands if strand.chunk is chunk and strand.v is not None]
            if weighted:
                out[chunk.rows] += self._pull(layer, chunk, weighted, out[chunk.rows], has_other_branches)
        moving = [strand for strand in strands if strand.edit is None or strand.edit in self._moving]
        changes = self._move(moving, layer) if self._moving else {}
        if self._readings is not None:
            self._read(layer, strands, changes)
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

    def _strands(self, layer: Layer, chunk: Chunk) -> list[_Strand]:
        return self._own(layer, chunk) if chunk.prompt.positive else self._shared(layer, chunk)

    def _own(self, layer: Layer, chunk: Chunk) -> list[_Strand]:
        """Each edit's own context, for a positive prompt."""
        strands = []
        for edit in self._edits:
            if edit in self._weighted or edit in self._moving:
                text = moved(self._call.run.edit_rows(edit, chunk, layer.context), self._changes[edit, chunk])
                strands.append(_Strand(edit, chunk, text, text if edit in self._weighted else None))
        return strands

    def _shared(self, layer: Layer, chunk: Chunk) -> list[_Strand]:
        """The shared copy of any other prompt. As long as it equals the prompt itself, so do its outputs."""
        rows, change = chunk.rows, self._changes[None, chunk]
        tokens = layer.context.shape[1]
        if change is not None and change.shape[1] != tokens:  # repeated beside a longer prompt, or no more
            if tokens % change.shape[1] and change.shape[1] % tokens:
                self._call.run.warn_once(
                    "EBCA leaves out the edits on the negative prompt of some layers, for another node changes its "
                    "length between layers. Remove that node to have the edits there."
                )
                return []
            change = change.repeat(1, max(1, tokens // change.shape[1]), 1)[:, :tokens]
            self._changes[None, chunk] = change
        if change is None and not self._prompt_update.has_moved(layer.context, chunk):
            return [_Strand(None, chunk, k=layer.k[rows])] if self._moving else []
        text = moved(layer.context[rows], change)
        value_text = layer.value[rows] if layer.has_split_text else text
        return [_Strand(None, chunk, text, value_text if self._weighted else None)]

    def _pull(
        self, layer: Layer, chunk: Chunk, strands: Sequence[_Strand], out: Tensor, has_other_branches: bool
    ) -> Tensor:
        """What is added to the chunk's output."""
        q, position = layer.q[chunk.rows], chunk.position
        if has_other_branches:
            out = layer.attend(q, layer.k[chunk.rows], layer.v[chunk.rows], position)
        outs = [layer.attend(q, strand.k, strand.v, position) for strand in strands]
        return mix_contexts(out, outs, [self._weight(strand, layer) for strand in strands])

    def _move(self, strands: Sequence[_Strand], layer: Layer) -> dict[_Strand, Tensor]:
        """Move the strands' contexts. Gives the changes [b, t, c], in units of the strand's larger gamma."""
        gammas = [self._gammas(strand) for strand in strands]
        steps = [self._step(strand, layer, *both) for strand, both in zip(strands, gammas, strict=True)]
        changes = dict(zip(strands, _together(layer.project, steps), strict=True))
        for (strand, change), both in zip(changes.items(), gammas, strict=True):
            key = (strand.edit, strand.chunk)
            self._changes[key] = accumulated(self._changes[key], change, max(both))
        return changes

    def _read(self, layer: Layer, strands: Sequence[_Strand], changes: Mapping[_Strand, Tensor]) -> None:
        """Have the edits' own contexts read for traces."""
        for strand in strands:
            if strand.edit is not None:
                unit, number = max(self._moving.get(strand.edit, (0.0, 0.0))), self._edits.index(strand.edit)
                encoded = self._call.run.edit_rows(strand.edit, strand.chunk, layer.context)
                self._readings.read_edit(layer, number, strand.chunk, strand.k, changes.get(strand), unit, encoded)

    def _gammas(self, strand: _Strand) -> tuple[float, float]:
        """An edit's own gammas; the shared copy moves by the mean of the edits' updates."""
        if strand.edit is not None:
            return self._moving[strand.edit]
        count = len(self._edits)
        return tuple(sum(gammas) / count for gammas in zip(*self._moving.values(), strict=True))

    def _step(self, strand: _Strand, layer: Layer, gamma_attn: float, gamma_norm: float) -> Tensor:
        """The step in the keys, in units of the larger gamma."""
        repeats = self._call.repeats(layer) if strand.edit is None else None  # edits are never repeated
        return key_step(
            strand.k,
            layer.q[strand.chunk.rows],
            layer.heads,
            layer.attend_exchanged,
            gamma_attn / max(gamma_attn, gamma_norm),
            gamma_norm / max(gamma_attn, gamma_norm),
            repeats=None if repeats is None else repeats[strand.chunk.rows],
        )

    def _weight(self, strand: _Strand, layer: Layer) -> float | Tensor:
        """A strand's weight in the composition: an edit's own, or all of them."""
        edits = self._weighted if strand.edit is None else [strand.edit]
        return composition_weight_sum([self._edit_weight(edit, strand.chunk, layer) for edit in edits])

    def _edit_weight(self, edit: Edit, chunk: Chunk, layer: Layer) -> float | Tensor:
        """The edit's signed alpha; under a mask one for each image token, [b, n, 1]."""
        weight = self._weighted[edit]
        return weight if edit.mask is None else weight * self._call.mask_rows(edit.mask, [chunk], layer)


def _attach_keys_and_values(layer: Layer, strands: Sequence[_Strand]) -> None:
    read = [strand for strand in strands if strand.text is not None]
    for strand, k in zip(read, _together(layer.keys_of, [strand.text for strand in read]), strict=True):
        strand.k = k
    seen = [strand for strand in read if strand.value_text is not None]
    for strand, v in zip(seen, _together(layer.values_of, [strand.value_text for strand in seen]), strict=True):
        strand.v = v


def _together(linear: Callable[[Tensor], Tensor], texts: Sequence[Tensor]) -> Sequence[Tensor]:
    """`linear` of every text [b, t, c]: at once where they are of one length, as that costs little more than one."""
    if len(texts) < 2 or len({text.shape[1] for text in texts}) > 1:
        return [linear(text) for text in texts]
    return linear(torch.cat(list(texts))).split([text.shape[0] for text in texts])
