"""One image of a batch as a run of its own: its noise, its prompts, and what makes it again without the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ..runtime.settings import row_of

#: How far into a batch noise is looked for. Latent From Batch counts from 0.
LAST_PLACE = 256
#: What an entry of a conditioning has for each image, where it has several rows.
PER_IMAGE = ("cross_attn", "pooled_output", "mask", "concat_latent_image", "concat_mask")


def noise_at(place: int, seed: int, like: Tensor) -> Tensor:
    """The noise [1, ...] of a place in a batch of a seed, as ComfyUI makes it for one latent of Latent From Batch.

    It also leaves torch's own random numbers where they are then, for samplers that draw from them.
    """
    return comfy.sample.prepare_noise(like[:1], seed, [place])


def places_in_batch(noise: Tensor, seed: int) -> list[int] | None:
    """Which place in the batch of a seed each row of the noise [b, ...] is from; None where it is other noise."""
    generator = torch.Generator().manual_seed(seed)
    count, rows = noise.shape[0], noise.cpu()
    if torch.equal(comfy.sample.prepare_noise_inner(noise, generator), rows):
        return list(range(count))
    generator.manual_seed(seed)
    places: dict[int, int] = {}
    for place in range(LAST_PLACE):
        one = comfy.sample.prepare_noise_inner(noise[:1], generator)[0]
        places |= {row: place for row in range(count) if row not in places and torch.equal(rows[row], one)}
        if len(places) == count:
            return [places[row] for row in range(count)]
    return None


def conds_of_image(conds: Mapping[str, Sequence[dict]], image: int, images: int) -> dict[str, list[dict]]:
    """A guider's conditionings for a run of one image of a batch. Raises ValueError for what cannot be taken apart."""
    return {role: [_entry_of_image(entry, image, images) for entry in entries] for role, entries in conds.items()}


def _entry_of_image(entry: Mapping[str, Any], image: int, images: int) -> dict[str, Any]:
    if images == 1:
        return dict(entry)
    control = entry.get("control")
    while control is not None:
        if _rows(getattr(control, "cond_hint_original", None)) > 1:
            raise not_single("a ControlNet has a picture for each image")
        control = getattr(control, "previous_controlnet", None)
    several = [name for name, value in entry.items() if name not in PER_IMAGE and _rows(value) > 1]
    if several:
        raise not_single(f"the prompt has {', '.join(several)} for several images")
    return {**entry, **{name: row_of(entry[name], image) for name in PER_IMAGE if _rows(entry.get(name)) > 1}}


def _rows(value: Any) -> int:
    """How many rows a tensor has, or the largest of a list."""
    if isinstance(value, Tensor):
        return value.shape[0] if value.ndim > 1 else 1
    return max(map(_rows, value), default=1) if isinstance(value, list | tuple) else 1


def not_single(reason: str) -> ValueError:
    return ValueError(
        f"EBCA Reroll samples the images of a batch one after another, and {reason}. Use a batch of one, or remove "
        "EBCA Reroll."
    )
