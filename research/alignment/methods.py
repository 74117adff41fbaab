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
from shapes_model import ShapesModel

Scenes = Sequence[Any]
"""Of the model's world, one for each image."""


@dataclass(frozen=True)
class Guided:
    """What the sampler takes."""

    model: Any
    positive: list
    cfg: float
    sampler: Mapping[str, Any]
    #: Of convolutions and matrix products; everything else is float32.
    precision: torch.dtype = torch.bfloat16


def plain(
    shapes: ShapesModel, scenes: Scenes, cfg: float, sampler: Mapping[str, Any] | None = None,
    precision: str = "bfloat16",
) -> Guided:  # fmt: skip
    sampler = sampler or shapes.world.sampler
    return Guided(shapes.model, shapes.encode(_captions(scenes)), cfg, sampler, getattr(torch, precision))


def weighted_words(shapes: ShapesModel, scenes: Scenes, weight: float, cfg: float) -> Guided:
    """ComfyUI's own prompt weighting, on the name and the colour of everything that a caption asks for."""

    def weighted(scene: Any) -> str:
        caption = scene.caption()
        for name in shapes.world.words["names"](scene):
            caption = re.sub(rf"\b{name}\b", f"({name}:{weight})", caption)
        return caption

    return replace(plain(shapes, scenes, cfg), positive=shapes.encode([weighted(scene) for scene in scenes]))


def composable(
    shapes: ShapesModel, scenes: Scenes, cfg: float, strength: float | None = None, end: float = 1.0
) -> Guided:
    """A prompt for each object; with a strength for these, beside the whole caption, and until `end` of the run.

    Noise predictions are averaged.
    """
    concepts = _encoded(shapes, scenes, "objects")
    if strength is not None:
        weak = [shapes.node("ConditioningSetAreaStrength", conditioning=c, strength=strength)[0] for c in concepts]
        early = [shapes.node("ConditioningSetTimestepRange", conditioning=c, start=0.0, end=end)[0] for c in weak]
        concepts = [shapes.encode(_captions(scenes)), *early]
    return replace(plain(shapes, scenes, cfg), positive=combined(shapes.node, concepts))


def perturbed_attention(shapes: ShapesModel, scenes: Scenes, scale: float, cfg: float) -> Guided:
    """ComfyUI's own node."""
    (model,) = shapes.node("PerturbedAttentionGuidance", model=shapes.model, scale=scale)
    return replace(plain(shapes, scenes, cfg), model=model)


def normalised_attention(
    shapes: ShapesModel, scenes: Scenes, scale: float, tau: float, alpha: float, cfg: float
) -> Guided:
    return replace(plain(shapes, scenes, cfg), model=normalised_attention_guidance(shapes.model, scale, tau, alpha))


def attend_and_excite(
    shapes: ShapesModel, scenes: Scenes, cfg: float, step_size: float, subjects: str, refines: bool, side: int = 8
) -> Guided:
    """subjects: words of the world, the nouns as in the paper, or the colours as well; side: of the maps' layers."""
    method = AttendAndExcite(
        marked(shapes, scenes, subjects), marked(shapes, scenes, "words"), step_size, refines, side
    )
    return replace(plain(shapes, scenes, cfg), model=method.applied_to(shapes.model))


