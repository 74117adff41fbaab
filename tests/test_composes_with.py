"""EBCA next to other nodes and packs, in both orders: each gives the numbers of an independent computation."""
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from support import oracle, other_packs, toy
from support.host import node
from support.log_messages import messages
from support.marks import with_mark
from support.oracle import Neighbour
from support.other_packs import Scene, chain, on_the_model
from support.sampling import relative_error

AROUND = "its own code around hand-made attention"
ONE = ("EBCA first",)
MERGED = "hand-made attention in a U-Net whose weights were changed by hand"
FORMULA = "hand-made attention with its formula"


class Row(NamedTuple):
    """One neighbour: how it is wired, the independent computation, and how close EBCA must come to it.

    formula: what it does in cross-attention, if it acts there; hand: how the hand-made run gets the rest of it (by
    default as wired, or not at all with a formula); orders: of the nodes, where it can matter; warns: a part of the one
    warning that EBCA gives; only: what of EBCA is documented to work with it; family: of the toy model.
    """

    wire: Callable[..., Scene]
    equals: str
    tolerance: float
    formula: Neighbour | None = None
    hand: Callable[..., Scene] | None = None
    orders: tuple[str, ...] = ("EBCA first", "neighbour first")
    warns: str = ""
    only: tuple[str, ...] = ("update", "words", "compose")
    family: str = "sd1"


