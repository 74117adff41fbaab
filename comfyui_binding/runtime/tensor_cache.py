"""Tensors of the settings on the run's device, and what is derived from them once a run."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import comfy.model_management
import torch
from torch import Tensor

from ...ebca_core import mask_tokens
from .batch_layout import Chunk
from .settings import Edit, Settings

Made = TypeVar("Made")


class TensorCache:
    """latent_size, frames: height, width and frames of the run's latent, where they are known."""

    def __init__(self, settings: Settings, latent_size: tuple[int, int] | None, frames: int | None = None):
        self._settings = settings
        self._latent_size = latent_size
        self._frames = frames
        self._cache: dict[Hashable, Any] = {}

    def cached(self, key: Hashable, factory: Callable[[], Made]) -> Made:
        """The result of `factory`, computed once a run."""
        if key not in self._cache:
            self._cache[key] = factory()
        return self._cache[key]

    def cast(self, tensor: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A tensor of the settings on the device of `like`, in its type or the given one; copied there once a run."""
        device, dtype = like.device, dtype or like.dtype
        non_blocking = comfy.model_management.device_supports_non_blocking(device)
        key = ("cast", id(tensor), device, dtype)
        return self.cached(key, lambda: tensor.to(device, dtype, non_blocking=non_blocking))

    def prefetch(self, like: Tensor) -> None:
        """Copy all of them before the first layer asks, where the copy would make the host wait for the device."""
        for edit in self._settings.edits:
            self.cast(edit.context, like)
        for setting in (*self._settings.updates, *self._settings.edits):
            if setting.mask is not None:
                self.cast(setting.mask, like, torch.float32)

    def edit_rows(self, edit: Edit, chunk: Chunk, like: Tensor) -> Tensor:
        """An edit's context for each row of a chunk, [b, t, c]: copies, as fast fp8 layers clamp inputs in place."""
        context = self.cast(edit.context, like)
        key = ("edit", edit, chunk.images, like.device, like.dtype)
        return self.cached(key, lambda: rows_of_images(context, chunk))

    def mask_rows(
        self, mask: Tensor, chunks: Sequence[Chunk], latent_size: tuple[int, int], grid: tuple[int, ...], like: Tensor
    ) -> Tensor:
        """Mask [b, height, width] -> [rows of the chunks, n, 1] on a layer's grid, cropped to the prompts' areas.

        latent_size: of the whole image, where the run itself does not know it.
        """
        size, count = self._latent_size or latent_size, self._frames
        regions = tuple((chunk.entry.area, chunk.images, chunk.frames) for chunk in chunks)
        key = ("mask", id(mask), regions, grid, like.device, like.dtype)

        def make() -> Tensor:
            cast = self.cast(mask, like, torch.float32)
            rows = [
                mask_tokens(cast, images, size, area, grid, (frames, count) if frames and count else None)
                for area, images, frames in regions
            ]
            return torch.cat(rows).to(like.dtype)

        return self.cached(key, make)


def rows_of_images(tensor: Tensor, chunk: Chunk) -> Tensor:
    """One row for each image of a chunk; fewer rows than images repeat."""
    return torch.stack([tensor[image % tensor.shape[0]] for image in chunk.images])