def ebca(
    shapes: ShapesModel,
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
    token_weights = None if tokens is None else _token_weights(shapes, scenes, tokens, weight, other_weight)
    model = _updated(shapes, shapes.model, gamma_attn, gamma_norm, start, end, apply_to, blocks, token_weights)
    return replace(plain(shapes, scenes, cfg), model=model)


def _updated(
    shapes: ShapesModel, model, gamma_attn: float, gamma_norm: float, start: float = 0.0, end: float = 1.0,
    apply_to: str = "both", blocks: str = "", token_weights=None,
):  # fmt: skip
    """The model with EBCA Context Update."""
    return shapes.node(
        "EBCAContextUpdate", model=model, gamma_attn=gamma_attn, gamma_norm=gamma_norm, start_percent=start,
        end_percent=end, apply_to=apply_to, blocks=blocks, token_weights=token_weights,
    )[0]  # fmt: skip


def object_contexts(
    shapes: ShapesModel, scenes: Scenes, cfg: float, alpha: float, start: float, end: float, **settings: Any
) -> Guided:
    """EBCA Compose with each object as an edit that is added."""
    return composed(shapes, scenes, [{"of": "objects", "alpha": alpha, "start": start, "end": end}], cfg, **settings)


def composed(
    shapes: ShapesModel, scenes: Scenes, parts: Sequence[dict[str, Any]], cfg: float, gamma_norm: float = 0.0,
    gamma_end: float = 1.0,
) -> Guided:  # fmt: skip
    """EBCA Compose: parts are {"of": one of the world's texts, and arguments of _edit}.

    With gamma_norm also EBCA Context Update until gamma_end.
    """
    edits = []
    for part in parts:
        settings = dict(part)
        contexts = _encoded(shapes, scenes, settings.pop("of"))
        edits += [_edit(shapes, context, **settings) for context in contexts]
    wired = {f"edit{i}": edit for i, edit in enumerate(edits)}
    (model,) = shapes.node("EBCACompose", model=shapes.model, edits=wired)
    if gamma_norm:
        model = _updated(shapes, model, 0.0, gamma_norm, end=gamma_end)
    return replace(plain(shapes, scenes, cfg), model=model)


def _edit(shapes: ShapesModel, context: list, alpha: float, start: float, end: float, direction: str = "add"):
    return shapes.node(
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


def guided(shapes: ShapesModel, method: Method, scenes: Scenes) -> Guided:
    """A method for one batch, a scene for each image."""
    return KINDS[method.kind](shapes, scenes, **{"cfg": shapes.world.cfg} | method.settings)


def pictures(shapes: ShapesModel, way: Guided, seeds: Sequence[int], model: Any = None) -> np.ndarray:
    """Pictures [b h w 3] of a batch; model: in the place of the way's own."""
    with torch.autocast("cpu", way.precision, enabled=way.precision != torch.float32):
        return shapes.sampled(
            model or way.model, way.positive, shapes.encode([""]), list(seeds), cfg=way.cfg, **way.sampler
        )


def _captions(scenes: Scenes) -> list[str]:
    return [scene.caption() for scene in scenes]


def _encoded(shapes: ShapesModel, scenes: Scenes, of: str) -> list[list]:
    """A CONDITIONING for the first text of every scene, one for the second, and so on; of: one of the world's texts."""
    columns = zip(*[shapes.world.texts[of](scene) for scene in scenes], strict=True)
    return [shapes.encode(list(column)) for column in columns]


def marked(shapes: ShapesModel, scenes: Scenes, tokens: str) -> Tensor:
    """Which tokens [b, t] of each caption are meant by one of the world's words."""
    weights = [_named(shapes, scene, tokens)[0] for scene in scenes]
    return torch.stack([weight.values != 1 for weight in weights])


def _named(shapes: ShapesModel, scene: Any, tokens: str) -> tuple:
    lines = "\n".join(f"{word} = 2" for word in dict.fromkeys(shapes.world.words[tokens](scene)))
    return shapes.node("EBCATokenWeights", clip=shapes.clip, text=scene.caption(), weights=lines)


def _token_weights(shapes: ShapesModel, scenes: Scenes, tokens: str, weight: float, other_weight: float):
    """EBCA_TOKEN_WEIGHTS that suit every scene; start, end and padding tokens count as others."""
    are_marked = marked(shapes, scenes, tokens)
    if not torch.equal(are_marked, are_marked[:1].expand_as(are_marked)):
        raise ValueError(f"Expected the {tokens} at the same positions in every caption of a batch: sort the captions.")
    values = torch.where(are_marked[0], weight, other_weight)
    return replace(_named(shapes, scenes[0], tokens)[0], values=values)
