"""The changes of edit contexts that are kept from one call of the denoiser to the next."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batch_layout import Chunk
from .settings import Edit

#: An edit (None: the copy of the negative prompt that all edits share), its prompt, and the images of the call.
CallKey = tuple[Edit | None, Hashable, tuple[int, ...]]


@dataclass
class _Carried:
    """The change [t, c] of one context: before the calls at `sigma`, and as each window of images has left it."""

    sigma: float
    before: Tensor | None
    by_window: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def at(self, sigma: float, window: tuple[int, ...]) -> Tensor | None:
        """What a call at a sigma starts from. Calls of two windows at one sigma do not see each other's changes."""
        return self.by_window.get(window, self.before) if sigma == self.sigma else self.last

    @property
    def last(self) -> Tensor | None:
        """Of consecutive calls for one prompt and image at one sigma (PAG, SAG, other windows) the first counts."""
        return next(iter(self.by_window.values()), self.before)


class CarriedContexts:
    """Changes of edit contexts by edit, prompt and image. Calls may come in several threads."""

    def __init__(self):
        self._carried: dict[tuple[Edit | None, Hashable, int], _Carried] = {}
        self._lock = threading.Lock()

    def load(self, edit: Edit | None, chunk: Chunk, device: torch.device, sigma: float | None) -> Tensor | None:
        """The change of a context so far for each row of a chunk, [b, t, c]; None if it has not moved."""
        carried = [self._carried.get((edit, chunk.cond, image)) for image in chunk.images]
        changes = [None if one is None else one.at(sigma, chunk.images) for one in carried]
        known = next((change for change in changes if change is not None), None)
        if known is None:
            return None
        rows = [torch.zeros_like(known) if change is None else change for change in changes]
        return torch.stack([row.to(device) for row in rows])

    def store(self, changes: Mapping[CallKey, Tensor], sigma: float | None) -> None:
        """Keep the changes [b, t, c] of a call at a sigma."""
        with self._lock:
            for (edit, cond, images), rows in changes.items():
                for image, row in zip(images, rows, strict=True):
                    key = (edit, cond, image)
                    carried = self._carried.get(key)
                    if carried is None or carried.sigma != sigma:
                        before = None if carried is None else carried.last
                        carried = self._carried[key] = _Carried(sigma, before)
                    carried.by_window.setdefault(images, row)