SAG = on_the_model("SelfAttentionGuidance", scale=0.8)
CORE = {
    # neighbour: wired as a user does, the independent computation, the tolerance
    "LoRA": Row(other_packs.lora("LoraLoaderModelOnly"), MERGED, 1e-5, hand=other_packs.hand_merged_lora),
    "bypass LoRA": Row(other_packs.lora("LoraLoaderBypassModelOnly"), MERGED, 1e-5, hand=other_packs.hand_merged_lora),
    "hook LoRA": Row(other_packs.hook_lora, AROUND, 1e-5, orders=ONE),
    "ModelMergeSimple": Row(other_packs.model_merge, MERGED, 1e-5, hand=other_packs.hand_merged_model),
    "ControlNet": Row(other_packs.controlnet, AROUND, 1e-5, orders=ONE),
    "GLIGEN": Row(other_packs.gligen, AROUND, 1e-5, orders=ONE),
    "ConditioningCombine": Row(other_packs.combine, AROUND, 1e-5, orders=ONE),
    "area": Row(other_packs.area, AROUND, 1e-5, orders=ONE),
    "mask": Row(other_packs.mask, AROUND, 1e-5, orders=ONE),
    "timestep ranges": Row(other_packs.timestep_range, AROUND, 1e-5, orders=ONE),
    "PerpNeg": Row(other_packs.perp_neg, AROUND, 1e-5, orders=ONE),
    "PerpNeg, on the model": Row(other_packs.perp_neg_on_the_model, AROUND, 1e-5),
    "DualModelGuider": Row(other_packs.dual_model, AROUND, 1e-5, orders=ONE),
    "DualCFG": Row(other_packs.dual_cfg, AROUND, 1e-5, orders=ONE),
    "area, PerpNeg": Row(chain(other_packs.area, other_packs.perp_neg), AROUND, 1e-5, orders=ONE),
    "area, DualCFG": Row(chain(other_packs.area, other_packs.dual_cfg), AROUND, 1e-5, orders=ONE),
    "area, SAG": Row(chain(other_packs.area, SAG), AROUND, 1e-5, orders=ONE),
    "PAG": Row(on_the_model("PerturbedAttentionGuidance", scale=2.0), AROUND, 1e-5),
    "SAG": Row(SAG, AROUND, 1e-5),
    "NAG (core)": Row(on_the_model("NAGuidance"), AROUND, 1e-5),
    "HyperTile": Row(on_the_model("HyperTile", tile_size=32), AROUND, 1e-5),
    "FreeU": Row(on_the_model("FreeU"), AROUND, 1e-5),
    "FreeU V2": Row(on_the_model("FreeU_V2"), AROUND, 1e-5),
    "Deep Shrink": Row(on_the_model("PatchModelAddDownscale", block_number=1, end_percent=0.5), AROUND, 1e-5),
    "EasyCache": Row(other_packs.easy_cache("EasyCache"), AROUND, 1e-5),
    "LazyCache": Row(other_packs.easy_cache("LazyCache"), AROUND, 1e-5),
    "context windows": Row(other_packs.context_windows(anchored=False), AROUND, 1e-5),
    "context windows, anchored": Row(other_packs.context_windows(anchored=True), AROUND, 1e-5),
}
SHARP = "hand-made attention with sharper queries"
IMAGE, TWO_IMAGES = other_packs.image_branch((1, 0.8)), other_packs.image_branch((1, 0.8), (2, 0.5))
PACKS = {
    "image prompt": Row(other_packs.image_prompt(2), FORMULA, 1e-5, IMAGE),
    "image prompt in SDXL": Row(other_packs.image_prompt(3), FORMULA, 1e-5, IMAGE, family="sdxl"),
    "two image prompts": Row(other_packs.two_image_prompts, FORMULA, 1e-5, TWO_IMAGES),
    "NegPip": Row(other_packs.negpip, FORMULA, 1e-5, other_packs.NEGPIP, other_packs.hand_interleaved,
                  warns="gives keys and values different contexts", only=("update", "compose")),
    "attention couple": Row(other_packs.attention_couple(), FORMULA, 1e-5, other_packs.COUPLE, only=("update",)),
    "attention couple, values apart": Row(other_packs.attention_couple(own_values=True), FORMULA, 1e-5,
                                          other_packs.COUPLE, only=("update",)),
    "AnimateDiff's windows": Row(other_packs.animatediff_windows(), AROUND, 1e-5),
    "attention of its own": Row(other_packs.own_attention, SHARP, 1e-5, other_packs.SHARPENED),
    "block of its own": Row(other_packs.block_of_its_own, AROUND, 1e-5),
    "texts of four dimensions": Row(other_packs.texts_of_four_dimensions, FORMULA, 1e-5, other_packs.TWO_TEXTS,
                                    only=("update", "compose")),
    "texts swapped in the run": Row(other_packs.swapped_texts(64), "the texts as ordinary prompts", 1e-5,
                                    hand=other_packs.hand_swapped(64), only=("update", "compose")),
    "longer texts swapped in the run": Row(other_packs.swapped_texts(154), "the texts as ordinary prompts", 1e-5,
                                           hand=other_packs.hand_swapped(154), only=("update", "compose")),
    "attention override": Row(other_packs.attention_override, FORMULA, 1e-5, other_packs.SHARPENED,
                              other_packs.attention_override),
    "arguments by name": Row(other_packs.named_arguments, AROUND, 1e-5),
    "step cache": Row(other_packs.skip_cache, AROUND, 1e-5),
    "DeepCache": Row(other_packs.deep_cache, AROUND, 1e-5, orders=ONE),
    "reference image": Row(other_packs.reference_only, AROUND, 1e-5),
    "model function": Row(other_packs.model_function, AROUND, 1e-5),
    "options copied in the run": Row(other_packs.options_copied_in_the_run, AROUND, 1e-5),
}
PAG = on_the_model("PerturbedAttentionGuidance", scale=2.0)
LORA = other_packs.lora("LoraLoaderModelOnly")
CROWD = {
    "LoRA, image prompt, ControlNet, PAG": Row(
        chain(LORA, other_packs.image_prompt(2), other_packs.controlnet, PAG), f"{MERGED}, {FORMULA}", 1e-5, IMAGE,
        hand=chain(other_packs.hand_merged_lora, other_packs.controlnet, PAG),
    ),
    "two prompts, NegPip, FreeU, step cache": Row(
        chain(other_packs.combine, other_packs.negpip, on_the_model("FreeU"), other_packs.skip_cache), FORMULA, 1e-5,
        other_packs.NEGPIP, hand=chain(other_packs.combine, other_packs.hand_interleaved, on_the_model("FreeU"),
                                      other_packs.skip_cache),
        warns="gives keys and values different contexts", only=("update", "compose"),
    ),
}  # fmt: skip
TABLE = CORE | PACKS | CROWD

