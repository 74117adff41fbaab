"""Runs of the toy transformers with EBCA, through the nodes and by hand, from one description. Needs a booted host."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from support import oracle, toy_dit, transformer_oracle, wiring
from support.sampling import sample

#: Lengths of the two edits; HunyuanDiT's texts have at least 12 tokens.
EDIT_TOKENS = (9, 12)
LONG_EDIT_TOKENS = (15, 12)


@dataclass(frozen=True, eq=False)
class Ebca(wiring.Ebca):
    """Updates and edits on a toy transformer; an edit's text is a CONDITIONING."""

    @contextmanager
    def applied(self, family: str, model, **more: Any):
        """While this lasts, one run of the plain MODEL computes it by hand; more: as transformer_oracle.Ebca takes."""
        ebca = transformer_oracle.Ebca(family, model, self.updates, self.edits, **more)
        with transformer_oracle.applied(ebca):
            yield


def edits(family: str, lengths: Sequence[int] | None = None) -> tuple[oracle.Edit, oracle.Edit]:
    """One edit that adds and one that removes, with gammas of their own."""
    added, removed = lengths or (LONG_EDIT_TOKENS if family == "hydit" else EDIT_TOKENS)
    gamma_norm = 0.0 if family in toy_dit.KEY_NORMS else 0.005
    return (
        oracle.Edit(toy_dit.conditioning(family, 21, added), 0.75, 0.05, gamma_norm),
        oracle.Edit(toy_dit.conditioning(family, 22, removed), -0.5, 0.03, 0.0),
    )


def update(family: str, **more: Any) -> oracle.Update:
    """Large enough to be felt; the norm term only where keys are not normalised."""
    return oracle.Update(0.05, 0.0 if family in toy_dit.KEY_NORMS else 0.005, **more)


def ebca(family: str) -> Ebca:
    """An update and two edits."""
    return Ebca([update(family)], edits(family))


def run(model, family: str, positive=None, negative=None, batch: int = 1, frames: int | None = None, **options: Any):
    """The final latent of a short run."""
    positive = positive or toy_dit.conditioning(family, 1)
    negative = negative or toy_dit.conditioning(family, 2)
    latent = options.pop("latent", None) or {"samples": torch.zeros(toy_dit.shape(family, batch, frames))}
    return sample(model, positive, negative, latent, **{"steps": 3, "scheduler": "simple", **options})


class LayerCall(NamedTuple):
    """What a cross-attention module got: its path, x [b, n, c_x], other arguments, and the text [b, t, c] it read."""

    path: str
    module: Any
    x: Tensor
    args: tuple
    kwargs: dict
    text: Tensor

    def queries(self, family: str, row: int) -> Tensor:
        """[n, (h d)]."""
        with torch.no_grad():
            return transformer_oracle.FAMILIES[family].queries(self.module, self.x[row], self.args)

    def visible(self, row: int) -> Tensor | None:
        """Which tokens are not masked, where the layer has a mask."""
        mask = self.kwargs.get("mask")
        return None if mask is None else mask[row].reshape(-1) > -1


@contextmanager
def watched(model, family: str):
    """While this lasts: a LayerCall for every call of a cross-attention module of the MODEL, in their order."""
    seen, hooks = [], []
    for path, module in transformer_oracle.modules(family, model.model.diffusion_model).items():

        def note(module, args, kwargs, out, path=path):  # args as pre-hooks have changed them
            args = list(args)
            text = kwargs["context"] if "context" in kwargs else args.pop(1)
            text = text.clone().reshape(len(args[0]), -1, text.shape[-1])[:, kwargs.get("context_img_len") or 0 :]
            seen.append(LayerCall(path, module, args[0].clone(), tuple(args[1:]), kwargs, text))

        hooks.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()

