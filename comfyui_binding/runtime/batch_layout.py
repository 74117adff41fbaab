"""Whose rows are whose: the prompts of a run, found again among the rows of each call of the U-Net."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Area = tuple[int, ...]  # height, width, top, left, in latent pixels


@dataclass(frozen=True)
class Prompt:
    """One entry of a conditioning: its role, its own number of tokens and its area, where these are known."""

    positive: bool
    tokens: int | None = None
    area: Area | None = None


@dataclass(frozen=True, eq=False)
class Chunk:
    """The rows of a U-Net call that belong to one prompt, and which image of the batch each of them is."""

    position: int
    rows: slice
    prompt: Prompt
    cond: Hashable
    images: tuple[int, ...]


class Prompts:
    """The guider's prompts of one run."""

    def __init__(self, conds: Mapping[str, Sequence[dict]], latent_size: tuple[int, int] | None, images: int | None):
        """latent_size, images: height, width and batch of the run's latent, where they are known."""
        self._by_uuid = _by_uuid(conds, latent_size)
        self._images = images

    @property
    def positive(self) -> list[Prompt]:
        return [prompt for prompt in self._by_uuid.values() if prompt.positive]

    def chunks(self, transformer_options: Mapping[str, Any], batch: int) -> list[Chunk]:
        """The prompts of a call with `batch` rows; none if it is not known which rows are whose.

        Core's rows are all images of one prompt, then of the next. Packs that cut images into tiles have other orders.
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
            prompt = self._found(cond, index)
            rows = slice(position * size, (position + 1) * size)
            chunks.append(Chunk(position, rows, prompt, (cond, prompt.positive), images))
        return chunks

    def _found(self, cond: Hashable, index: int) -> Prompt:
        """The index in cond_or_uncond is only a position: other guiders and packs give it other meanings.

        It decides where the guider says nothing. A prompt that the guider does not know is one that a pack brought in
        beside the positive one.
        """
        return self._by_uuid.get(cond) or Prompt(positive=index == 0 and not self._by_uuid)


def tell_apart(conds: Mapping[str, list[dict]]) -> None:
    """Give every entry of a run a uuid of its own: core copies one, uuid and all, into other roles to cover an area."""
    seen = set()
    for entries in conds.values():
        for position, entry in enumerate(entries):
            if entry["uuid"] in seen:
                entries[position] = entry = {**entry, "uuid": uuid.uuid4()}
            seen.add(entry["uuid"])


def _by_uuid(conds: Mapping[str, Sequence[dict]], latent_size: tuple[int, int] | None) -> dict[Hashable, Prompt]:
    prompts: dict[Hashable, Prompt] = {}
    if "positive" not in conds:
        return prompts
    for role, entries in conds.items():
        for entry in entries:
            context = entry.get("model_conds", {}).get("c_crossattn")
            prompts[entry["uuid"]] = Prompt(
                positive=role == "positive",
                tokens=None if context is None else context.cond.shape[1],
                area=_clipped(entry["area"], latent_size) if "area" in entry else None,
            )
    return prompts


def _clipped(area: Sequence[int], latent_size: tuple[int, int]) -> Area:
    height, width, top, left = area
    return min(height, latent_size[0] - top), min(width, latent_size[1] - left), top, left


def _images(transformer_options: Mapping[str, Any], size: int, batch: int | None) -> tuple[int, ...] | None:
    """Which images of the batch the rows of a chunk are: all, in order, unless a context window picked some."""
    window = transformer_options.get("context_window")
    if window is not None and getattr(window, "dim", None) == 0:
        anchor = getattr(window, "causal_anchor_index", None)  # an image that comes in front, to be dropped afterwards
        images = (*([] if anchor is None else [anchor]), *window.index_list)
        if len(images) == size:
            return images
    return tuple(range(size)) if batch in (None, size) else None
