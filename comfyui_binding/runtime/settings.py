"""What the nodes store on a MODEL: updates, edits, traces and a reroll."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...ebca_core import EBCA, ContextEnergy, Schedule, Window

if TYPE_CHECKING:
    from ..text.token_weights import TokenWeights
    from .protocols import Architecture, RunTrace, RunWatch

#: Key of the settings and the wrappers in ComfyUI's options.
KEY = "ebca"
#: Keys of the Run, and of the DenoiserCall where something is on, in the options of a run's calls.
RUN_KEY = "ebca_run"
CALL_KEY = "ebca_call"


@dataclass(frozen=True, eq=False)
class ContextUpdate:
    """One EBCAContextUpdate: an update of the prompt's own context.

    mask [b, height, width]; layers: names of the layers that compute the update, None for all; use_noise_mask: without
    a mask, the latent's noise mask is used.
    """

    gamma_attn: float
    gamma_norm: float
    window: Window
    token_weights: TokenWeights | None = None
    mask: Tensor | None = None
    use_noise_mask: bool = False
    positive_only: bool = False
    layers: frozenset[str] | None = None
    schedule: Schedule | None = None
    #: The node of the graph, which shows after a run what the update did.
    node_id: str | None = None

    def __post_init__(self):
        _check_strengths(gamma_attn=self.gamma_attn, gamma_norm=self.gamma_norm)

    @property
    def is_off(self) -> bool:
        return (self.gamma_attn == 0 and self.gamma_norm == 0) or _is_zero(self.schedule)

    def scaled(self, factor: float) -> ContextUpdate:
        """The update with both gammas times a factor, and no schedule."""
        return replace(self, gamma_attn=factor * self.gamma_attn, gamma_norm=factor * self.gamma_norm, schedule=None)

    @property
    def needs_noise_mask(self) -> bool:
        return self.use_noise_mask and self.mask is None and self.gamma_attn != 0

    def with_constant_mask_resolved(self) -> ContextUpdate:
        """A mask of ones is dropped; a mask of zeros drops the attention term. Both are exact."""
        if self.mask is None:
            return self
        if bool((self.mask == 1).all()):
            return replace(self, mask=None, use_noise_mask=False)
        if not bool(self.mask.any()):
            return replace(self, mask=None, use_noise_mask=False, gamma_attn=0.0, token_weights=None)
        return self

    def to_dict(self, layer_names: Sequence[str]) -> dict[str, Any]:
        return {
            "gamma_attn": self.gamma_attn,
            "gamma_norm": self.gamma_norm,
            "window": asdict(self.window),
            "schedule": self.schedule and asdict(self.schedule),
            "token_weights": self.token_weights and self.token_weights.values.tolist(),
            "has_mask": self.mask is not None,
            "apply_to": "positive" if self.positive_only else "both",
            "layers": None if self.layers is None else [name for name in layer_names if name in self.layers],
        }


@dataclass(frozen=True)
class Composition:
    """What one EBCACompose asks for its edits.

    layers: names of the layers that mix them in, None for all; norm_limit: how many times the norm of the layer's own
    output an image token may have, 0 for any; mixes_pooled: whether their pooled texts are mixed too; shares_attention:
    whether the image part of joint attention is computed once for all texts.
    """

    layers: frozenset[str] | None = None
    norm_limit: float = 0.0
    mixes_pooled: bool = False
    shares_attention: bool = False

    def __post_init__(self):
        if self.norm_limit != 0 and not 1 <= self.norm_limit < math.inf:
            raise ValueError(
                f"norm_limit is {self.norm_limit}, but must be 0, for no limit, or a finite number from 1 up: below 1 "
                "the prompt's own output would be cut."
            )

    def to_dict(self, layer_names: Sequence[str]) -> dict[str, Any]:
        return {
            "layers": None if self.layers is None else [name for name in layer_names if name in self.layers],
            "norm_limit": self.norm_limit,
            "mix_pooled": self.mixes_pooled,
            "shared_attention": self.shares_attention,
        }


@dataclass(frozen=True, eq=False)
class Edit:
    """One EBCAEditContext: a further prompt to add (direction 1) or to remove (-1).

    conditioning: a CONDITIONING of one entry; context [b, t, c]: its encoded text.
    """

    conditioning: list
    direction: int
    alpha: float
    window: Window
    gamma_attn: float
    gamma_norm: float
    gamma_window: Window
    mask: Tensor | None = None
    alpha_schedule: Schedule | None = None
    gamma_schedule: Schedule | None = None
    composition: Composition = Composition()

    def __post_init__(self):
        _check_strengths(alpha=self.alpha, gamma_attn=self.gamma_attn, gamma_norm=self.gamma_norm)

    def is_mixed_in(self, layer: str) -> bool:
        """Whether a layer mixes the edit into its output, at times when the edit has a weight."""
        return self.composition.layers is None or layer in self.composition.layers

    @property
    def is_pooled_text_mixed(self) -> bool:
        """Whether its pooled text is mixed into the prompt's, which holds for the whole image."""
        return self.composition.mixes_pooled and self.mask is None

    def to_dict(self, layer_names: Sequence[str]) -> dict[str, Any]:
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
            **self.composition.to_dict(layer_names),
        }

    @property
    def context(self) -> Tensor:
        return self.conditioning[0][0]

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
class Reroll:
    """One EBCAReroll: runs with several noises as far as `at`, a share of their steps, and the best of them in full.

    objects: the places of each object's tokens in the positive prompt as the layers read it, in `tokens` tokens at
    least; encoded_tokens: of its text as it is encoded; prompt: samples of that, by which it is known again;
    preview_steps: how many steps a run has that is only judged, 0 for all.
    """

    objects: Sequence[Sequence[int]]
    tokens: int
    encoded_tokens: int
    prompt: Tensor
    at: float
    tries: int
    #: A run whose score reaches it is taken at once; inf: all are tried.
    threshold: float = math.inf
    preview_steps: int = 0
    #: What the node shows besides: the concepts that are not scored.
    remark: str = ""
    node_id: str | None = None