WORDS = torch.ones(77).index_fill(0, torch.tensor([2, 5, 6]), 2.5)
ADDED, REMOVED = (toy.conditioning(seed)[0][0][0] for seed in (8, 9))
EDITS = [oracle.Edit(ADDED, 0.8, 0.004, 0.003), oracle.Edit(REMOVED, -0.5, 0.002, 0.0)]
HAND = {
    "update": dict(updates=[oracle.Update(0.01, 0.02)]),
    "words": dict(updates=[oracle.Update(0.015, 0.01, WORDS)]),
    "compose": dict(edits=EDITS, updates=[oracle.Update(0.01, 0.0)]),
}
BETWEEN_STEPS = dict(start_percent=0.1, end_percent=0.11)


def with_ebca(comfy, pack, scene: Scene, method: str, **window: float) -> Scene:
    """The scene with the nodes that HAND[method] computes."""
    model, hand = scene.model, HAND[method]
    for update in hand["updates"]:
        weights = update.token_weights
        words = None if weights is None else pack.comfyui_binding.text.token_weights.TokenWeights(weights)
        (model,) = node(comfy, "EBCAContextUpdate").execute(
            model=model, gamma_attn=update.gamma_attn, gamma_norm=update.gamma_norm, token_weights=words, **window
        )
    window = window or dict(start_percent=0.0, end_percent=1.0)
    edits = {
        f"edit{i}": node(comfy, "EBCAEditContext").execute(
            conditioning=[[edit.text.unsqueeze(0), {}]], direction="add" if edit.weight > 0 else "remove",
            alpha=abs(edit.weight), gamma_attn=edit.gamma_attn, gamma_norm=edit.gamma_norm, **window,
            **{f"gamma_{name}": percent for name, percent in window.items()},
        )[0]
        for i, edit in enumerate(hand.get("edits", ()))
    }
    if edits:
        (model,) = node(comfy, "EBCACompose").execute(model=model, edits=edits)
    return replace(scene, model=model)


def plain(name: str) -> Scene:
    return other_packs.scene(TABLE[name].family)


@functools.cache
def alone(comfy, name: str) -> torch.Tensor:
    """The neighbour without EBCA."""
    return TABLE[name].wire(comfy, plain(name)).sampled(comfy)


@functools.cache
def ebca_alone(comfy, pack, family: str, method: str, images: int, steps: int) -> torch.Tensor:
    """EBCA without the neighbour."""
    scene = other_packs.scene(family, latent=toy.latent(images), steps=steps)
    return with_ebca(comfy, pack, scene, method).sampled(comfy)


@functools.cache
def by_hand_run(comfy, name: str, method: str) -> torch.Tensor:
    row = TABLE[name]
    scene = plain(name) if row.formula and not row.hand else (row.hand or row.wire)(comfy, plain(name))
    sampling = scene.model.get_model_object("model_sampling")
    ebca = oracle.Ebca(sampling, scene.prompts(), **HAND[method], neighbour=row.formula)
    with oracle.applied(ebca, scene.model, *scene.more_models):
        return scene.sampled(comfy)


def wired(comfy, pack, name: str, order: str, methods: Sequence[str], **window: float) -> Scene:
    def ebca(comfy, scene: Scene) -> Scene:
        return functools.reduce(lambda scene, method: with_ebca(comfy, pack, scene, method, **window), methods, scene)

    first, second = (TABLE[name].wire, ebca) if order == "neighbour first" else (ebca, TABLE[name].wire)
    return second(comfy, first(comfy, plain(name)))


def marked(cases: Sequence[tuple[str, ...]], mark_of: Callable[..., Any]) -> list:
    """Cases with their names and their marks."""
    return [pytest.param(*case, id="-".join(case), marks=mark_of(*case)) for case in cases]


def of_method(name: str, method: str, order: str = ONE[0]) -> Any:
    """The last method of a row uses most of ComfyUI: `compose` has an update and edits. It is the one that every push
    tries on the oldest ComfyUI too, and behind the neighbour."""
    is_fullest = method == TABLE[name].only[-1]
    if order == ONE[0]:
        return pytest.mark.interface if is_fullest else ()
    return () if is_fullest else pytest.mark.nightly


