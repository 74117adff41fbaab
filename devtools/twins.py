"""What the files in `workflows/` become when they run on other models than those they name. Needs the tools installed.

A twin has the nodes and wires of its file and other widget values: tables for `workflows.substitute`. Where it edits or
paints a photo, that is the one of INPUTS.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .server import PACK, Server
from .workflows import Prompt, Substitutions, load, node_ids, substitute, to_api

_REPO = Path(__file__).absolute().parents[1]
WORKFLOWS = _REPO / "workflows"

#: {name in the server's input folder: the picture}. Every ComfyUI has an example.png; here it is a red square, drawn.
INPUTS = {"example.png": _REPO / "demo" / "example.png"}

_CHECKPOINT = ("CheckpointLoaderSimple", "ckpt_name")
_TEXT = ("CLIPTextEncode", "text")


def steps(number: int) -> Substitutions:
    """So many steps for every sampler, and for the inversion that a sampler retraces; RePaint jumps over a fifth."""
    nodes = ("KSampler", "KSamplerAdvanced", "BasicScheduler", "EBCAInvert")
    return {(node, "steps"): number for node in nodes} | {("EBCARePaintSampler", "jump_length"): max(1, number // 5)}


def _photo_divided_by(divisor: int) -> Substitutions:
    """A smaller photo, with the region of its mask in the same place and the room around it in proportion."""
    measures = {
        ("ImageScale", "SolidMask"): ("width", "height"),
        ("MaskComposite",): ("x", "y"),
        ("ImagePadForOutpaint",): ("left", "top", "right", "bottom", "feathering"),
    }
    entries = [(node, name) for nodes, names in measures.items() for node in nodes for name in names]
    return dict.fromkeys(entries, lambda pixels: pixels // divisor)


# The setting in which the shapes model is measured (research/README.md). It makes 64 x 64 pixels for 512 x 512.
_SAMPLING: Substitutions = {
    _CHECKPOINT: "shapes.safetensors",
    ("EmptyLatentImage", "width"): 512,
    ("EmptyLatentImage", "height"): 512,
    **steps(25),
    ("KSampler", "cfg"): 1.25,
    ("KSampler", "sampler_name"): "euler",
    ("KSampler", "scheduler"): "normal",
}

# The shapes model decides early what it draws.
_EARLY: Substitutions = {("EBCAEditContext", "start_percent"): 0.15, ("EBCAEditContext", "gamma_start_percent"): 0.15}

# The photo is a red square. Without the ground in the caption, the ground would drift.
_PHOTO = "a red square on a white background"

# A photo has as many latent pixels as pixels here, so it is scaled to the 64 x 64 that the shapes model makes.
_INVERTED: Substitutions = {
    _CHECKPOINT: "shapes.safetensors",
    **_photo_divided_by(8),
    **steps(25),
    ("EBCAInvert", "fixed_point_iterations"): 1,
    ("KSamplerAdvanced", "cfg"): 3.0,
    ("CFGGuider", "cfg"): 3.0,
    ("EBCAEditContext", "start_percent"): 0.3,
    ("EBCAEditContext", "gamma_start_percent"): 0.3,
}

# What is painted into the photo, or around it.
_PAINTED: Substitutions = _SAMPLING | {
    **_photo_divided_by(8),
    ("CFGGuider", "cfg"): 1.25,
    ("BasicScheduler", "scheduler"): "normal",
}
_TEDDY = "a teddy bear sitting on the grass"

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
            "a castle next to a river": "a red circle on a white background", "": "",
            "monet painting, impression, sunrise": "on a black background",
            "boat on a river, boat": "a yellow star and a red circle",
        },
        ("PrimitiveInt", "value"): 0,
        ("EBCAEditContext", "start_percent"): 0.0,
        ("EBCAEditContext", "gamma_start_percent"): 0.0,
    },
    # The guidance beside which this helps (docs/alignment.md).
    "each_concept_sd15": _SAMPLING | {
        _TEXT: {
            "a bear, a red balloon and a blue bench": "a red circle, a green square and a yellow triangle", "": "",
            "a bear": "a red circle", "a red balloon": "a green square", "a blue bench": "a yellow triangle",
        },
        ("KSampler", "cfg"): 2.5,
        ("PrimitiveInt", "value"): 5,
    },
    "stylise_sd15": _SAMPLING | {
        _TEXT: {
            "a house at a lake": "a blue square", "": "",
            "Water colors, Watercolor painting, Watercolor": "yellow",
        },
        **_EARLY,
    },
    # An edit so strong that it spoils the shape. What fades before the shape is drawn, leaves it to the prompt.
    "schedule_sd15": _SAMPLING | {
        _TEXT: {
            "a house at a lake": "a blue square", "": "",
            "Water colors, Watercolor painting, Watercolor": "yellow",
        },
        ("EBCAEditContext", "alpha"): 2.5,
        ("EBCAEditContext", "start_percent"): 0.0,
        ("EBCAEditContext", "gamma_start_percent"): 0.0,
    },
    # Gammas that can be seen in the plot, and in the sweep in the pictures: far above those that one would take.
    "trace_sd15": _SAMPLING | {
        _TEXT: {"": ""},
        ("PrimitiveStringMultiline", "value"): {"a lion with a crown": "a purple square and a yellow star"},
        ("EBCAAttentionMaps", "words"): {"lion, crown": "purple, square, yellow, star"},
        ("EBCAContextUpdate", "gamma_attn"): 0.2,
        ("EBCAContextUpdate", "gamma_norm"): 0.1,
    },
    "sweep_sd15": _SAMPLING | {
        _TEXT: {"a lion with a crown": "a purple square and a yellow star", "": ""},
        ("EBCASweep", "x_values"): "0, 0.1, 0.2, 0.4",
        ("EBCASweep", "y_values"): "0, 0.1, 0.3, 0.8",
    },
    "add_and_remove_sd15": _SAMPLING | {
        _TEXT: {"a cat sitting on a bench": "a red square", "": "", "dog": "a blue circle", "cat": "a red square"},
        **_EARLY,
    },
    "real_image_cat_to_dog_sd15": _INVERTED | {
        _TEXT: {"a cat sitting on a bench": _PHOTO, "dog": "blue circle", "cat": "red square"},
        ("EBCAEditContext", "alpha"): {0.75: 1.2, 0.65: 1.1},
    },
    "real_image_horse_to_zebra_sd15": _INVERTED | {
        _TEXT: {"a brown horse standing in a meadow": _PHOTO, "zebra": "green cross", "brown horse": "red square"},
        ("EBCAEditContext", "alpha"): {0.6: 1.2, 0.5: 1.1},
    },
    "real_image_to_goat_sd15": _INVERTED | {
        _TEXT: {"a photo of a dog": _PHOTO, "a goat, a photography of a goat": "red circle"},
        ("EBCAEditContext", "alpha"): 1.2,
    },
    "real_image_with_mask_sd15": _INVERTED | {
        _TEXT: {"a cat sitting on a bench": _PHOTO, "dog": "blue circle", "cat": "red square"},
        ("EBCAEditContext", "alpha"): {0.75: 1.2, 0.65: 1.1},
    },
    # The shapes model is no inpainting model: of what InpaintModelConditioning gives, it knows the noise mask alone.
    "inpaint_model_sd15": _PAINTED | {
        _TEXT: {_TEDDY: "a blue circle on a white background", "": ""},
    },
    "repaint_sd15": _PAINTED | {
        _TEXT: {_TEDDY: "a blue circle on a white background", "": ""},
    },
    "outpaint_sd15": _PAINTED | {
        _TEXT: {
            "a child's drawing of a girl on a green hill, blue sky and white clouds":
                "a red square and a blue circle on a white background", "": "",
        },
    },
}  # fmt: skip

#: For checkpoints of random weights in the genuine layouts: everything as in the file but for the checkpoint's name.
RANDOM: Substitutions = {
    _CHECKPOINT: {
        "v1-5-pruned-emaonly-fp16.safetensors": "random_sd15.ckpt",
        "sd_xl_base_1.0.safetensors": "random_sdxl.ckpt",
        "sd-v1-5-inpainting.ckpt": "random_sd15_inpaint.ckpt",
    },
}

#: A run of seconds on a CPU instead of minutes.
SMALL: Substitutions = {
    ("EmptyLatentImage", "width"): 128,
    ("EmptyLatentImage", "height"): 128,
    **_photo_divided_by(4),
    **steps(4),
    ("EBCASweep", "x_values"): "0, 0.02",
    ("EBCASweep", "y_values"): "0, 0.04",
}

#: Every strength zero: a workflow's pictures with and without EBCA are the same.
OFF: Substitutions = {
    ("EBCAContextUpdate", "gamma_attn"): 0.0,
    ("EBCAContextUpdate", "gamma_norm"): 0.0,
    ("EBCAEditContext", "alpha"): 0.0,
    ("EBCAEditContext", "gamma_attn"): 0.0,
    ("EBCAEditContext", "gamma_norm"): 0.0,
    ("EBCASweep", "x_values"): "0, 0",
    ("EBCASweep", "y_values"): "0, 0",
}


#: What saves a picture.
_SAVING = ("SaveImage", "EBCASweepGrid")


def shapes_server(comfyui: Path, checkpoint: Path = _REPO / "demo" / "shapes.safetensors") -> Server:
    """A server on which the twins of SHAPES run."""
    packs = {PACK: _REPO, "shapes_family": _REPO / "demo" / "shapes_family"}
    return Server(comfyui, packs=packs, models={"checkpoints/shapes.safetensors": checkpoint}, inputs=INPUTS)


def prompt_of(name: str, object_info: Mapping[str, Any], *tables: Substitutions) -> Prompt:
    """The prompt of a file in `workflows/`, with the tables' substitutions one after the other."""
    prompt = to_api(load(WORKFLOWS / f"{name}.json"), object_info)
    for table in tables:
        prompt = substitute(prompt, table)
    return prompt


def pictures(prompt: Prompt) -> dict[str, str]:
    """{title: id} of the nodes that save a picture: "Without EBCA", "With EBCA" and so on."""
    return {prompt[node_id]["_meta"]["title"]: node_id for node in _SAVING for node_id in node_ids(prompt, node)}


def saved(server: Server, prompt: Prompt, timeout: float = 1800) -> dict[str, list[bytes]]:
    """Run a prompt: the files that it saves, by the titles of the nodes that save them."""
    history = server.run(prompt, timeout)
    return {title: server.images(history, node_id) for title, node_id in pictures(prompt).items()}
