"""What the files in `workflows/` become when they run on other models than those they name. Needs the tools installed.

A twin has the nodes and wires of its file and other widget values: tables for `workflows.substitute`. Where it edits or
paints a photo, that is one of INPUTS. Variants are twins of what the notes of a file propose. Files for transformers
have no twin: the shapes model and the things model are U-Nets.

The tests count what the twins for the shapes model (SHAPES) show. The thumbnails and the pictures of the documents are
made by those for the things model (THINGS) where there is one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .server import PACK, Server
from .workflows import Prompt, Substitutions, load, node_ids, substitute, to_api

_REPO = Path(__file__).absolute().parents[1]
WORKFLOWS = _REPO / "workflows"

#: {name in the server's input folder: the picture}. Every ComfyUI has an example.png; here it is a red square, drawn.
#: The photo of the things model is a drawn cat, in a style that this model was not trained on.
INPUTS = {name: _REPO / "demo" / name for name in ("example.png", "cat.png")}

#: {name of a checkpoint: the file}, the small models that the twins run on.
MODELS = {name: _REPO / "demo" / name for name in ("shapes.safetensors", "things.safetensors")}

_CHECKPOINT = ("CheckpointLoaderSimple", "ckpt_name")
_TEXT = ("CLIPTextEncode", "text")
_EDIT_TEXT, _ALPHA = ("EBCAEditContext", "text"), ("EBCAEditContext", "alpha")
_SEED = ("PrimitiveInt", "value")


def steps(number: int) -> Substitutions:
    """So many steps for every sampler, and for the inversion that a sampler retraces; RePaint jumps over a fifth."""
    nodes = ("KSampler", "BasicScheduler", "EBCAInvert")
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


def _start(percent: float) -> Substitutions:
    """Where edits and their own updates begin. The shapes model decides early what it draws."""
    return {("EBCAEditContext", "start_percent"): percent, ("EBCAEditContext", "gamma_start_percent"): percent}


# The photo is a red square. Without the ground in the caption, the ground would drift.
_PHOTO = "a red square on a white background"

# A photo has as many latent pixels as pixels here, so it is scaled to the 64 x 64 that the shapes model makes.
_INVERTED: Substitutions = {
    _CHECKPOINT: "shapes.safetensors",
    **_photo_divided_by(8),
    **steps(25),
    ("EBCAInvert", "fixed_point_iterations"): 1,
    ("CFGGuider", "cfg"): 3.0,
    **_start(0.3),
    _TEXT: {"a cat sitting on a bench": _PHOTO},
    _EDIT_TEXT: {"dog": "blue circle", "cat": "red square"},
    _ALPHA: {0.75: 1.2, 0.65: 1.1},
}

# What is painted into the photo, or around it.
_PAINTED: Substitutions = _SAMPLING | {
    **_photo_divided_by(8),
    ("SamplerCustom", "cfg"): 1.25,
    ("BasicScheduler", "scheduler"): "normal",
}

_LION_TWIN = "a purple square and a yellow star"

#: {name of the file: what makes it its twin for the shapes model}
SHAPES: dict[str, Substitutions] = {
    # The guidance beside which this helps (docs/alignment.md).
    "EBCA 01 Several things (SD 1.5)": _SAMPLING | {
        ("EBCAConcepts", "prompt"): "a red circle, a green square and a yellow triangle",
        ("KSampler", "cfg"): 2.5,
        _SEED: 5,
    },
    "EBCA 02 Several things (SDXL)": _SAMPLING | {
        ("EBCAConcepts", "prompt"): "a yellow star, a purple square and a blue circle",
        ("KSampler", "cfg"): 2.5,
        _SEED: 2,
    },
    "EBCA 03 Add and remove (SD 1.5)": _SAMPLING | {
        _TEXT: {"a cat sitting on a bench": "a red square", "": ""},
        _EDIT_TEXT: {"dog": "blue circle", "cat": "red square"},
        **_start(0.15),
    },
    # An edit so strong that it spoils the shape. What fades before the shape is drawn, leaves it to the prompt.
    "EBCA 04 Style with schedule (SDXL)": _SAMPLING | {
        _TEXT: {"a house at a lake": "a blue square", "": ""},
        _EDIT_TEXT: "yellow",
        _ALPHA: 2.5,
        **_start(0.0),
    },
    "EBCA 05 Photo cat to dog (SD 1.5)": _INVERTED,
    "EBCA 06 Photo with mask (SD 1.5)": _INVERTED,
    # The shapes model is no inpainting model: of what InpaintModelConditioning gives, it knows the noise mask alone.
    "EBCA 07 Inpainting (SD 1.5)": _PAINTED | {
        _TEXT: {"a teddy bear sitting on the grass": "a blue circle on a white background", "": ""},
    },
    "EBCA 08 Outpainting with RePaint (SD 1.5)": _PAINTED | {
        _TEXT: {
            "a child's drawing of a girl on a green hill, blue sky and white clouds":
                "a red square and a blue circle on a white background", "": "",
        },
    },
    # Gammas that can be seen in the plot, and in the sweep in the pictures: far above those that one would take.
    "EBCA 09 Attention maps (SDXL)": _SAMPLING | {
        ("PrimitiveStringMultiline", "value"): _LION_TWIN,
        ("EBCAAttentionMaps", "words"): "purple, square, yellow, star",
        ("EBCAContextUpdate", "gamma_attn"): 0.2,
        ("EBCAContextUpdate", "gamma_norm"): 0.1,
    },
    "EBCA 10 Context update (SD 1.5)": _SAMPLING | {
        ("PrimitiveStringMultiline", "value"): "a yellow square and a blue triangle",
        ("EBCATokenWeights", "weights"): "triangle = 2.5",
    },
    "EBCA 11 Sweep (SDXL)": _SAMPLING | {
        _TEXT: {"a lion with a crown": _LION_TWIN, "": ""},
        ("EBCASweep", "x_values"): "0, 0.1, 0.2, 0.4",
        ("EBCASweep", "y_values"): "0, 0.1, 0.3, 0.8",
    },
    "EBCA 12 Best of four (SD 1.5)": _SAMPLING | {
        ("PrimitiveStringMultiline", "value"): "a red circle, a green square and a yellow triangle",
        ("KSampler", "cfg"): 2.5,
        _SEED: 5,
    },
}  # fmt: skip

# The setting in which the things model is measured (research/worlds.py).
_USUAL_CFG = 3.0
_THINGS_SAMPLING: Substitutions = {
    _CHECKPOINT: "things.safetensors",
    ("EmptyLatentImage", "width"): 128,
    ("EmptyLatentImage", "height"): 128,
    **steps(20),
    ("KSampler", "cfg"): _USUAL_CFG,
    ("KSampler", "sampler_name"): "dpmpp_2m",
    ("KSampler", "scheduler"): "normal",
}

# The photo of a cat, in the 128 x 128 pixels that the things model makes.
_CAT: Substitutions = {
    _CHECKPOINT: "things.safetensors",
    ("LoadImage", "image"): "cat.png",
    **_photo_divided_by(4),
}
# Without the terms that make the noise look like random noise: with them, the cat comes back in another style.
_CAT_INVERTED: Substitutions = _CAT | {
    **steps(25),
    ("EBCAInvert", "fixed_point_iterations"): 1,
    ("EBCAInvert", "lambda_auto_corr"): 0.0,
    ("EBCAInvert", "lambda_kl"): 0.0,
    ("CFGGuider", "cfg"): _USUAL_CFG,
    **_start(0.3),
    _TEXT: {"a cat sitting on a bench": "a cat"},
}

# Gammas that can be seen in the plot: far above those that one would take.
_FAR_ABOVE: Substitutions = {("EBCAContextUpdate", "gamma_attn"): 0.2, ("EBCAContextUpdate", "gamma_norm"): 0.1}

#: {name of the file: what makes it its twin for the things model}, with the file's own seed. The things model has no
#: words for a style, and its things are wider than what is outpainted: those two files have none.
THINGS: dict[str, Substitutions] = {
    "EBCA 01 Several things (SD 1.5)": _THINGS_SAMPLING,
    "EBCA 02 Several things (SDXL)": _THINGS_SAMPLING | {
        ("EBCAConcepts", "prompt"): "a lion, a rabbit and a turtle",
    },
    "EBCA 03 Add and remove (SD 1.5)": _THINGS_SAMPLING | {
        _TEXT: {"a cat sitting on a bench": "a cat and a bench", "": ""},
        **_start(0.15),
    },
    "EBCA 05 Photo cat to dog (SD 1.5)": _CAT_INVERTED,
    "EBCA 06 Photo with mask (SD 1.5)": _CAT_INVERTED,
    "EBCA 07 Inpainting (SD 1.5)": _THINGS_SAMPLING | _CAT | {
        _TEXT: {"a teddy bear sitting on the grass": "a bear", "": ""},
    },
    "EBCA 09 Attention maps (SDXL)": _THINGS_SAMPLING | _FAR_ABOVE,
    "EBCA 10 Context update (SD 1.5)": _THINGS_SAMPLING | _FAR_ABOVE | {
        ("PrimitiveStringMultiline", "value"): "a lion with a crown",
        ("EBCATokenWeights", "weights"): "crown = 2.5",
    },
    "EBCA 11 Sweep (SDXL)": _THINGS_SAMPLING | {
        ("EBCASweep", "x_values"): "0, 0.1, 0.2, 0.4",
        ("EBCASweep", "y_values"): "0, 0.1, 0.3, 0.8",
    },
    "EBCA 12 Best of four (SD 1.5)": _THINGS_SAMPLING,
}  # fmt: skip

#: The twins that the thumbnails and the pictures of the documents show.
SHOWN = SHAPES | THINGS

#: The files for transformers.
TRANSFORMERS = (
    "EBCA 13 Several things in a video (Wan 2.2)",
    "EBCA 14 Remove from a video (Wan 2.2)",
    "EBCA 15 Several things with tags (Anima)",
    "EBCA 16 Photo cat to dog (Wan 2.2)",
    "EBCA 17 Several things (Qwen-Image)",
    "EBCA 18 Remove at cfg 1 (Z-Image)",
)

#: What the notes say to change, as changes to the shapes twin: {what it becomes: (the file, the changes)}
VARIANTS: dict[str, tuple[str, Substitutions]] = {
    "a thing and a style": ("EBCA 03 Add and remove (SD 1.5)", {
        _TEXT: {"a red square": "a red circle on a white background", "": ""},
        _EDIT_TEXT: {"blue circle": "on a black background", "red square": "a yellow star and a red circle"},
        ("EBCAEditContext", "direction"): "add",
        _ALPHA: 1.3,
        ("EBCAEditContext", "gamma_attn"): 0.0,
        ("EBCAEditContext", "gamma_norm"): 0.0,
        **_start(0.0),
        _SEED: 0,
    }),
    "one strength throughout": ("EBCA 04 Style with schedule (SDXL)", {("EBCASchedule", "end_factor"): 1.0}),
    "a style": ("EBCA 04 Style with schedule (SDXL)", {
        ("EBCASchedule", "end_factor"): 1.0,
        _ALPHA: 1.1,
        ("EBCAEditContext", "gamma_attn"): 0.0004,
        ("EBCAEditContext", "gamma_norm"): 0.0004,
        **_start(0.15),
    }),
    "horse to zebra": ("EBCA 05 Photo cat to dog (SD 1.5)", {
        _EDIT_TEXT: {"blue circle": "green cross", "red square": "red square"},
    }),
    "any animal to goat": ("EBCA 05 Photo cat to dog (SD 1.5)", {
        _EDIT_TEXT: {"blue circle": "red circle", "red square": "red square"},
        _ALPHA: {1.2: 1.2, 1.1: 0.0},
    }),
    "several concepts, as in the paper": ("EBCA 10 Context update (SD 1.5)", {
        ("PrimitiveStringMultiline", "value"): _LION_TWIN,
        ("EBCATokenWeights", "weights"): "",
    }),
}  # fmt: skip

#: For checkpoints of random weights in the genuine layouts: everything as in the file but for the checkpoint's name.
RANDOM: Substitutions = {
    _CHECKPOINT: {
        "v1-5-pruned-emaonly-fp16.safetensors": "random_sd15.ckpt",
        "sd_xl_base_1.0.safetensors": "random_sdxl.ckpt",
        "sd-v1-5-inpainting.ckpt": "random_sd15_inpaint.ckpt",
    },
}

_LATENTS = ("EmptyLatentImage", "EmptySD3LatentImage", "Wan22ImageToVideoLatent")

#: A run of seconds on a CPU instead of minutes.
SMALL: Substitutions = {
    **{(node, side): 128 for node in _LATENTS for side in ("width", "height")},
    ("Wan22ImageToVideoLatent", "length"): 5,
    **_photo_divided_by(4),
    **steps(4),
    ("EBCASweep", "x_values"): "0, 0.02",
    ("EBCASweep", "y_values"): "0, 0.04",
}

#: Every strength zero: a workflow's pictures with and without EBCA are the same.
OFF: Substitutions = {
    ("EBCAConcepts", "strength"): 0.0,
    ("EBCAReroll", "tries"): 1,
    ("EmptyLatentImage", "batch_size"): 1,
    ("EBCAContextUpdate", "gamma_attn"): 0.0,
    ("EBCAContextUpdate", "gamma_norm"): 0.0,
    ("EBCAEditContext", "alpha"): 0.0,
    ("EBCAEditContext", "gamma_attn"): 0.0,
    ("EBCAEditContext", "gamma_norm"): 0.0,
    ("EBCASweep", "x_values"): "0, 0",
    ("EBCASweep", "y_values"): "0, 0",
}


# What shows a picture or a video: by the title of its node, or what it draws by the name of that.
_PICTURES = ("PreviewImage", "SaveImage", "SaveVideo")
_CHARTS = {
    "EBCAAttentionMaps": "Words",
    "EBCAEnergyPlot": "Energies",
    "EBCARank": "Ranking",
    "EBCASweepGrid": "Sweep",
}


def twin_server(comfyui: Path, things: Path = MODELS["things.safetensors"]) -> Server:
    """A server on which the twins run. things: another things model."""
    packs = {PACK: _REPO, "shapes_family": _REPO / "demo" / "shapes_family"}
    models = {f"checkpoints/{name}": file for name, file in (MODELS | {"things.safetensors": things}).items()}
    return Server(comfyui, packs=packs, models=models, inputs=INPUTS)


def prompt_of(name: str, object_info: Mapping[str, Any], *tables: Substitutions) -> Prompt:
    """The prompt of a file in `workflows/`, with the tables' substitutions one after the other."""
    prompt = to_api(load(WORKFLOWS / f"{name}.json"), object_info)
    for table in tables:
        prompt = substitute(prompt, table)
    return prompt