@dataclass(frozen=True, eq=False)
class Settings:
    """Everything the EBCA nodes before a sampler ask for, and the architecture of the model that they are on."""

    architecture: Architecture | None = None
    updates: tuple[ContextUpdate, ...] = ()
    edits: tuple[Edit, ...] = ()
    traces: tuple[RunTrace, ...] = ()
    reroll: Reroll | None = None
    #: What reads the maps of this one run (EBCA Reroll).
    watch: RunWatch | None = None
    #: What the updates of prompts and edits descend, and what is recorded. No node sets it.
    energy: ContextEnergy = EBCA
    windows: frozenset[Window] = field(init=False)
    #: What was logged once for this MODEL: about calls outside any run, and about masks, whichever run they are in.
    logged: set[str] = field(init=False, default_factory=set)

    def __post_init__(self):
        windows = {update.window for update in self.updates}
        windows |= {window for edit in self.edits for window in (edit.window, edit.gamma_window)}
        object.__setattr__(self, "windows", frozenset(windows))

    @property
    def schedules(self) -> list[Schedule]:
        schedules = [update.schedule for update in self.updates]
        schedules += [schedule for edit in self.edits for schedule in (edit.alpha_schedule, edit.gamma_schedule)]
        return [schedule for schedule in schedules if schedule is not None]

    @property
    def masks(self) -> list[Tensor]:
        """The masks that the user has wired."""
        return [setting.mask for setting in (*self.updates, *self.edits) if setting.mask is not None]

    def to_dict(self, layer_names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """The settings of all nodes, as JSON values."""
        return {
            "updates": [update.to_dict(layer_names) for update in self.updates],
            "edits": [edit.to_dict(layer_names) for edit in self.edits],
        }

    @property
    def needs_noise_mask(self) -> bool:
        """Whether an update uses the noise mask of the latent."""
        return any(update.needs_noise_mask for update in self.updates)

    def of_image(self, image: int, watch: RunWatch, is_video: bool = False) -> Settings:
        """These settings for a run of one image of a batch, which is watched; a video's masks have a row per frame."""

        def mask_of(setting: ContextUpdate | Edit) -> Tensor | None:
            return setting.mask if is_video else row_of(setting.mask, image)

        edits = [
            replace(edit, conditioning=_text_row(edit.conditioning, image), mask=mask_of(edit)) for edit in self.edits
        ]
        updates = [replace(update, mask=mask_of(update)) for update in self.updates]
        one = replace(self, updates=tuple(updates), edits=tuple(edits), watch=watch)
        object.__setattr__(one, "logged", self.logged)
        return one

    def with_noise_mask(self, mask: Tensor) -> Settings:
        """These settings for a run whose latent has a mask [b, height, width]."""
        updates = [
            replace(update, mask=mask).with_constant_mask_resolved() if update.needs_noise_mask else update
            for update in self.updates
        ]
        return replace(self, updates=tuple(update for update in updates if not update.is_off))


def row_of(tensor: Tensor | None, image: int) -> Tensor | None:
    """What an image of a batch has of a tensor [b, ...]: fewer rows than images repeat."""
    if tensor is None or len(tensor) == 1:
        return tensor
    place = image % len(tensor)
    return tensor[place : place + 1]


def _text_row(conditioning: list, image: int) -> list:
    return [[row_of(text, image), options] for text, options in conditioning]


def _is_zero(schedule: Schedule | None) -> bool:
    return schedule is not None and schedule.is_zero


def _check_strengths(**strengths: float) -> None:
    for name, value in strengths.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, but must be a finite number from 0 up. Set it to 0 to switch it off.")
