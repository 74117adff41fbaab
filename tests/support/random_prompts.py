"""Prompts at random, made from what the nodes' schemas say: whole ones, then some with faults. Needs a booted host.

New nodes join by themselves; an input of a type that is not known here stops the tests and says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.samplers import calculate_sigmas
from hypothesis import strategies as st

from support import toy

Prompt = dict[str, dict[str, Any]]
Link = list

ANY = "*"
TAKEN = "TestTaken"
DEEPEST = 3  # nodes of the pack, one behind the other
NAN = math.nan


def _conditioning(text: Any, **options: Any) -> list:
    return [[text, {"pooled_output": toy.noise(1, toy.POOLED), **options}]]


def _latent(*shape: int, fill: float | None = None, **entries: Any) -> dict[str, Any]:
    samples = toy.noise(*shape) if fill is None else torch.full(shape, fill)
    return {"samples": samples, **entries}


def _with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.flatten()[0] = value
    return tensor


def _sigmas(steps: int) -> torch.Tensor:
    return calculate_sigmas(toy.model().get_model_object("model_sampling"), "normal", steps)


#: {type: {name: makes a thing that nodes should take}}
GOOD: dict[str, dict[str, Callable[[], Any]]] = {
    "MODEL": {family: partial(toy.model, family) for family in ("sd1", "sd2_v", "sdxl", "sd1_inpaint")},
    "CLIP": {family: partial(toy.clip, family) for family in ("sd1", "sd2", "sdxl")},
    "CONDITIONING": {
        "plain": partial(toy.conditioning, 1),
        "another": partial(toy.conditioning, 2),
        "two chunks": partial(toy.conditioning, 3, 154),
        "batch of two": partial(toy.conditioning, 4, 77, 2),
        "zeros": lambda: _conditioning(torch.zeros(1, 77, toy.WIDTH)),
    },
    "LATENT": {
        "empty": partial(toy.latent, 1, 8, 8),
        "a picture": partial(_latent, 1, 4, 8, 8),
        "wide": partial(_latent, 1, 4, 8, 12),
        "batch of two": partial(_latent, 2, 4, 8, 8),
        "batch of three": partial(_latent, 3, 4, 8, 8, batch_index=[4, 0, 2]),
        "odd sides": partial(_latent, 1, 4, 7, 9),
        "masked": lambda: _latent(1, 4, 8, 8, noise_mask=(torch.arange(64.0) / 63).view(1, 8, 8)),
        "masked, two masks for a batch of three": lambda: _latent(3, 4, 8, 8, noise_mask=torch.ones(2, 64, 64)),
        "half precision": lambda: {"samples": toy.noise(1, 4, 8, 8).half()},
    },
    "MASK": {
        "white": partial(torch.ones, 1, 64, 64),
        "black": partial(torch.zeros, 1, 64, 64),
        "ramp": lambda: (torch.arange(64.0) / 63).view(1, 8, 8),
        "one image": lambda: torch.ones(8, 8),
        "batch of two": lambda: torch.rand(2, 5, 9, generator=torch.Generator().manual_seed(0)),
        "batch of five": partial(torch.full, (5, 3, 3), 0.25),
    },
    "IMAGE": {
        "one": lambda: torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0)),
        "batch of two": partial(torch.full, (2, 64, 32, 3), 0.5),
    },
    "SIGMAS": {"two steps": partial(_sigmas, 2), "three steps": partial(_sigmas, 3)},
    "NOISE": {},
    "SAMPLER": {},
}

#: {type: {name: makes a thing of the type that something is wrong or unusual with}}
ODD: dict[str, dict[str, Callable[[], Any]]] = {
    "MODEL": {family: partial(toy.model, family) for family in toy.REFUSED},
    "CLIP": {},
    "CONDITIONING": {
        "no prompts": list,
        "no tokens": lambda: _conditioning(torch.zeros(1, 0, toy.WIDTH)),
        "no batch": lambda: _conditioning(torch.zeros(0, 77, toy.WIDTH)),
        "no text": lambda: _conditioning(None),
        "no options": lambda: [[toy.noise(1, 77, toy.WIDTH)]],
        "narrow": lambda: _conditioning(toy.noise(1, 77, 48)),
        "flat": lambda: _conditioning(toy.noise(77, toy.WIDTH)),
        "nan": lambda: _conditioning(_with_one(toy.noise(1, 77, toy.WIDTH), NAN)),
        "infinite": lambda: _conditioning(_with_one(toy.noise(1, 77, toy.WIDTH), math.inf)),
        "half precision": lambda: _conditioning(toy.noise(1, 77, toy.WIDTH).half()),
        "one token": partial(toy.conditioning, 1, 1),
        "batch of three": partial(toy.conditioning, 1, 77, 3),
        "in an area": partial(toy.conditioning, 5, area=(4, 4, 2, 2), strength=0.5),
        "in a mask": partial(toy.conditioning, 6, mask=torch.ones(1, 8, 8), mask_strength=1.0),
        "late": partial(toy.conditioning, 7, start_percent=0.5, end_percent=1.0),
        "two prompts": lambda: toy.conditioning(8) + toy.conditioning(9),
    },
    "LATENT": {
        "nan": partial(_latent, 1, 4, 8, 8, fill=NAN),
        "one nan": lambda: {"samples": _with_one(toy.noise(1, 4, 8, 8), NAN)},
        "infinite": partial(_latent, 1, 4, 8, 8, fill=math.inf),
        "no batch": partial(_latent, 0, 4, 8, 8),
        "no height": partial(_latent, 1, 4, 0, 8),
        "one position": partial(_latent, 1, 4, 1, 1),
        "three sides": partial(_latent, 4, 8, 8),
        "a video": partial(_latent, 1, 4, 2, 8, 8),
        "nine channels": partial(_latent, 1, 9, 8, 8),
        "no samples": dict,
        "a list": lambda: {"samples": [[0.0]]},
        "whole numbers": lambda: {"samples": torch.ones(1, 4, 8, 8, dtype=torch.int64)},
        "nan in the noise mask": lambda: _latent(1, 4, 8, 8, noise_mask=torch.full((1, 8, 8), NAN)),
        "noise mask without batch": lambda: _latent(2, 4, 8, 8, noise_mask=torch.ones(0, 8, 8)),
        "noise mask of 255": lambda: _latent(1, 4, 8, 8, noise_mask=torch.full((1, 8, 8), 255.0)),
    },
    "MASK": {
        "one side": partial(torch.ones, 64),
        "a number": lambda: torch.tensor(1.0),
        "nothing": partial(torch.ones, 0, 8, 8),
        "no height": partial(torch.ones, 1, 0, 8),
        "nan": partial(torch.full, (1, 8, 8), NAN),
        "255": partial(torch.full, (1, 8, 8), 255.0),
        "negative": partial(torch.full, (1, 8, 8), -0.5),
        "an image": partial(torch.ones, 1, 8, 8, 3),
        "yes and no": lambda: torch.ones(1, 8, 8, dtype=torch.bool),
        "bytes": lambda: torch.ones(1, 8, 8, dtype=torch.uint8),
        "half precision": lambda: torch.ones(1, 8, 8, dtype=torch.float16),
        "complex": lambda: torch.ones(1, 8, 8, dtype=torch.complex64),
    },
    "IMAGE": {
        "nan": partial(torch.full, (1, 8, 8, 3), NAN),
        "nothing": partial(torch.ones, 0, 8, 8, 3),
        "four channels": partial(torch.ones, 1, 8, 8, 4),
        "flat": partial(torch.ones, 8, 8),
    },
    "SIGMAS": {
        "rising": lambda: _sigmas(2).flip(0),
        "none": lambda: torch.tensor([]),
        "one": lambda: torch.tensor([1.0]),
        "nan": lambda: torch.tensor([14.0, NAN, 0.0]),
        "infinite": lambda: torch.tensor([math.inf, 1.0, 0.0]),
        "negative": lambda: torch.tensor([14.0, 1.0, -1.0]),
        "equal": lambda: torch.tensor([1.0, 1.0, 0.0]),
        "two rows": lambda: torch.ones(2, 3),
        "above the model's": lambda: torch.tensor([1e4, 1.0, 0.0]),
        "whole numbers": lambda: torch.tensor([14, 1, 0]),
    },
}

#: What may lie on a wire of any type, where another pack's node leaves it open what it gives.
ANYTHING: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "a number": lambda: 3,
    "a negative number": lambda: -7,
    "not a number": lambda: NAN,
    "a text": lambda: "text",
    "a list": list,
    "a table": dict,
    "an image": partial(torch.ones, 1, 8, 8, 3),
}

#: Core nodes that make or take what no tensor stands for; their other inputs.
MAKERS: dict[str, tuple[str, dict[str, Any]]] = {
    "NOISE": ("RandomNoise", {"noise_seed": 0}),
    "SAMPLER": ("KSamplerSelect", {"sampler_name": "euler"}),
}
SAMPLERS = ("euler", "heun", "dpmpp_2m", "ddim", "euler_ancestral")
TEXTS = ("a red circle and a blue square", "red = 2.5", "circle = 0\nblue square = 3", "d0-d1,m0", "u0.0", "words", "")
FAULTS = ["left out", "of another type", "anything", "no wire", "a wrong slot"]
WRONG_JSON = (
    None, "", "abc", "broken.latent", "nan", -1, 10**30, 1e400, NAN, -0.001, True, {}, {"__value__": [1]}, ["1"], [],
)  # fmt: skip


class _Supply:
    """A node without wires that gives one of the things by its name."""

    FUNCTION = "supply"
    CATEGORY = "tests"
    things: Mapping[str, Any]

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"name": ("STRING", {})}}

    def supply(self, name):
        return (self.things[name],)


class _Taken:
    """An end of the graph, which takes anything."""

    FUNCTION = "take"
    CATEGORY = "tests"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (ANY, {})}}

    def take(self, value):
        return {}


def supplies() -> dict[str, type]:
    """Nodes for NODE_CLASS_MAPPINGS from which the prompts get their things, made once: no node may change them."""
    pools = {kind: GOOD[kind] | ODD.get(kind, {}) for kind in GOOD} | {ANY: ANYTHING}
    classes = {}
    for kind, makers in pools.items():
        things = {name: make() for name, make in makers.items()}
        classes[supply_of(kind)] = type(supply_of(kind), (_Supply,), {"things": things, "RETURN_TYPES": (kind,)})
    return {**classes, TAKEN: _Taken}


def supply_of(kind: str) -> str:
    return f"TestSupply {kind}"


class RandomPrompts:
    """Draws prompts around the pack's nodes.

    Args:
        mappings: ComfyUI's NODE_CLASS_MAPPINGS, with `supplies` in it.
        ours: the ids of the pack's nodes.
    """

    def __init__(self, mappings: Mapping[str, type], ours: Iterable[str]):
        self._mappings = mappings
        # Read once: the choices of a Combo may be files, which come and go.
        self._inputs = {node_id: _inputs(mappings[node_id]) for node_id in ours}

    def draw(self, draw: Callable, node_id: str) -> Prompt:
        """A prompt around one node of the pack, with up to two faults."""
        prompt: Prompt = {}
        self._end(draw, prompt, self._add(draw, prompt, node_id, DEEPEST))
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
            self._spoil(draw, prompt)
        _with_clips_of_models(prompt)
        return prompt

    def without_pack(self, prompt: Prompt) -> Prompt:
        """The prompt with the pack's nodes bypassed: what they give is what they were given, or a plain thing."""
        plain = {name: copy.deepcopy(node) for name, node in prompt.items() if node["class_type"] not in self._inputs}
        for node in list(plain.values()):
            for name, value in node["inputs"].items():
                if _is_link(value, prompt):
                    node["inputs"][name] = self._past(prompt, plain, value)
        for node in prompt.values():  # what only the pack's nodes have taken
            if node["class_type"] in self._inputs:
                for value in node["inputs"].values():
                    if _is_link(value, prompt) and value[0] in plain:
                        _add(plain, TAKEN, {"value": value})
        return plain

    def _past(self, prompt: Prompt, plain: Prompt, link: Link) -> Link:
        source, slot = link
        node = prompt[source]
        types = self._mappings[node["class_type"]].RETURN_TYPES
        if node["class_type"] not in self._inputs or slot >= len(types):
            return link
        for own in self._inputs[node["class_type"]]:
            value = node["inputs"].get(own.name)
            if own.kind == types[slot] and _is_link(value, prompt):
                return self._past(prompt, plain, value)
        if types[slot] in MAKERS:
            return _add(plain, *MAKERS[types[slot]])
        kind = types[slot] if GOOD.get(types[slot]) else ANY
        return _add(plain, supply_of(kind), {"name": next(iter(GOOD.get(kind, ANYTHING)))})

    # --- whole prompts ---

    def _add(self, draw: Callable, prompt: Prompt, node_id: str, depth: int, /, **wired: Link) -> str:
        """A node of the pack with good inputs; its id in the prompt."""
        inputs = dict(wired)
        for own in self._inputs[node_id]:
            if own.name not in inputs and not (own.optional and draw(st.booleans())):
                inputs[own.name] = self._good(draw, prompt, own, depth - 1)
        if node_id in BELONGING and draw(st.sampled_from([True] * 7 + [False])):
            inputs |= BELONGING[node_id](prompt)
        return _add(prompt, node_id, inputs)[0]

    def _good(self, draw: Callable, prompt: Prompt, own: _Input, depth: int) -> Any:
        widget = _widget(own)
        if widget is not None:
            return draw(widget)
        return self._wire(draw, prompt, own, depth)

    def _wire(self, draw: Callable, prompt: Prompt, own: _Input, depth: int) -> Link:
        """A link to something of the type: there already, supplied, sampled, or from a node of the pack."""
        kind = own.kind
        makers = [(name, slot) for name in self._inputs for slot in self._slots(name, kind)]
        there = [[node, slot] for node in prompt for slot in self._slots(prompt[node]["class_type"], kind)]
        ways = ["supplied"] * 3 * bool(GOOD.get(kind)) + ["core"] * 2 * (kind in MAKERS) + ["there"] * bool(there)
        if makers and (depth > 0 or not ways):
            ways += ["made"] * 2
        if kind == "LATENT" and depth > 0:
            ways.append("sampled")
        if not ways:
            raise LookupError(
                f"No things of type {kind}, which {own.name} takes: add good and odd ones to {__name__}.GOOD and ODD."
            )
        way = draw(st.sampled_from(ways))
        if way == "there":
            return draw(st.sampled_from(there))
        if way == "supplied":
            return _add(prompt, supply_of(kind), {"name": draw(st.sampled_from(list(GOOD[kind])))})
        if way == "core":
            return _add(prompt, *MAKERS[kind])
        if way == "sampled":
            return self._sampled(draw, prompt, self._socket(draw, prompt, "MODEL", depth - 1), depth - 1)
        name, slot = draw(st.sampled_from(makers))
        return [self._add(draw, prompt, name, depth), slot]

    def _socket(self, draw: Callable, prompt: Prompt, kind: str, depth: int) -> Link:
        return self._wire(draw, prompt, _Input(kind.lower(), kind), depth)

    def _slots(self, class_type: str, kind: str) -> list[int]:
        return [slot for slot, own in enumerate(self._mappings[class_type].RETURN_TYPES) if own == kind]

    # --- what becomes of a node's outputs ---

    def _end(self, draw: Callable, prompt: Prompt, node: str, depth: int = DEEPEST) -> None:
        """Wire outputs of a node until the prompt ends in a node that is run for itself."""
        types = self._mappings[prompt[node]["class_type"]].RETURN_TYPES
        if not types:
            return
        slot = draw(st.sampled_from(range(len(types))))
        link, kind = [node, slot], types[slot]
        takers = [
            (name, next(own.name for own in inputs if own.kind == kind))
            for name, inputs in self._inputs.items()
            if any(own.kind == kind for own in inputs)
        ]
        sampled = {"MODEL": self._sampled, "LATENT": self._sampled_on, "NOISE": self._from_noise, "SAMPLER": self._by}
        if kind in sampled and (not takers or depth == 0 or draw(st.integers(0, 3))):
            _add(prompt, TAKEN, {"value": sampled[kind](draw, prompt, link, depth - 1)})
        elif takers and depth > 0:
            taker, name = draw(st.sampled_from(takers))
            self._end(draw, prompt, self._add(draw, prompt, taker, depth, **{name: link}), depth - 1)
        else:
            _add(prompt, TAKEN, {"value": link})

    def _sampled(self, draw: Callable, prompt: Prompt, model: Link, depth: int) -> Link:
        return _add(prompt, "KSampler", {
            "model": model, "latent_image": self._socket(draw, prompt, "LATENT", 0), "seed": 0,
            **self._prompts(draw, prompt), **self._run(draw), "sampler_name": draw(st.sampled_from(SAMPLERS)),
            "denoise": draw(st.sampled_from([1.0, 0.5])),
        })  # fmt: skip

    def _sampled_on(self, draw: Callable, prompt: Prompt, latent: Link, depth: int) -> Link:
        return _add(prompt, "KSamplerAdvanced", {
            "model": self._socket(draw, prompt, "MODEL", depth), "latent_image": latent, "noise_seed": 0,
            **self._prompts(draw, prompt), **self._run(draw), "sampler_name": "euler", "add_noise": "disable",
            "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable",
        })  # fmt: skip

    def _from_noise(self, draw: Callable, prompt: Prompt, noise: Link, depth: int) -> Link:
        return self._custom(draw, prompt, depth, noise=noise)

    def _by(self, draw: Callable, prompt: Prompt, sampler: Link, depth: int) -> Link:
        return self._custom(draw, prompt, depth, sampler=sampler)

    def _custom(self, draw: Callable, prompt: Prompt, depth: int, **wired: Link) -> Link:
        model = self._socket(draw, prompt, "MODEL", depth)
        guider = _add(prompt, "CFGGuider", {"model": model, "cfg": 4.0, **self._prompts(draw, prompt)})
        sockets = {"noise": "NOISE", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"}
        wires = {name: wired.get(name) or self._socket(draw, prompt, kind, 0) for name, kind in sockets.items()}
        return _add(prompt, "SamplerCustomAdvanced", {"guider": guider, **wires})

    def _prompts(self, draw: Callable, prompt: Prompt) -> dict[str, Link]:
        return {role: self._socket(draw, prompt, "CONDITIONING", 0) for role in ("positive", "negative")}

    @staticmethod
    def _run(draw: Callable) -> dict[str, Any]:
        return {"steps": draw(st.integers(1, 2)), "cfg": draw(st.sampled_from([4.0, 1.0])), "scheduler": "normal"}

    # --- faults ---

    def _spoil(self, draw: Callable, prompt: Prompt) -> None:
        """Put something wrong or unusual into one input, or take it away."""
        places = [place for node in prompt.values() for place in self._places(node)]
        sockets = [place for place in places if ODD.get(place[2])]
        node, name, kind = draw(st.sampled_from(draw(st.sampled_from([places, sockets or places]))))
        fault = draw(st.sampled_from(FAULTS + ["odd"] * len(FAULTS) * bool(ODD.get(kind))))
        inputs = node["inputs"]
        if fault == "left out":
            inputs.pop(name, None)
        elif fault == "no wire":
            inputs[name] = draw(st.sampled_from(WRONG_JSON))
        elif fault == "a wrong slot":
            inputs[name] = [draw(st.sampled_from([*prompt, "nowhere"])), 99]
        elif fault == "anything":
            inputs[name] = _add(prompt, supply_of(ANY), {"name": draw(st.sampled_from(list(ANYTHING)))})
        else:
            pool = ODD[kind] if fault == "odd" else GOOD[kind := draw(st.sampled_from([k for k in GOOD if GOOD[k]]))]
            inputs[name] = _add(prompt, supply_of(kind), {"name": draw(st.sampled_from(list(pool)))})

    def _places(self, node: dict[str, Any]) -> list[tuple[dict, str, str]]:
        """A node's inputs that may be spoiled, and their types."""
        if node["class_type"] in self._inputs:
            return [(node, own.name, own.kind) for own in self._inputs[node["class_type"]]]
        core = {"positive": "CONDITIONING", "negative": "CONDITIONING", "latent_image": "LATENT", "sigmas": "SIGMAS"}
        return [(node, name, kind) for name, kind in core.items() if name in node["inputs"]]


def _with_clips_of_models(prompt: Prompt) -> None:
    """SDXL's CLIP beside an SDXL model: the toys of another family have text of SDXL's width, which no real one has."""
    models, clips = (
        [node["inputs"] for node in prompt.values() if node["class_type"] == supply_of(kind)]
        for kind in ("MODEL", "CLIP")
    )
    if any(inputs["name"] == "sdxl" for inputs in models):
        for inputs in clips:
            inputs["name"] = "sdxl" if inputs["name"] in GOOD["CLIP"] else inputs["name"]


def _traced(prompt: Prompt) -> dict[str, Any]:
    """A trace, and the latent of the run that it is of."""
    supplied = {kind: _add(prompt, supply_of(kind), {"name": next(iter(GOOD[kind]))}) for kind in GOOD if GOOD[kind]}
    traced = _add(prompt, "EBCATrace", {"model": supplied["MODEL"], "attention_maps": True})
    latent = _add(prompt, "KSampler", {
        "model": traced, "positive": supplied["CONDITIONING"], "negative": supplied["CONDITIONING"], "seed": 0,
        "latent_image": supplied["LATENT"], "steps": 1, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0,
    })  # fmt: skip
    return {"trace": [traced[0], 1], "latent": latent}


def _traced_picture(prompt: Prompt, /, **words: str) -> dict[str, Any]:
    clip, image = (_add(prompt, supply_of(kind), {"name": next(iter(GOOD[kind]))}) for kind in ("CLIP", "IMAGE"))
    return {**_traced(prompt), "clip": clip, "image": image, **words}


def _swept(prompt: Prompt) -> dict[str, Any]:
    """A sweep, and a picture for each of its pairs: the curve of a schedule."""
    sweep = _add(prompt, "EBCASweep", {"x_name": "x", "x_values": "0, 0.5", "y_name": "y", "y_values": "1, 2, 3"})
    curves = _add(prompt, "EBCASchedule", {
        "shape": "linear", "start_factor": sweep, "end_factor": [sweep[0], 1], "start_percent": 0.0, "end_percent": 1.0,
    })  # fmt: skip
    return {"sweep": [sweep[0], 2], "images": [curves[0], 1]}


def _edit(prompt: Prompt) -> Link:
    """An edit in which nothing is out of range; with a dozen numbers, few are so by chance."""
    zeros = ("start_percent", "gamma_attn", "gamma_norm", "gamma_start_percent")
    return _add(prompt, "EBCAEditContext", {
        "conditioning": _add(prompt, supply_of("CONDITIONING"), {"name": "plain"}), "direction": "add", "alpha": 0.5,
        "end_percent": 1.0, "gamma_end_percent": 1.0, **dict.fromkeys(zeros, 0.0),
    })  # fmt: skip


#: {node: makes inputs that belong to each other, or together, which would hardly be met by chance}
BELONGING: dict[str, Callable[[Prompt], dict[str, Any]]] = {
    "EBCAConcepts": lambda prompt: {"prompt": "a red ball and a blue cube", "concepts": ""},  # an empty one is refused
    "EBCACompose": lambda prompt: {"edits.edit0": _edit(prompt), "mix_pooled": False},  # which U-Nets refuse
    "EBCAEnergyPlot": _traced,
    "EBCASaveTrace": _traced,
    "EBCAAttentionMaps": partial(_traced_picture, text=TEXTS[0], words=""),
    "EBCARank": partial(_traced_picture, prompt=TEXTS[0], concepts=""),
    "EBCAReroll": lambda prompt: {"prompt": TEXTS[0], "concepts": "", "tries": 2},
    "EBCASweepGrid": _swept,
    "EBCASweep": lambda prompt: {"x_values": "0, 0.5", "y_values": ""},  # each pair is a run of what comes behind
}


class _Input(NamedTuple):
    """An input of a node: `schema` is ComfyUI's own description of it."""

    name: str
    kind: str
    optional: bool = False
    schema: Any = None


def _inputs(cls: type) -> list[_Input]:
    """The inputs of a node; of those that grow, the first few."""
    found = []
    for schema in cls.GET_SCHEMA().inputs:
        template = getattr(schema, "template", None)
        if template is None:
            found.append(_Input(schema.id, schema.get_io_type(), bool(schema.optional), schema))
            continue
        for number, name in enumerate(template.names[: template.min + 2]):
            kind = template.input.get_io_type()
            found.append(_Input(f"{schema.id}.{name}", kind, number >= template.min, template.input))
    return found


def _widget(own: _Input) -> st.SearchStrategy | None:
    """Good values of an input that is a widget; None for a socket."""
    schema, kind = own.schema, own.kind
    if kind == "FLOAT":
        bounds = st.sampled_from([schema.min, schema.max])
        return _mostly(schema.default, bounds, st.floats(schema.min, schema.max))
    if kind == "INT":  # small ones: what a node counts takes time
        return st.integers(schema.min, min(schema.max, schema.min + 3))
    if kind == "BOOLEAN":
        return st.booleans()
    if kind == "COMBO":
        return st.sampled_from(list(schema.options))
    if kind == "STRING":
        return _mostly(schema.default, st.sampled_from(TEXTS), st.text(max_size=8))
    return None


def _mostly(default: Any, *others: st.SearchStrategy) -> st.SearchStrategy:
    """Values that rarely fit together come rarely; a Combo of files, say, has no default."""
    usual = [] if default is None else [st.just(default)] * 12 * len(others)
    return st.sampled_from([*usual, *others]).flatmap(lambda values: values)


def _add(prompt: Prompt, class_type: str, inputs: Mapping[str, Any]) -> Link:
    """A new node of the prompt, and the link to its first output."""
    node = str(max(map(int, prompt), default=0) + 1)
    prompt[node] = {"class_type": class_type, "inputs": dict(inputs)}
    return [node, 0]


def _is_link(value: Any, prompt: Prompt) -> bool:
    return isinstance(value, list) and len(value) == 2 and value[0] in prompt
