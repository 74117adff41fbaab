"""Maps the batch rows of a denoiser call to the conditionings that they come from."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ebca_core import Area


@dataclass(frozen=True)
class CondEntry:
    """One entry of a conditioning: its role and, where they are known, its number of tokens and its area.

    The number matters where ComfyUI repeats prompts to a common length, and is None elsewhere.
    """

    positive: bool
    tokens: int | None = None
    area: Area | None = None


@dataclass(frozen=True, eq=False)
class Chunk:
    """The rows of a denoiser call that belong to one entry, and which image of the batch each row is."""

    position: int
    rows: slice
    entry: CondEntry
    cond: Hashable
    images: tuple[int, ...]


class BatchLayout:
    """The entries of the guider's conditionings in one run."""

    def __init__(
        self,
        conds: Mapping[str, Sequence[dict]],
        latent_size: tuple[int, int] | None,
        images: int | None,
        repeats_prompts: bool = True,
    ):
        """latent_size, images: height, width and batch of the run's latent, where they are known."""
        self._by_uuid = _by_uuid(conds, latent_size, repeats_prompts)
        self._images = images

    @property
    def positive(self) -> list[CondEntry]:
        return [entry for entry in self._by_uuid.values() if entry.positive]

    def chunks(self, transformer_options: Mapping[str, Any], batch: int) -> list[Chunk]:
        """The entries of a call with `batch` rows; empty if it is not known which rows belong to which.

        Core's rows are all images of one entry, then of the next. Packs that cut images into tiles have other orders.
        """
        indices = transformer_options.get("cond_or_uncond") or [0]
        uuids = transformer_options.get("uuids") or [None] * len(indices)
        if batch % len(indices) or len(uuids) != len(indices):
            return []
        size = batch // len(indices)
        images = _images(transformer_options, size, self._images)
        if images is None:
            return []
        chunks = []
        for position, (index, cond) in enumerate(zip(indices, uuids, strict=True)):
            entry = self._entry(cond, index)
            rows = slice(position * size, (position + 1) * size)
            chunks.append(Chunk(position, rows, entry, (cond, entry.positive), images))
        return chunks

    def _entry(self, cond: Hashable, index: int) -> CondEntry:
        """The entry with a uuid. The index in cond_or_uncond has other meanings in some guiders and packs.

        The index is used only where the guider has no conditionings. An entry that the guider does not know was added
        by another pack beside the positive one.
        """
        return self._by_uuid.get(cond) or CondEntry(positive=index == 0 and not self._by_uuid)


def make_uuids_unique(conds: Mapping[str, list[dict]]) -> None:
    """Give every entry of a run a uuid of its own: core copies entries with their uuid into other roles."""
    seen = set()
    for entries in conds.values():
        for position, entry in enumerate(entries):
            if entry["uuid"] in seen:
                entries[position] = entry = {**entry, "uuid": uuid.uuid4()}
            seen.add(entry["uuid"])


def _by_uuid(
    conds: Mapping[str, Sequence[dict]], latent_size: tuple[int, int] | None, repeats_prompts: bool
) -> dict[Hashable, CondEntry]:
    by_uuid: dict[Hashable, CondEntry] = {}
    if "positive" not in conds:
        return by_uuid
    for role, entries in conds.items():
        for entry in entries:
            context = entry.get("model_conds", {}).get("c_crossattn")
            by_uuid[entry["uuid"]] = CondEntry(
                positive=role == "positive",
                tokens=None if context is None or not repeats_prompts else context.cond.shape[1],
                area=_clipped(entry["area"], latent_size) if "area" in entry else None,
            )
    return by_uuid


def _clipped(area: Sequence[int], latent_size: tuple[int, int]) -> Area:
    dims = len(area) // 2  # of videos, frames come first
    (height, width), (top, left) = area[dims - 2 : dims], area[-2:]
    return min(height, latent_size[0] - top), min(width, latent_size[1] - left), top, left


def _images(transformer_options: Mapping[str, Any], size: int, batch: int | None) -> tuple[int, ...] | None:
    """Which images of the batch the rows of a chunk are: all, in order, unless a context window selects some."""
    window = transformer_options.get("context_window")
    if window is not None and getattr(window, "dim", None) == 0:
        anchor = getattr(window, "causal_anchor_index", None)  # put in front by the window, dropped afterwards
        images = (*([] if anchor is None else [anchor]), *window.index_list)
        if len(images) == size:
            return images
    return tuple(range(size)) if batch in (None, size) else None