def tables_of(name: str) -> tuple[str, tuple[Substitutions, ...]]:
    """The file and the substitutions that make the twin of SHOWN of a file, or the shapes twin of one of VARIANTS."""
    if name in VARIANTS:
        file, changes = VARIANTS[name]
        return file, (SHAPES[file], changes)
    return name, (SHOWN[name],)


def twin_of(name: str, object_info: Mapping[str, Any], *tables: Substitutions) -> Prompt:
    """The prompt of `tables_of` a file or a variant, with further substitutions."""
    file, own = tables_of(name)
    return prompt_of(file, object_info, *own, *tables)


def pictures(prompt: Prompt) -> dict[str, str]:
    """{title: id} of the nodes that show a picture: "Without EBCA", "With EBCA", "Words" and so on."""
    titled = {prompt[node_id]["_meta"]["title"]: node_id for node in _PICTURES for node_id in node_ids(prompt, node)}
    return titled | {title: node_id for node, title in _CHARTS.items() for node_id in node_ids(prompt, node)}


def shown(server: Server, prompt: Prompt, timeout: float = 1800) -> dict[str, list[bytes]]:
    """Run a prompt: the files that its nodes show, by the titles of `pictures`."""
    history = server.run(prompt, timeout)
    return {title: server.images(history, node_id) for title, node_id in pictures(prompt).items()}
