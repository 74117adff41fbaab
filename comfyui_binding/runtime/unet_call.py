"""What is known about one call of the U-Net, before any of its layers runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..architectures.unet import LayerKey
from ..shared_on_deepcopy import CopiedAsItself
from ..trace.recorder import CallReadings
from .batch_layout import Chunk
from .layer import Layer
from .sampling_run import CarryKey, Run
from .settings import Edit

#: What is said where other packs leave EBCA without the rows or the grid it needs.
REGIONS = "another node splits prompts into regions or images into tiles"
MERGED = "another node merges image tokens"
LENGTHS = "another node changes the prompt's length in the layers"


@dataclass(frozen=True, eq=False)
class ModelCall(CopiedAsItself):
    """One call of the model with EBCA on. latent_size: height and width of what the model was given."""

    run: Run
    sigma: float | None
    #: The same, where the model has it: reading it would make the host wait for the device.
    sigma_on_device: Tensor
    latent_size: tuple[int, int]
    #: What is carried on when the call ends. Of a U-Net that runs twice in it, both begin alike and the last counts.
    changes: dict[CarryKey, Tensor] = field(default_factory=dict)


class UNetCall:
    """One call of the U-Net in it; `context` [b, t, c] is what the U-Net was given."""

    def __init__(self, model_call: ModelCall, chunks: Sequence[Chunk], context: Tensor):
        self.run = model_call.run
        self.sigma = model_call.sigma
        self.chunks = chunks
        self.context = context
        self._model_call = model_call
        self._latent_size = model_call.latent_size

    # --- what is read for traces ---

    def readings(self, names: Mapping[LayerKey, str]) -> CallReadings | None:
        """What this call is to read, with the layers' names; None without traces."""
        run = self.run.readings
        return None if run is None else CallReadings(names, self.chunks, self.context, run.wants_maps)

    def keep(self, readings: CallReadings) -> None:
        self.run.readings.add(readings, self._model_call.sigma_on_device)

    # --- what is carried ---

    def carried(self, edit: Edit | None, chunk: Chunk) -> Tensor | None:
        return self.run.carried(edit, chunk, self.context.device)

    def carry_on(self, edit: Edit | None, chunk: Chunk, change: Tensor) -> None:
        """Have the model call commit a change [b, t, c] of an edit's context, or (edit None) of the shared one."""
        repeats = 1 if edit is not None else self.context.shape[1] // (chunk.prompt.tokens or self.context.shape[1])
        own = change[:, : change.shape[1] // repeats]
        for row, image in zip(own, chunk.images, strict=True):
            self._model_call.changes[edit, chunk.cond, image] = row

    def has_own_rows(self, layer: Layer) -> bool:
        """Whether the layer's rows are still the call's, so that it is known whose prompt each of them holds."""
        return bool(self.chunks) and layer.q.shape[0] == layer.k.shape[0] == self.context.shape[0]

    def has_own_lengths(self, layer: Layer) -> bool:
        """Whether the layer's texts still have the call's lengths, so that it is known whose word each token is."""
        return layer.context.shape == self.context.shape

    # --- rows ---

    def is_one_text(self, layer: LayerKey, context: Tensor, value: Tensor) -> bool:
        """Whether a layer's keys and values get the same text. Two equal tensors are compared once a run and layer."""
        if value is context or value.shape != context.shape:
            return value is context
        if not self.chunks:
            return torch.equal(context, value)
        key = ("one text", layer, context.shape, tuple(chunk.cond for chunk in self.chunks))
        return self.run.kept(key, lambda: torch.equal(context, value))

    # --- masks ---

    def mask_obstacle(self, layer: Layer) -> str | None:
        """Why a mask cannot be placed on the layer's image tokens; None if it can."""
        if layer.q.shape[1] != layer.grid[0] * layer.grid[1]:
            return MERGED
        return None

    def map_obstacle(self, layer: Layer) -> str | None:
        """Why the layer's attention is no map of the prompt's tokens; None if it is."""
        if not self.has_own_lengths(layer):
            return LENGTHS
        return self.mask_obstacle(layer)

    def mask_rows(self, mask: Tensor, chunks: Sequence[Chunk], layer: Layer) -> Tensor:
        """Mask [b, height, width] -> [rows of the chunks, n, 1]."""
        return self.run.mask_rows(mask, chunks, self._latent_size, layer.grid, layer.q)

    # --- repeated tokens ---

    def repeats(self, layer: Layer) -> Tensor | None:
        """How often each row's own tokens stand in its keys, [b, 1, 1]; None where every row has them once."""
        if self._are_lengths_known and self.has_own_lengths(layer):
            return self._known_repeats
        return _found_repeats(layer.context)

    @property
    def _are_lengths_known(self) -> bool:
        return bool(self.chunks) and all(chunk.prompt.tokens for chunk in self.chunks)

    @cached_property
    def _known_repeats(self) -> Tensor | None:
        """ComfyUI repeats a prompt to the length of a longer one in the same call; the prompt's own length is known."""
        tokens = self.context.shape[1]
        counts = [tokens // chunk.prompt.tokens for chunk in self.chunks]
        if set(counts) == {1}:
            return None
        rows = [
            self.context.new_full((len(chunk.images), 1, 1), count, dtype=torch.float32)
            for chunk, count in zip(self.chunks, counts, strict=True)
        ]
        return torch.cat(rows)


def _found_repeats(context: Tensor) -> Tensor:
    """How often each row of a context [b, t, c] repeats its first tokens -> [b, 1, 1].

    ComfyUI batches prompts up to four times as long as the first: the least common multiple of three lengths can be
    twelve times the shortest.
    """
    tokens = context.shape[1]
    repeats = torch.ones(context.shape[0], dtype=torch.float32, device=context.device)
    for count in range(2, 13):
        if tokens % count == 0:
            own = tokens // count
            same = (context[:, own:] == context[:, :-own]).all(dim=2).all(dim=1)
            repeats = torch.where(same, float(count), repeats)
    return repeats.view(-1, 1, 1)
