"""What is known about one call of the U-Net, before any of its layers runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from .layer import Layer
from .run import Chunk, Run

#: What is said where other packs leave EBCA without the rows or the grid it needs.
REGIONS = "another node splits the prompts into regions"
TILES = "another node cuts the image into tiles"
MERGED = "another node merges image tokens"


class Call:
    """One call: `context` [b, t, c] is what the U-Net was given, `latent_size` (height, width) what the model was."""

    def __init__(
        self, run: Run, sigma: float | None, latent_size: tuple[int, int], chunks: Sequence[Chunk], context: Tensor
    ):
        self.run = run
        self.sigma = sigma
        self.chunks = chunks
        self.context = context
        self._latent_size = latent_size

    def has_own_rows(self, layer: Layer) -> bool:
        """Whether the layer's rows are still the call's, so that it is known whose prompt each of them holds."""
        return layer.q.shape[0] == layer.k.shape[0] == self.context.shape[0]

    # --- masks ---

    def mask_obstacle(self, layer: Layer) -> str | None:
        """Why a mask cannot be placed on the layer's image tokens; None if it can."""
        if any(self._latent_size != self.run.expected_size(chunk, self._latent_size) for chunk in self.chunks):
            return TILES
        if layer.q.shape[1] != layer.grid[0] * layer.grid[1]:
            return MERGED
        return None

    def mask_rows(self, mask: Tensor, chunks: Sequence[Chunk], layer: Layer) -> Tensor:
        """Mask [b, height, width] -> [rows of the chunks, n, 1]."""
        return self.run.mask_rows(mask, chunks, self._latent_size, layer.grid, layer.q)

    # --- repeated tokens ---

    def repeats(self, layer: Layer) -> Tensor | None:
        """How often each row's own tokens stand in its keys, [b, 1, 1]; None where every row has them once."""
        if layer.context.shape == self.context.shape:
            return self._known_repeats
        return _found_repeats(layer.context)

    @cached_property
    def _known_repeats(self) -> Tensor | None:
        """ComfyUI repeats a prompt to the length of a longer one in the same call; the prompt's own length is known."""
        tokens = self.context.shape[1]
        counts = [tokens // (chunk.prompt.tokens or tokens) for chunk in self.chunks]
        if set(counts) == {1}:
            return None
        rows = [
            self.context.new_full((len(chunk.images), 1, 1), count, dtype=torch.float32)
            for chunk, count in zip(self.chunks, counts, strict=True)
        ]
        return torch.cat(rows)


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
