"""What the nodes store on a MODEL."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..ebca_core import Window
from .families import LayerKey
from .token_weights import TokenWeights

#: Key of the settings, the wrappers and the run in ComfyUI's options.
KEY = "ebca"


@dataclass(frozen=True, eq=False)
class ContextUpdate:
    """One EBCAContextUpdate: an update of the prompt's own context. mask [b, height, width], layers None for all.

    use_noise_mask: where there is no mask, the latent's own takes its place.
    """

    gamma_attn: float
    gamma_norm: float
    window: Window
    token_weights: TokenWeights | None = None
    mask: Tensor | None = None
    use_noise_mask: bool = False
    positive_only: bool = False
    layers: frozenset[LayerKey] | None = None

    def __post_init__(self):
        _check_strengths(gamma_attn=self.gamma_attn, gamma_norm=self.gamma_norm)

    @property
    def is_off(self) -> bool:
        return self.gamma_attn == 0 and self.gamma_norm == 0

    @property
    def waits_for_noise_mask(self) -> bool:
        return self.use_noise_mask and self.mask is None and self.gamma_attn != 0

    def with_plain_mask_resolved(self) -> ContextUpdate:
        """Without a mask that is 1 everywhere, without the attention term if it is 0 everywhere: exactly so."""
        if self.mask is None:
            return self
        if bool((self.mask == 1).all()):
            return replace(self, mask=None, use_noise_mask=False)
        if not bool(self.mask.any()):
            return replace(self, mask=None, use_noise_mask=False, gamma_attn=0.0, token_weights=None)
        return self

    def reaches(self, layer: LayerKey) -> bool:
        """Whether this layer computes the update."""
        return self.layers is None or layer in self.layers


@dataclass(frozen=True, eq=False)
class Edit:
    """One EBCAEditContext: a further prompt [b, t, c] to add (direction 1) or to remove (-1)."""

    context: Tensor
    direction: int
    alpha: float
    window: Window
    gamma_attn: float
    gamma_norm: float
    gamma_window: Window
    mask: Tensor | None = None

    def __post_init__(self):
        _check_strengths(alpha=self.alpha, gamma_attn=self.gamma_attn, gamma_norm=self.gamma_norm)

    @property
    def weight(self) -> float:
        return self.direction * self.alpha

    @property
    def is_updated(self) -> bool:
        return self.gamma_attn != 0 or self.gamma_norm != 0

    @property
    def is_off(self) -> bool:
        return self.weight == 0 and not self.is_updated


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything the EBCA nodes before a sampler ask for."""

    updates: tuple[ContextUpdate, ...] = ()
    edits: tuple[Edit, ...] = ()
    windows: frozenset[Window] = field(init=False)
    #: What was said in calls of the model outside any run, which have no other place to remember it.
    said_without_run: set[str] = field(init=False, default_factory=set)

    def __post_init__(self):
        windows = {update.window for update in self.updates}
        windows |= {window for edit in self.edits for window in (edit.window, edit.gamma_window)}
        object.__setattr__(self, "windows", frozenset(windows))

    @property
    def wants_noise_mask(self) -> bool:
        """Whether an update waits for the latent's mask."""
        return any(update.waits_for_noise_mask for update in self.updates)

    def with_noise_mask(self, mask: Tensor) -> Settings:
        """These settings for a run whose latent has a mask [b, height, width]."""
        updates = [
            replace(update, mask=mask).with_plain_mask_resolved() if update.waits_for_noise_mask else update
            for update in self.updates
        ]
        return replace(self, updates=tuple(update for update in updates if not update.is_off))


def _check_strengths(**strengths: float) -> None:
    for name, value in strengths.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected {name} to be a number from 0 up, but got {value}. 0 switches it off.")
