"""What `compare.py` compares: each method as the model, the positive prompt and the cfg that a sampler takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.settings import Method
from baselines.attend_and_excite import AttendAndExcite
from baselines.composable import combined
from baselines.normalised_attention_guidance import normalised_attention_guidance
from small_model import SmallModel, in_precision

Scenes = Sequence[Any]
"""Of the model's world, one for each image."""


@dataclass(frozen=True)
class Guided:
    """What the sampler takes."""

    model: Any
    positive: list
    cfg: float
    sampler: Mapping[str, Any]
    #: As in small_model.in_precision.
    precision: torch.dtype = torch.bfloat16


def plain(
    small: SmallModel, scenes: Scenes, cfg: float, sampler: Mapping[str, Any] | None = None,
    precision: str = "bfloat16",
) -> Guided:  # fmt: skip
    sampler = sampler or small.world.sampler
    return Guided(small.model, small.encode(_captions(scenes)), cfg, sampler, getattr(torch, precision))


def weighted_words(small: SmallModel, scenes: Scenes, weight: float, cfg: float) -> Guided:
    """ComfyUI's own prompt weighting, on the name and the colour of everything that a caption asks for."""

    def weighted(scene: Any) -> str:
        caption = scene.caption()
        for name in small.world.words["names"](scene):
            caption = re.sub(rf"\b{name}\b", f"({name}:{weight})", caption)
        return caption

    return replace(plain(small, scenes, cfg), positive=small.encode([weighted(scene) for scene in scenes]))


def composable(
    small: SmallModel, scenes: Scenes, cfg: float, strength: float | None = None, end: float = 1.0
) -> Guided:
    """A prompt for each object; with a strength for these, beside the whole caption, and until `end` of the run.

    Noise predictions are averaged.
    """
    concepts = _encoded(small, scenes, "objects")
    if strength is not None:
        weak = [small.node("ConditioningSetAreaStrength", conditioning=c, strength=strength)[0] for c in concepts]
        early = [small.node("ConditioningSetTimestepRange", conditioning=c, start=0.0, end=end)[0] for c in weak]
        concepts = [small.encode(_captions(scenes)), *early]
    return replace(plain(small, scenes, cfg), positive=combined(small.node, concepts))


def perturbed_attention(small: SmallModel, scenes: Scenes, scale: float, cfg: float) -> Guided:
    """ComfyUI's own node."""
    (model,) = small.node("PerturbedAttentionGuidance", model=small.model, scale=scale)
    return replace(plain(small, scenes, cfg), model=model)


def normalised_attention(
    small: SmallModel, scenes: Scenes, scale: float, tau: float, alpha: float, cfg: float
) -> Guided:
    return replace(plain(small, scenes, cfg), model=normalised_attention_guidance(small.model, scale, tau, alpha))


def attend_and_excite(
    small: SmallModel, scenes: Scenes, cfg: float, step_size: float, subjects: str, refines: bool, side: int = 8
) -> Guided:
    """subjects: words of the world, the nouns as in the paper, or the colours as well; side: of the maps' layers."""
    method = AttendAndExcite(
        marked(small, scenes, subjects), marked(small, scenes, "words"), step_size, refines, side
    )
    return replace(plain(small, scenes, cfg), model=method.applied_to(small.model))


def ebca(
    small: SmallModel,
    scenes: Scenes,
    cfg: float,
    gamma_attn: float,
    gamma_norm: float,
    start: float = 0.0,
    end: float = 1.0,
    apply_to: str = "both",
    blocks: str = "",
    tokens: str | None = None,
    weight: float = 1.0,
    other_weight: float = 0.0,
) -> Guided:
    """EBCA Context Update. tokens: which of the prompt's tokens have `weight`; the others have `other_weight`."""
    token_weights = None if tokens is None else _token_weights(small, scenes, tokens, weight, other_weight)
    model = _updated(small, small.model, gamma_attn, gamma_norm, start, end, apply_to, blocks, token_weights)
    return replace(plain(small, scenes, cfg), model=model)


def _updated(
    small: SmallModel, model, gamma_attn: float, gamma_norm: float, start: float = 0.0, end: float = 1.0,
    apply_to: str = "both", blocks: str = "", token_weights=None,
):  # fmt: skip
    """The model with EBCA Context Update."""
    return small.node(
        "EBCAContextUpdate", model=model, gamma_attn=gamma_attn, gamma_norm=gamma_norm, start_percent=start,
        end_percent=end, apply_to=apply_to, blocks=blocks, token_weights=token_weights,
    )[0]  # fmt: skip


