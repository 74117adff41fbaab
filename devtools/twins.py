"""What the files in `workflows/` become when they run on other models than those they name. Needs the tools installed.

A twin has the nodes and wires of its file and other widget values: tables for `workflows.substitute`.
"""

from pathlib import Path

from .workflows import Prompt, Substitutions, node_ids

WORKFLOWS = Path(__file__).absolute().parents[1] / "workflows"

_CHECKPOINT = ("CheckpointLoaderSimple", "ckpt_name")
_TEXT = ("CLIPTextEncode", "text")

# The setting in which the shapes model is measured (demo/README.md). It makes 64 x 64 pixels where 512 x 512 are asked.
_SAMPLING: Substitutions = {
    _CHECKPOINT: "shapes.safetensors",
    ("EmptyLatentImage", "width"): 512,
    ("EmptyLatentImage", "height"): 512,
    ("KSampler", "steps"): 25,
    ("KSampler", "cfg"): 1.25,
    ("KSampler", "sampler_name"): "euler",
    ("KSampler", "scheduler"): "normal",
}

# The shapes model decides early what it draws.
_EARLY: Substitutions = {("EBCAEditContext", "start_percent"): 0.15, ("EBCAEditContext", "gamma_start_percent"): 0.15}

#: {name of the file: what makes it its twin for the shapes model}
SHAPES: dict[str, Substitutions] = {
    "multi_concept_sd15": _SAMPLING | {
        _TEXT: {"a lion with a crown": "a purple square and a yellow star", "": ""},
    },
    "multi_concept_sdxl": _SAMPLING | {
        _TEXT: {"a lion with a crown": "a green star, a yellow square and a purple cross", "": ""},
    },
    "token_weights_sd15": _SAMPLING | {
        _TEXT: {"": ""},
        ("PrimitiveStringMultiline", "value"): {"A cat wearing a shirt": "a yellow square and a blue triangle"},
        ("EBCATokenWeights", "weights"): {"shirt = 2.5": "triangle = 2.5"},
    },
    "compose_sd15": _SAMPLING | {
        _TEXT: {
            "a castle next to a river": "a red circle", "": "",
            "monet painting, impression, sunrise": "a circle on a black background",
            "boat on a river, boat": "a red circle and a yellow star",
        },
        ("PrimitiveInt", "value"): 0,
        ("EBCAEditContext", "start_percent"): 0.05,
        ("EBCAEditContext", "gamma_start_percent"): 0.05,
        ("EBCAEditContext", "alpha"): 0.8,
    },
    "stylise_sd15": _SAMPLING | {
        _TEXT: {
            "a house at a lake": "a blue square", "": "",
            "Water colors, Watercolor painting, Watercolor": "yellow",
        },
        **_EARLY,
    },
    "add_and_remove_sd15": _SAMPLING | {
        _TEXT: {"a cat sitting on a bench": "a red square", "": "", "dog": "a blue circle", "cat": "a red square"},
        **_EARLY,
    },
}  # fmt: skip

#: For checkpoints of random weights in the genuine layouts: everything as in the file but for the checkpoint's name.
RANDOM: Substitutions = {
    _CHECKPOINT: {
        "v1-5-pruned-emaonly-fp16.safetensors": "random_sd15.ckpt",
        "sd_xl_base_1.0.safetensors": "random_sdxl.ckpt",
    },
}

#: A run of seconds on a CPU instead of minutes.
SMALL: Substitutions = {
    ("EmptyLatentImage", "width"): 128,
    ("EmptyLatentImage", "height"): 128,
    ("KSampler", "steps"): 4,
}

#: Every strength zero: a workflow's pictures with and without EBCA are the same.
OFF: Substitutions = {
    (node, strength): 0.0
    for node, strengths in {
        "EBCAContextUpdate": ["gamma_attn", "gamma_norm"],
        "EBCAEditContext": ["alpha", "gamma_attn", "gamma_norm"],
    }.items()
    for strength in strengths
}


def pictures(prompt: Prompt) -> dict[str, str]:
    """{title: id} of the nodes that save a picture: "Without EBCA", "With EBCA" and so on."""
    return {prompt[node_id]["_meta"]["title"]: node_id for node_id in node_ids(prompt, "SaveImage")}
