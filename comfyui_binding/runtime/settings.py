"""What the nodes store on a MODEL."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ...ebca_core import Schedule, Window
from ..architectures.unet import LayerKey
from ..text.token_weights import TokenWeights
from ..trace.trace_record import Trace

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
    schedule: Schedule | None = None

    def __post_init__(self):
        _check_strengths(gamma_attn=self.gamma_attn, gamma_norm=self.gamma_norm)

    @property
    def is_off(self) -> bool:
        return (self.gamma_attn == 0 and self.gamma_norm == 0) or _is_zero(self.schedule)

    def scaled(self, factor: float) -> ContextUpdate:
        """The update with both gammas times a factor, and no schedule."""
        return replace(self, gamma_attn=factor * self.gamma_attn, gamma_norm=factor * self.gamma_norm, schedule=None)

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

    def described(self, layer_names: Mapping[LayerKey, str]) -> dict[str, Any]:
        return {
            "gamma_attn": self.gamma_attn,
            "gamma_norm": self.gamma_norm,
            "window": asdict(self.window),
            "schedule": self.schedule and asdict(self.schedule),
            "token_weights": self.token_weights and self.token_weights.values.tolist(),
            "has_mask": self.mask is not None,
            "apply_to": "positive" if self.positive_only else "both",
            "layers": None if self.layers is None else [layer_names[key] for key in layer_names if key in self.layers],
        }

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
    alpha_schedule: Schedule | None = None
    gamma_schedule: Schedule | None = None

    def __post_init__(self):
        _check_strengths(alpha=self.alpha, gamma_attn=self.gamma_attn, gamma_norm=self.gamma_norm)

    def described(self) -> dict[str, Any]:
        return {
            "direction": "add" if self.direction > 0 else "remove",
            "alpha": self.alpha,
            "window": asdict(self.window),
            "alpha_schedule": self.alpha_schedule and asdict(self.alpha_schedule),
            "gamma_attn": self.gamma_attn,
            "gamma_norm": self.gamma_norm,
            "gamma_window": asdict(self.gamma_window),
            "gamma_schedule": self.gamma_schedule and asdict(self.gamma_schedule),
            "has_mask": self.mask is not None,
        }

    @property
    def weight(self) -> float:
        """The signed alpha; a schedule multiplies it."""
        return 0.0 if _is_zero(self.alpha_schedule) else self.direction * self.alpha

    @property
    def is_updated(self) -> bool:
        return (self.gamma_attn != 0 or self.gamma_norm != 0) and not _is_zero(self.gamma_schedule)

    @property
    def is_off(self) -> bool:
        return self.weight == 0 and not self.is_updated


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything the EBCA nodes before a sampler ask for."""

    updates: tuple[ContextUpdate, ...] = ()
    edits: tuple[Edit, ...] = ()
    traces: tuple[Trace, ...] = ()
    windows: frozenset[Window] = field(init=False)
    #: What was said in calls of the model outside any run, which have no other place to remember it.
    said_without_run: set[str] = field(init=False, default_factory=set)

    def __post_init__(self):
        windows = {update.window for update in self.updates}
        windows |= {window for edit in self.edits for window in (edit.window, edit.gamma_window)}
        object.__setattr__(self, "windows", frozenset(windows))

    @property
    def schedules(self) -> list[Schedule]:
        schedules = [update.schedule for update in self.updates]
        schedules += [schedule for edit in self.edits for schedule in (edit.alpha_schedule, edit.gamma_schedule)]
        return [schedule for schedule in schedules if schedule is not None]

    def described(self, layer_names: Mapping[LayerKey, str]) -> dict[str, list[dict[str, Any]]]:
        """What the nodes ask for, in numbers and words that JSON knows."""
        return {
            "updates": [update.described(layer_names) for update in self.updates],
            "edits": [edit.described() for edit in self.edits],
        }

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


def _is_zero(schedule: Schedule | None) -> bool:
    return schedule is not None and schedule.is_zero


def _check_strengths(**strengths: float) -> None:
    for name, value in strengths.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected {name} to be a number from 0 up, but got {value}. 0 switches it off.")
