"""The changes of edit contexts that are kept from one call of the denoiser to the next."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor

from .batch_layout import Chunk
from .settings import Edit

#: An edit (None: the copy of the negative prompt that all edits share), its prompt, and the image of the batch.
CarryKey = tuple[Edit | None, Hashable, int]


class CarriedContexts:
    """Changes [t, c] by CarryKey, with the sigma at which they were stored. Calls may come in several threads."""

    def __init__(self):
        self._changes: dict[CarryKey, tuple[Tensor, float]] = {}
        self._lock = threading.Lock()

    def load(self, edit: Edit | None, chunk: Chunk, device: torch.device) -> Tensor | None:
        """The change of a context so far for each row of a chunk, [b, t, c]; None if it has not moved."""
        changes = [self._changes.get((edit, chunk.cond, image)) for image in chunk.images]
        known = next((change for change, _ in filter(None, changes)), None)
        if known is None:
            return None
        rows = [torch.zeros_like(known) if change is None else change[0] for change in changes]
        return torch.stack([row.to(device) for row in rows])

    def store(self, changes: Mapping[CarryKey, Tensor], sigma: float) -> None:
        """Keep changes [t, c]. Of consecutive calls for one prompt at one sigma (PAG, SAG) the first counts."""
        with self._lock:
            for key, change in changes.items():
                if key not in self._changes or self._changes[key][1] != sigma:
                    self._changes[key] = (change, sigma)
