"""The changes of edit contexts that are kept from one call of the denoiser to the next."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batch_layout import Chunk
from .settings import Edit

#: An edit (None: the copy of the negative prompt that all edits share), its prompt, the images of the call, and the
#: stream, where the network reads several texts.
CallKey = tuple[Edit | None, Hashable, tuple[int, ...], str]


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
    """Changes of edit contexts by edit, prompt, image and stream. Calls may come in several threads."""

    def __init__(self):
        self._carried: dict[tuple[Edit | None, Hashable, int], dict[str, _Carried]] = {}
        self._lock = threading.Lock()

    def load(self, edit: Edit | None, chunk: Chunk, device: torch.device, sigma: float | None) -> dict[str, Tensor]:
        """The changes so far of the contexts that have moved, for each row of a chunk: {stream: [b, t, c]}."""
        carried, loaded = [self._carried.get((edit, chunk.cond, image), {}) for image in chunk.images], {}
        for stream in dict.fromkeys(stream for streams in carried for stream in streams):
            changes = [
                streams[stream].at(sigma, chunk.images) if stream in streams else None for streams in carried
            ]
            known = next((change for change in changes if change is not None), None)
            if known is not None:
                rows = [torch.zeros_like(known) if change is None else change for change in changes]
                loaded[stream] = torch.stack([row.to(device) for row in rows])
        return loaded

    def store(self, changes: Mapping[CallKey, Tensor], sigma: float | None) -> None:
        """Keep the changes [b, t, c] of a call at a sigma."""
        with self._lock:
            for (edit, cond, images, stream), rows in changes.items():
                for image, row in zip(images, rows, strict=True):
                    streams = self._carried.get((edit, cond, image), {})
                    carried = streams.get(stream)
                    if carried is None or carried.sigma != sigma:
                        before = None if carried is None else carried.last
                        carried = _Carried(sigma, before)
                        self._carried[edit, cond, image] = {**streams, stream: carried}
                    carried.by_window.setdefault(images, row)
