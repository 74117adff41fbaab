"""What `compare.py` compares: each method as the model, the positive prompt and the cfg that a sampler takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.settings import CFG, SAMPLER, Method
from baselines.attend_and_excite import AttendAndExcite
from baselines.composable import combined
from baselines.normalised_attention_guidance import normalised_attention_guidance
from shapes.grammar import Scene, Wanted
from shapes_model import ShapesModel


@dataclass(frozen=True)
class Guided:
    """What the sampler takes."""

    model: Any
    positive: list
    cfg: float = CFG
    sampler: dict[str, Any] = field(default_factory=SAMPLER.copy)
    #: Of convolutions and matrix products; everything else is float32.
    precision: torch.dtype = torch.bfloat16


def plain(
    shapes: ShapesModel, scenes: Sequence[Scene], cfg: float = CFG, sampler: dict | None = None,
    precision: str = "bfloat16",
) -> Guided:  # fmt: skip
    return Guided(
        shapes.model, shapes.encode(_captions(scenes)), cfg, sampler or SAMPLER, getattr(torch, precision)
    )


def weighted_words(shapes: ShapesModel, scenes: Sequence[Scene], weight: float, cfg: float = CFG) -> Guided:
    """ComfyUI's own prompt weighting, on the colour and the shape of every object."""

    def weighted(scene: Scene) -> str:
        caption = scene.caption()
        for wanted in scene.objects:
            phrase = wanted.words(article=False)
            caption = caption.replace(phrase, f"({phrase}:{weight})")
        return caption

    return Guided(shapes.model, shapes.encode([weighted(scene) for scene in scenes]), cfg)


def composable(
    shapes: ShapesModel, scenes: Sequence[Scene], strength: float | None = None, end: float = 1.0, cfg: float = CFG
) -> Guided:
    """A prompt for each object; with a strength for these, beside the whole caption, and until `end` of the run.

    Noise predictions are averaged.
    """
    concepts = _encoded(shapes, scenes, "objects")
    if strength is not None:
        weak = [shapes.node("ConditioningSetAreaStrength", conditioning=c, strength=strength)[0] for c in concepts]
        early = [shapes.node("ConditioningSetTimestepRange", conditioning=c, start=0.0, end=end)[0] for c in weak]
        concepts = [shapes.encode(_captions(scenes)), *early]
    return Guided(shapes.model, combined(shapes.node, concepts), cfg)


def perturbed_attention(shapes: ShapesModel, scenes: Sequence[Scene], scale: float, cfg: float = CFG) -> Guided:
    """ComfyUI's own node."""
    (model,) = shapes.node("PerturbedAttentionGuidance", model=shapes.model, scale=scale)
    return replace(plain(shapes, scenes, cfg), model=model)


def normalised_attention(
    shapes: ShapesModel, scenes: Sequence[Scene], scale: float, tau: float, alpha: float, cfg: float = CFG
) -> Guided:
    return replace(plain(shapes, scenes, cfg), model=normalised_attention_guidance(shapes.model, scale, tau, alpha))


def attend_and_excite(
    shapes: ShapesModel, scenes: Sequence[Scene], step_size: float, subjects: str, refines: bool, cfg: float = CFG
) -> Guided:
    """subjects: "shapes" (the nouns, as in the paper) or "content" (colours and shapes)."""
    method = AttendAndExcite(
        marked(shapes, scenes, subjects), marked(shapes, scenes, "words"), step_size, refines, side=8
    )
    return replace(plain(shapes, scenes, cfg), model=method.applied_to(shapes.model))


def ebca(
    shapes: ShapesModel,
    scenes: Sequence[Scene],
    gamma_attn: float,
    gamma_norm: float,
    start: float = 0.0,
    end: float = 1.0,
    apply_to: str = "both",
    blocks: str = "",
    tokens: str | None = None,
    weight: float = 1.0,
    other_weight: float = 0.0,
    cfg: float = CFG,
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
    shapes: ShapesModel, scenes: Sequence[Scene], alpha: float, start: float, end: float, **settings: Any
) -> Guided:
    """EBCA Compose with each object as an edit that is added."""
    return composed(shapes, scenes, [{"of": "objects", "alpha": alpha, "start": start, "end": end}], **settings)


