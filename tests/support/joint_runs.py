"""Runs of the toy models with joint attention. Needs a booted host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from support import oracle, toy_joint
from support.sampling import sample
from support.wiring import Ebca


def edits(family: str, lengths: Sequence[int] = (16, 24)) -> list[oracle.Edit]:
    """One that adds and one that removes, of other lengths than the prompt."""
    added, removed = lengths
    return [
        oracle.Edit(toy_joint.conditioning(family, 21, added), 0.75),
        oracle.Edit(toy_joint.conditioning(family, 22, removed), -0.5),
    ]


def composed(comfy, pack, model, case, masks=(), **inputs):
    """The MODEL with one EBCA Compose; masks: of the edits, [b, height, width] or None; inputs: further ones."""
    return Ebca(edits=case, edit_masks=masks, compose_inputs=inputs).on(comfy, pack, model)


def run(model, family: str, positive=None, negative=None, batch: int = 1, **options) -> Tensor:
    """The final latent of a short run."""
    positive = positive or toy_joint.conditioning(family, 1)
    negative = negative or toy_joint.conditioning(family, 2)
    latent = options.pop("latent", None) or {"samples": torch.zeros(toy_joint.shape(family, batch))}
    return sample(model, positive, negative, latent, **{"steps": 2, "scheduler": "simple", **options})
