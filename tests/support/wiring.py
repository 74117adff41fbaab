"""The nodes and the hand-made computation (oracle.py) from one description. Needs a booted host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from support import oracle, toy
from support.host import node


@dataclass(frozen=True, eq=False)
class Ebca:
    """Updates and edits, as the hand-made computation takes them.

    edit_masks [b, height, width] or None; compose_inputs: further ones of EBCACompose.
    """

    updates: Sequence[oracle.Update] = ()
    edits: Sequence[oracle.Edit] = ()
    edit_masks: Sequence[torch.Tensor | None] = ()
    compose_inputs: Mapping[str, Any] = field(default_factory=dict)

    def on(self, comfy, pack, model, **update_inputs: Any):
        """The MODEL with the nodes; update_inputs go to every EBCAContextUpdate."""
        for update in self.updates:
            model = _updated(comfy, pack, model, update, update_inputs)
        masks = self.edit_masks or [None] * len(self.edits)
        edits = {
            f"edit{i}": _edit(comfy, edit, mask) for i, (edit, mask) in enumerate(zip(self.edits, masks, strict=True))
        }
        if not edits:
            return model
        return node(comfy, "EBCACompose").execute(model=model, edits=edits, **self.compose_inputs)[0]

    @contextmanager
    def by_hand(self, model, positive: list, negative: list):
        """While this lasts, one run of the plain MODEL computes it by hand, with the texts of both conditionings."""
        prompts = [
            oracle.Prompt(text, role) for role, cond in ((True, positive), (False, negative)) for text in texts(cond)
        ]
        sampling = model.get_model_object("model_sampling")
        with oracle.applied(oracle.Ebca(sampling, prompts, self.updates, self.edits), model) as run:
            yield run


def texts(conditioning: list) -> list[torch.Tensor]:
    """The contexts [t, c] of a conditioning, one for each prompt and image."""
    return [row for text, _ in conditioning for row in text]


def text(seed: int, tokens: int = 77) -> torch.Tensor:
    """The context [t, c] of `toy.conditioning(seed)`."""
    return toy.conditioning(seed, tokens)[0][0][0]


def _updated(comfy, pack, model, update: oracle.Update, inputs: dict[str, Any]):
    weights = update.token_weights
    if weights is not None:
        weights = pack.comfyui_binding.text.token_weights.TokenWeights(weights)
    start, end = update.window
    return node(comfy, "EBCAContextUpdate").execute(
        model=model, gamma_attn=update.gamma_attn, gamma_norm=update.gamma_norm, token_weights=weights,
        mask=update.mask, start_percent=start, end_percent=end, **inputs,
    )[0]  # fmt: skip


def _edit(comfy, edit: oracle.Edit, mask: torch.Tensor | None):
    (start, end), (gamma_start, gamma_end) = edit.window, edit.gamma_window
    conditioning = edit.text
    if isinstance(conditioning, torch.Tensor):
        conditioning = [[conditioning if conditioning.ndim == 3 else conditioning.unsqueeze(0), {}]]
    return node(comfy, "EBCAEditContext").execute(
        conditioning=conditioning, direction="add" if edit.weight >= 0 else "remove", alpha=abs(edit.weight),
        start_percent=start, end_percent=end, gamma_attn=edit.gamma_attn, gamma_norm=edit.gamma_norm,
        gamma_start_percent=gamma_start, gamma_end_percent=gamma_end, mask=mask,
    )[0]  # fmt: skip
