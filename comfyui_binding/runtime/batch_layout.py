"""Maps the batch rows of a denoiser call to the conditionings that they come from."""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...ebca_core import Area
from ..pack_formats import frames_of_window, images_of_window
from . import notices


@dataclass(frozen=True)
class CondEntry:
    """One entry of a conditioning: its role and, where they are known, its number of tokens and its area.

    The number matters where ComfyUI repeats prompts to a common length, and is None elsewhere. span: the area of a
    video in time, how many frames and the first of them.
    """

    positive: bool
    tokens: int | None = None
    area: Area | None = None
    span: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Chunk:
    """The rows of a denoiser call that belong to one entry, and which image of the batch each row is.

    frames: of the videos, where a context window or an area has some of them only.
    """

    position: int
    rows: slice
    entry: CondEntry
    cond: Hashable
    images: tuple[int, ...]
    frames: tuple[int, ...] | None = None


@dataclass(frozen=True)
class CallRows:
    """The entries of one denoiser call; none where it is not known which rows belong to which, and why that is so."""

    chunks: Sequence[Chunk] = ()
    reason: str = notices.ROWS


class BatchLayout:
    """The entries of the guider's conditionings in one run."""

    def __init__(
        self,
        conds: Mapping[str, Sequence[dict]],
        latent_size: tuple[int, int] | None,
        images: int | None,
        repeats_prompts: bool = True,
        frames: int | None = None,
    ):
        """latent_size, images, frames: of the run's latent, where they are known: height and width, batch, time."""
        self._by_uuid = _by_uuid(conds, latent_size, repeats_prompts)
        self._texts = _positive_texts(conds)
        self._encoded = self._texts if repeats_prompts else _encoded_texts(conds)
        self._latent_size = latent_size
        self._images = images
        self._frames = frames

    @property
    def encoded_texts(self) -> Mapping[Hashable, Tensor]:
        """{uuid: text [b, t, c]} of the positive prompts, as the text encoder made them."""
        return self._encoded

    def text_of(self, chunk: Chunk) -> Tensor | None:
        """The text [b, t, c] that a call gets for a positive prompt; None where it is not known."""
        return self._texts.get(chunk.cond[0])

    def rows(self, transformer_options: Mapping[str, Any], batch: int, size: tuple[int, int]) -> CallRows:
        """The entries of a call with `batch` latents of `size`.

        Core's rows are all images of one entry, then of the next. Packs that cut images into tiles have other orders,
        and latents that are neither the whole image nor the area of a prompt.
        """
        indices = transformer_options.get("cond_or_uncond") or [0]
        uuids = transformer_options.get("uuids") or [None] * len(indices)
        if len(uuids) != len(indices):
            return CallRows()
        entries = [self._entry(cond, index) for index, cond in zip(indices, uuids, strict=True)]
        if any((entry.area[:2] if entry.area else self._latent_size or size) != size for entry in entries):
            return CallRows(reason=notices.TILES)
        if batch % len(indices):
            return CallRows()
        count = batch // len(indices)
        images = self._images_of(transformer_options, count)
        if images is None:
            return CallRows(reason=notices.FRAMES)
        window = frames_of_window(transformer_options)
        return CallRows([
            Chunk(
                position,
                slice(position * count, (position + 1) * count),
                entry,
                (cond, entry.positive),
                images,
                self._frames_of(entry, window),
            )
            for position, (entry, cond) in enumerate(zip(entries, uuids, strict=True))
        ])

    def _images_of(self, transformer_options: Mapping[str, Any], count: int) -> tuple[int, ...] | None:
        """Which images of the batch the `count` rows of an entry are: those of a window, or else all, in order."""
        window = images_of_window(transformer_options)
        if window is not None and len(window) == count and (self._images is None or max(window) < self._images):
            return window
        return tuple(range(count)) if self._images in (None, count) else None

    def _frames_of(self, entry: CondEntry, window: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Which frames an entry has in a call: those of a window, and of them those in its area."""
        if entry.span is None or (window is None and self._frames is None):
            return window
        count, first = entry.span
        return tuple(range(self._frames) if window is None else window)[first : first + count]

    def _entry(self, cond: Hashable, index: int) -> CondEntry:
        """The entry with a uuid. The index in cond_or_uncond has other meanings in some guiders and packs.

        The index is used only where the guider has no conditionings. An entry that the guider does not know was added
        by another pack beside the positive one.
        """
        return self._by_uuid.get(cond) or CondEntry(positive=index == 0 and not self._by_uuid)


def latent_shape(latent: Tensor, conds: Mapping[str, Any]) -> Sequence[int]:
    """The shape of a call's latent: of the picture, where the picture and its sound lie packed in one row of values.

    conds: the keyword arguments of apply_model, or the values of a conditioning's model_conds.
    """
    shapes = conds.get("latent_shapes") or ()
    return tuple(shapes[0]) if len(shapes) > 1 else tuple(latent.shape)


def make_uuids_unique(conds: Mapping[str, list[dict]]) -> None:
    """Give every entry of a run a uuid of its own: core copies entries with their uuid into other roles."""
    seen = set()
    for entries in conds.values():
        for position, entry in enumerate(entries):
            if entry["uuid"] in seen:
                entries[position] = entry = {**entry, "uuid": uuid.uuid4()}
            seen.add(entry["uuid"])


def _positive_texts(conds: Mapping[str, Sequence[dict]]) -> dict[Hashable, Tensor]:
    contexts = {entry["uuid"]: entry.get("model_conds", {}).get("c_crossattn") for entry in conds.get("positive", ())}
    return {cond: context.cond for cond, context in contexts.items() if context is not None and context.cond.ndim == 3}


def _encoded_texts(conds: Mapping[str, Sequence[dict]]) -> dict[Hashable, Tensor]:
    """Some models change a text before its calls: Anima and LTX-2 by an adapter, Stable Audio by rows behind it."""
    return {
        entry["uuid"]: entry["cross_attn"] for entry in conds.get("positive", ()) if entry.get("cross_attn") is not None
    }


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
                span=_span(entry.get("area", ())),
            )
    return by_uuid


def _clipped(area: Sequence[int], latent_size: tuple[int, int]) -> Area:
    dims = len(area) // 2  # of videos, frames come first
    (height, width), (top, left) = area[dims - 2 : dims], area[-2:]
    return min(height, latent_size[0] - top), min(width, latent_size[1] - left), top, left


def _span(area: Sequence[int]) -> tuple[int, int] | None:
    """The frames of an area of a video, and the first of them."""
    return (area[0], area[3]) if len(area) == 6 else None