def of_window(name: str, order: str) -> Any:
    """EBCA behind core's nodes runs at night; behind the packs, which patch more, for every push."""
    if order == ONE[0]:
        return pytest.mark.interface if name in CROWD else ()
    return pytest.mark.nightly if name in CORE else ()


METHODS = [(name, method) for name, row in TABLE.items() for method in row.only]
NAMES_AND_ORDERS = [(name, order) for name, row in TABLE.items() for order in row.orders]
CASES = [(name, method, order) for name, method in METHODS for order in TABLE[name].orders]
#: Images of a batch do not feel each other, so that a batch may be split as one likes.
WINDOWED = ("context windows", "context windows, anchored", "AnimateDiff's windows")
UNFELT = (*WINDOWED, "block of its own", "arguments by name")


@pytest.mark.parametrize(("name", "method", "order"), marked(CASES, of_method))
def test_equals_the_independent_computation(comfy, pack, caplog, name, method, order):
    got = wired(comfy, pack, name, order, [method]).sampled(comfy)
    assert relative_error(got, by_hand_run(comfy, name, method)) < TABLE[name].tolerance
    warnings = messages(caplog)
    assert len(warnings) == bool(TABLE[name].warns), warnings
    assert TABLE[name].warns in "".join(warnings)


@pytest.mark.parametrize(("name", "order"), marked(NAMES_AND_ORDERS, of_window))
def test_outside_its_window_is_the_neighbour_alone(comfy, pack, name, order):
    got = wired(comfy, pack, name, order, ["words", "compose"], **BETWEEN_STEPS).sampled(comfy)
    assert torch.equal(got, alone(comfy, name))


@pytest.mark.parametrize(("name", "method"), marked(METHODS, of_method))
def test_both_are_felt(comfy, pack, name, method):
    """Else the equality above would say nothing."""
    together, felt = by_hand_run(comfy, name, method), 50 * TABLE[name].tolerance
    assert relative_error(together, alone(comfy, name)) > felt
    if name not in UNFELT:
        row, steps = TABLE[name], TABLE[name].wire(comfy, plain(name)).steps
        assert relative_error(together, ebca_alone(comfy, pack, row.family, method, len(together), steps)) > felt


@pytest.mark.interface
@pytest.mark.parametrize("neighbour", [other_packs.attention_of_one_length, other_packs.override_of_one_length])
def test_edit_of_a_length_that_a_packs_attention_does_not_take(comfy, caplog, neighbour):
    """The prompt keeps the pack's attention, and the edit has ComfyUI's."""
    scene, text = other_packs.scene(), toy.conditioning(8, tokens=154)
    edit = node(comfy, "EBCAEditContext").execute(
        conditioning=text, alpha=0.8, gamma_attn=0.0, gamma_norm=0.0, start_percent=0.0
    )[0]
    with_edit = replace(scene, model=node(comfy, "EBCACompose").execute(model=scene.model, edits={"edit0": edit})[0])
    sampling = scene.model.get_model_object("model_sampling")
    by_hand = oracle.Ebca(sampling, scene.prompts(), edits=[oracle.Edit(text[0][0][0], 0.8)],
                          neighbour=other_packs.ONE_LENGTH)
    with oracle.applied(by_hand, scene.model):
        expected = scene.sampled(comfy)
    got = neighbour(comfy, with_edit).sampled(comfy)
    assert relative_error(got, expected) < 1e-5
    (message,) = messages(caplog)
    assert "does not take a text of the edit's length" in message


@pytest.mark.parametrize("method", ["words", "compose"])
@pytest.mark.parametrize("name", with_mark(WINDOWED, pytest.mark.interface, ["context windows"]))
def test_windows_change_nothing_but_the_calls(comfy, pack, name, method):
    """Two windows of one step do not see each other's changes of an edit's context."""
    scene = wired(comfy, pack, name, "neighbour first", [method])
    calls = []

    def count(executor, *args, **kwargs):
        calls.append(args)
        return executor(*args, **kwargs)

    scene.model.add_wrapper_with_key("diffusion_model", "count", count)
    assert relative_error(scene.sampled(comfy), ebca_alone(comfy, pack, "sd1", method, 4, 3)) < TABLE[name].tolerance
    assert len(calls) == 3 * scene.steps  # three windows cover four images