def composed(
    shapes: ShapesModel, scenes: Sequence[Scene], parts: Sequence[dict[str, Any]], gamma_norm: float = 0.0,
    gamma_end: float = 1.0, cfg: float = CFG,
) -> Guided:  # fmt: skip
    """EBCA Compose: parts are {"of": a key of _TEXTS, and arguments of _edit}.

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


def _turned(scene: Scene) -> list[str]:
    """The caption with its objects in each other cyclic order."""
    objects = scene.objects
    return [_only(scene, objects[i:] + objects[:i]) for i in range(1, len(objects))]


def _ten_names(scene: Scene) -> list[str]:
    """Ten concepts, as a long list has them: the objects, and further names of the same objects."""
    names = [wanted.words() for wanted in scene.objects]
    bare = [wanted.words(article=False) for wanted in scene.objects]
    return [*names, *bare, *(f"one {name}" for name in bare), *(f"the {name}" for name in bare)][:10]


def _less_one(scene: Scene) -> list[str]:
    """The caption without one object, for each."""
    objects = scene.objects
    return [_only(scene, objects[:i] + objects[i + 1 :]) for i in range(len(objects))]


def _only(scene: Scene, objects: tuple[Wanted, ...]) -> str:
    return replace(scene, objects=objects, relation=None).caption()


_TEXTS: dict[str, Callable[[Scene], list[str]]] = {
    "objects": lambda scene: [wanted.words() for wanted in scene.objects],
    "shapes": lambda scene: [Wanted(shape=wanted.shape).words() for wanted in scene.objects],
    "orders": _turned,
    "all but one": _less_one,
    "ten": lambda scene: _ten_names(scene),
    "nothing": lambda scene: [""],
}


KINDS: dict[str, Callable[..., Guided]] = {
    function.__name__: function
    for function in (
        plain, weighted_words, composable, perturbed_attention, normalised_attention, attend_and_excite, ebca,
        object_contexts, composed,
    )
}  # fmt: skip


def guided(shapes: ShapesModel, method: Method, scenes: Sequence[Scene]) -> Guided:
    """A method for one batch, a scene for each image."""
    return KINDS[method.kind](shapes, scenes, **method.settings)


def pictures(shapes: ShapesModel, way: Guided, seeds: Sequence[int], model: Any = None) -> np.ndarray:
    """Pictures [b h w 3] of a batch; model: in the place of the way's own."""
    with torch.autocast("cpu", way.precision, enabled=way.precision != torch.float32):
        return shapes.sampled(
            model or way.model, way.positive, shapes.encode([""]), list(seeds), cfg=way.cfg, **way.sampler
        )


def _captions(scenes: Sequence[Scene]) -> list[str]:
    return [scene.caption() for scene in scenes]


def _encoded(shapes: ShapesModel, scenes: Sequence[Scene], of: str) -> list[list]:
    """A CONDITIONING for the first text of every scene, one for the second, and so on; of: a key of _TEXTS."""
    columns = zip(*[_TEXTS[of](scene) for scene in scenes], strict=True)
    return [shapes.encode(list(column)) for column in columns]


_WORDS: dict[str, Callable[[Scene], Sequence[str]]] = {
    "colours": lambda scene: [wanted.colour for wanted in scene.objects],
    "shapes": lambda scene: [wanted.shape for wanted in scene.objects],
    "content": lambda scene: [word for wanted in scene.objects for word in (wanted.colour, wanted.shape)],
    "last object": lambda scene: [scene.objects[-1].words(article=False)],
    "words": lambda scene: scene.caption().replace(",", "").split(),
}


def marked(shapes: ShapesModel, scenes: Sequence[Scene], tokens: str) -> Tensor:
    """Which tokens [b, t] of each caption are meant by a key of _WORDS."""
    weights = [_named(shapes, scene, tokens)[0] for scene in scenes]
    return torch.stack([weight.values != 1 for weight in weights])


def _named(shapes: ShapesModel, scene: Scene, tokens: str) -> tuple:
    lines = "\n".join(f"{word} = 2" for word in dict.fromkeys(_WORDS[tokens](scene)))
    return shapes.node("EBCATokenWeights", clip=shapes.clip, text=scene.caption(), weights=lines)


def _token_weights(shapes: ShapesModel, scenes: Sequence[Scene], tokens: str, weight: float, other_weight: float):
    """EBCA_TOKEN_WEIGHTS that suit every scene; start, end and padding tokens count as others."""
    are_marked = marked(shapes, scenes, tokens)
    if not torch.equal(are_marked, are_marked[:1].expand_as(are_marked)):
        raise ValueError(f"Expected the {tokens} at the same positions in every caption of a batch: sort the captions.")
    values = torch.where(are_marked[0], weight, other_weight)
    return replace(_named(shapes, scenes[0], tokens)[0], values=values)