def object_contexts(
    small: SmallModel, scenes: Scenes, cfg: float, alpha: float, start: float, end: float, **settings: Any
) -> Guided:
    """EBCA Compose with each object as an edit that is added."""
    return composed(small, scenes, [{"of": "objects", "alpha": alpha, "start": start, "end": end}], cfg, **settings)


def composed(
    small: SmallModel, scenes: Scenes, parts: Sequence[dict[str, Any]], cfg: float, gamma_norm: float = 0.0,
    gamma_end: float = 1.0,
) -> Guided:  # fmt: skip
    """EBCA Compose: parts are {"of": one of the world's texts, and arguments of _edit}.

    With gamma_norm also EBCA Context Update until gamma_end.
    """
    edits = []
    for part in parts:
        settings = dict(part)
        contexts = _encoded(small, scenes, settings.pop("of"))
        edits += [_edit(small, context, **settings) for context in contexts]
    wired = {f"edit{i}": edit for i, edit in enumerate(edits)}
    (model,) = small.node("EBCACompose", model=small.model, edits=wired)
    if gamma_norm:
        model = _updated(small, model, 0.0, gamma_norm, end=gamma_end)
    return replace(plain(small, scenes, cfg), model=model)


def _edit(small: SmallModel, context: list, alpha: float, start: float, end: float, direction: str = "add"):
    return small.node(
        "EBCAEditContext", conditioning=context, direction=direction, alpha=alpha, start_percent=start,
        end_percent=end, gamma_attn=0.0, gamma_norm=0.0, gamma_start_percent=start, gamma_end_percent=end,
    )[0]  # fmt: skip


KINDS: dict[str, Callable[..., Guided]] = {
    function.__name__: function
    for function in (
        plain, weighted_words, composable, perturbed_attention, normalised_attention, attend_and_excite, ebca,
        object_contexts, composed,
    )
}  # fmt: skip


def guided(small: SmallModel, method: Method, scenes: Scenes) -> Guided:
    """A method for one batch, a scene for each image."""
    return KINDS[method.kind](small, scenes, **{"cfg": small.world.cfg} | method.settings)


def pictures(small: SmallModel, way: Guided, seeds: Sequence[int], model: Any = None) -> np.ndarray:
    """Pictures [b h w 3] of a batch; model: in the place of the way's own."""
    with in_precision(way.precision):
        return small.sampled(
            model or way.model, way.positive, small.encode([""]), list(seeds), cfg=way.cfg, **way.sampler
        )


def _captions(scenes: Scenes) -> list[str]:
    return [scene.caption() for scene in scenes]


def _encoded(small: SmallModel, scenes: Scenes, of: str) -> list[list]:
    """A CONDITIONING for the first text of every scene, one for the second, and so on; of: one of the world's texts."""
    columns = zip(*[small.world.texts[of](scene) for scene in scenes], strict=True)
    return [small.encode(list(column)) for column in columns]


def marked(small: SmallModel, scenes: Scenes, tokens: str) -> Tensor:
    """Which tokens [b, t] of each caption are meant by one of the world's words."""
    weights = [_named(small, scene, tokens)[0] for scene in scenes]
    return torch.stack([weight.values != 1 for weight in weights])


def _named(small: SmallModel, scene: Any, tokens: str) -> tuple:
    lines = "\n".join(f"{word} = 2" for word in dict.fromkeys(small.world.words[tokens](scene)))
    return small.node("EBCATokenWeights", clip=small.clip, text=scene.caption(), weights=lines)


def _token_weights(small: SmallModel, scenes: Scenes, tokens: str, weight: float, other_weight: float):
    """EBCA_TOKEN_WEIGHTS that suit every scene; start, end and padding tokens count as others."""
    are_marked = marked(small, scenes, tokens)
    if not torch.equal(are_marked, are_marked[:1].expand_as(are_marked)):
        raise ValueError(f"Expected the {tokens} at the same positions in every caption of a batch: sort the captions.")
    values = torch.where(are_marked[0], weight, other_weight)
    return replace(_named(small, scenes[0], tokens)[0], values=values)
