"""Saving and loading inversions through ComfyUI's executor, and what is said where the graph does not fit the file."""
from __future__ import annotations

import copy
import json
import logging
import os
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import safetensors.torch
import torch
from comfy.cli_args import args
from PIL import Image
from safetensors import safe_open

from shapes.drawing import draw, random_picture
from support import shapes, toy
from support.host import PromptError, node
from support.log_messages import messages

PREFIX = "test"

CHAIN = {
    "loader": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapes.safetensors"}},
    "caption": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": "a red circle"}},
    "image": {"class_type": "LoadImage", "inputs": {"image": "drawn.png"}},
    "picture": {"class_type": "VAEEncode", "inputs": {"pixels": ["image", 0], "vae": ["loader", 2]}},
    "invert": {
        "class_type": "EBCAInvert",
        "inputs": {
            "model": ["loader", 0], "caption": ["caption", 0], "latent": ["picture", 0], "steps": 3,
            "scheduler": "normal", "lambda_auto_corr": 20.0, "lambda_kl": 10.0, "reg_steps": 2, "rolls": 2, "seed": 7,
        },
    },
    "save": {"class_type": "EBCASaveInversion", "inputs": {"latent": ["invert", 0], "filename_prefix": PREFIX}},
}  # fmt: skip

SAMPLER = {
    "class_type": "KSamplerAdvanced",
    "inputs": {
        "model": ["loader", 0], "add_noise": "disable", "noise_seed": 0, "steps": 3, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "normal", "positive": ["caption", 0], "negative": ["caption", 0],
        "latent_image": ["load", 0], "start_at_step": 0, "end_at_step": 10000, "return_with_leftover_noise": "disable",
    },
}  # fmt: skip

CUSTOM = {
    "none": {"class_type": "DisableNoise", "inputs": {}},
    "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "steps": {"class_type": "PrimitiveInt", "inputs": {"value": 3}},
    "sigmas": {
        "class_type": "BasicScheduler",
        "inputs": {"model": ["loader", 0], "scheduler": "normal", "steps": ["steps", 0], "denoise": 1.0},
    },
    "guider": {
        "class_type": "CFGGuider",
        "inputs": {"model": ["loader", 0], "positive": ["caption", 0], "negative": ["caption", 0], "cfg": 1.0},
    },
    "sampler": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            "noise": ["none", 0], "guider": ["guider", 0], "sampler": ["euler", 0], "sigmas": ["sigmas", 0],
            "latent_image": ["load", 0],
        },
    },
}  # fmt: skip


def prompt_of(*nodes: dict, **changes) -> dict:
    """A prompt of these nodes; a change is `node__input=value`."""
    prompt = copy.deepcopy({name: value for group in nodes for name, value in group.items()})
    for name, value in changes.items():
        node_id, name = name.split("__")
        prompt[node_id]["inputs"][name] = value
    return prompt


def loading(file: str, sampler: dict | None = None, **changes) -> dict:
    """A prompt that loads a file and samples from it."""
    load = {"class_type": "EBCALoadInversion", "inputs": {"file": file, "model": ["loader", 0]}}
    start = {name: CHAIN[name] for name in ("loader", "caption")}
    sampler = sampler or {"sampler": SAMPLER}
    keep = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "test"}}
    return prompt_of(start, {"load": load}, sampler, {"keep": keep}, **changes)


@pytest.fixture(scope="module", autouse=True)
def _drawn(comfy):
    """The shapes model in place, and drawn.png in the input folder."""
    shapes.load(comfy)
    image = draw(random_picture(np.random.default_rng(0), 1))
    pixels = Image.fromarray((image * 255).round().astype(np.uint8))
    pixels.save(Path(folder_paths.get_input_directory()) / "drawn.png")


@pytest.fixture(scope="module")
def file(run_prompt) -> str:
    """A saved inversion, as EBCA Load Inversion names it."""
    (saved,) = run_prompt(prompt_of(CHAIN))["save"]["latents"]
    return f"{saved['subfolder']}/{saved['filename']} [{saved['type']}]"


@pytest.fixture
def said(caplog):
    """A function that gives all that the pack has logged."""
    caplog.set_level(logging.INFO, logger="ebca")
    return lambda: messages(caplog)


def record_in(file: str) -> dict:
    with safe_open(folder_paths.get_annotated_filepath(file), "pt") as opened:
        return json.loads(opened.metadata()["ebca_inversion"])


def is_said(said, *parts) -> bool:
    return any(all(part in message for part in parts) for message in said())


# --- saving ----------------------------------------------------------------------------------------------------------


def test_file_tells_how_it_was_made(file):
    record = record_in(file)
    assert record.pop("sigmas")[0] == pytest.approx(138.6079, rel=1e-4)
    assert record == {
        "family": "Shapes",
        "loaded": ["CheckpointLoaderSimple.ckpt_name = shapes.safetensors"],
        "caption": "a red circle",
        "steps": 3,
        "scheduler": "normal",
        "regularisation": {"lambda_auto_corr": 20.0, "lambda_kl": 10.0, "steps": 2, "rolls": 2},
        "fixed_point_iterations": 0,
        "seed": 7,
        "holds_noise": False,
    }


def test_file_holds_the_graph_as_core_saves_it(file):
    with safe_open(folder_paths.get_annotated_filepath(file), "pt") as opened:
        assert json.loads(opened.metadata()["prompt"])["invert"]["inputs"]["steps"] == 3


def test_core_reads_the_file_too(comfy, file):
    path = Path(folder_paths.get_annotated_filepath(file))
    target = Path(folder_paths.get_input_directory()) / "copy.latent"
    target.write_bytes(path.read_bytes())
    (by_core,) = node(comfy, "LoadLatent").execute(latent="copy.latent")
    (ours, *_) = node(comfy, "EBCALoadInversion").execute(file="copy.latent", model=shapes.load(comfy)[0])
    assert torch.equal(by_core["samples"], ours["samples"])


def test_settings_behind_wired_sigmas_and_text_are_found(run_prompt):
    text = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "a blue star"}}
    prompt = prompt_of(
        CHAIN, {name: CUSTOM[name] for name in ("steps", "sigmas")}, {"text": text},
        invert__sigmas=["sigmas", 0], caption__text=["text", 0], sigmas__scheduler="karras", steps__value=4,
    )  # fmt: skip
    (saved,) = run_prompt(prompt)["save"]["latents"]
    record = record_in(f"{saved['subfolder']}/{saved['filename']} [output]")
    assert (record["steps"], record["scheduler"], record["caption"]) == (4, "karras", "a blue star")
    assert len(record["sigmas"]) == 5


def test_without_metadata_neither_names_nor_caption_nor_graph_are_saved(run_prompt, monkeypatch):
    monkeypatch.setattr(args, "disable_metadata", True)
    (saved,) = run_prompt(prompt_of(CHAIN))["save"]["latents"]
    path = folder_paths.get_annotated_filepath(f"{saved['subfolder']}/{saved['filename']} [output]")
    with safe_open(path, "pt") as opened:
        assert set(opened.metadata()) - {"format"} == {"ebca_inversion"}
        record = json.loads(opened.metadata()["ebca_inversion"])
    assert (record["loaded"], record["caption"]) == ([], "")


@pytest.mark.parametrize("latent", [{"samples": torch.ones(1, 4, 8, 8)}, "sampled on"], ids=["other", "changed"])
def test_only_what_ebca_invert_made_is_saved(comfy, latent):
    if latent == "sampled on":
        model, caption = toy.model(), toy.conditioning(1)
        (made, _) = node(comfy, "EBCAInvert").execute(model=model, caption=caption, latent=toy.latent(), steps=2)
        latent = {**made, "samples": made["samples"].clone()}
    with pytest.raises(ValueError, match=r"not the output of EBCA Invert: .* Connect EBCA Invert directly"):
        node(comfy, "EBCASaveInversion").execute(latent=latent)


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [None, CUSTOM], ids=["KSampler (Advanced)", "SamplerCustomAdvanced"])
def test_loading_takes_the_place_of_inverting(run_prompt, file, said, sampler):
    prompt = loading(file, sampler)
    loaded = run_prompt(prompt)["keep"]["latents"][0]
    prompt["load"] = prompt_of(CHAIN)["invert"]
    inverted = run_prompt({**prompt, "image": CHAIN["image"], "picture": CHAIN["picture"]})["keep"]["latents"][0]
    tensors = [
        safetensors.torch.load_file(Path(folder_paths.get_output_directory(), saved["subfolder"], saved["filename"]))
        for saved in (loaded, inverted)
    ]
    assert torch.equal(tensors[0]["latent_tensor"], tensors[1]["latent_tensor"])
    assert not said()


def test_loaded_inversion_can_be_saved_again(run_prompt, file):
    prompt = loading(file)
    prompt["save"] = {"class_type": "EBCASaveInversion", "inputs": {"latent": ["load", 0], "filename_prefix": PREFIX}}
    (saved,) = run_prompt(prompt)["save"]["latents"]
    assert record_in(f"{saved['subfolder']}/{saved['filename']} [output]") == record_in(file)


def test_description_is_the_record(run_prompt, file):
    text = described(run_prompt, loading(file))
    assert "shapes.safetensors" in text
    assert "a red circle" in text
    assert "3 steps of normal" in text
    assert "WARNING" not in text


def described(run_prompt, prompt) -> str:
    """The description output of EBCA Load Inversion, as Preview as Text shows it."""
    preview = {"class_type": "PreviewAny", "inputs": {"source": ["load", 2]}}
    return run_prompt({**prompt, "preview": preview})["preview"]["text"][0]


MISFITS = {
    "steps": (None, dict(sampler__steps=5), ["steps 3", "has 5"]),
    "scheduler": (None, dict(sampler__scheduler="karras"), ["scheduler normal", "has karras"]),
    "caption": (None, dict(caption__text="a blue star"), ["a red circle", "a blue star"]),
    "ancestral": (None, dict(sampler__sampler_name="euler_ancestral"), ["euler_ancestral", "use euler or ddim"]),
    "noise": (None, dict(sampler__add_noise="enable"), ["adds noise", "add_noise off"]),
    "custom steps": (CUSTOM, dict(steps__value=4), ["steps 3", "has 4"]),
    "custom scheduler": (CUSTOM, dict(sigmas__scheduler="simple"), ["scheduler normal", "has simple"]),
    "custom caption": (CUSTOM, dict(caption__text="a blue star"), ["a red circle", "a blue star"]),
    "later start": (None, dict(sampler__start_at_step=1), ["starts in the middle"]),
    "custom part": (CUSTOM, dict(sigmas__denoise=0.5), ["starts in the middle"]),
    "custom sampler": (CUSTOM, dict(euler__sampler_name="dpmpp_2m"), ["dpmpp_2m", "use euler or ddim"]),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_said(run_prompt, file, said, name):
    sampler, changes, parts = MISFITS[name]
    text = described(run_prompt, loading(file, sampler, **changes))
    assert is_said(said, *parts), said()
    assert text.count("WARNING") == len(said()) == 1


def test_random_noise_is_said(run_prompt, file, said):
    noise = {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}}
    run_prompt(loading(file, {**CUSTOM, "none": noise}))
    assert is_said(said, "adds noise")


def test_noise_of_the_node_itself_is_fine(run_prompt, file, said):
    prompt = loading(file, CUSTOM, sampler__noise=["load", 1], sampler__latent_image=["picture", 0])
    run_prompt({**prompt, "image": CHAIN["image"], "picture": CHAIN["picture"]})
    assert not said()


def test_misfits_are_said_at_the_inversion_too(run_prompt, said):
    prompt = prompt_of(CHAIN, {"sampler": SAMPLER}, sampler__latent_image=["invert", 0], sampler__steps=9)
    prompt["keep"] = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "test"}}
    run_prompt(prompt)
    assert is_said(said, "steps 3", "has 9")


def at_the_inversion(*nodes: dict, **changes) -> dict:
    """A prompt that inverts and samples from it."""
    keep = {"class_type": "SaveLatent", "inputs": {"samples": ["sampler", 0], "filename_prefix": "test"}}
    return prompt_of(CHAIN, *nodes, {"keep": keep}, **changes)


def test_widgets_that_wired_sigmas_replace_are_not_compared(run_prompt, said):
    start = dict(sampler__noise=["invert", 1], sampler__latent_image=["picture", 0])
    run_prompt(at_the_inversion(CUSTOM, invert__sigmas=["sigmas", 0], invert__steps=50, **start))
    assert not said()


def test_noise_output_does_not_hide_the_samplers_settings(run_prompt, said):
    start = dict(sampler__noise=["invert", 1], sampler__latent_image=["picture", 0])
    run_prompt(at_the_inversion(CUSTOM, steps__value=4, **start))
    assert is_said(said, "steps 3", "has 4")


def test_every_sampler_after_it_is_looked_at(run_prompt, said):
    second = copy.deepcopy(SAMPLER)
    second["inputs"].update(latent_image=["invert", 0], sampler_name="dpmpp_2m_sde")
    keep = {"class_type": "SaveLatent", "inputs": {"samples": ["second", 0], "filename_prefix": "test"}}
    nodes = {"sampler": SAMPLER, "second": second, "keep second": keep}
    run_prompt(at_the_inversion(nodes, sampler__latent_image=["invert", 0]))
    assert is_said(said, "node second", "dpmpp_2m_sde")
    assert len(said()) == 1


def test_a_sampler_behind_another_is_its_own_affair(run_prompt, file, said):
    refiner = {"class_type": "KSampler", "inputs": {
        **{name: SAMPLER["inputs"][name] for name in ("model", "positive", "negative", "cfg", "steps", "scheduler")},
        "seed": 0, "sampler_name": "euler_ancestral", "denoise": 0.3, "latent_image": ["sampler", 0],
    }}  # fmt: skip
    run_prompt({**loading(file, keep__samples=["refiner", 0]), "refiner": refiner})
    assert not said()


def test_values_that_the_graph_does_not_tell_are_not_guessed(run_prompt, file, said):
    length = {"class_type": "StringLength", "inputs": {"string": "123"}}
    run_prompt({**loading(file, sampler__steps=["length", 0]), "length": length})
    assert not said()


def test_caption_is_only_what_is_written(run_prompt, said):
    """The text encoder's own loader chooses files from lists."""
    skip = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["loader", 1], "stop_at_clip_layer": -1}}
    start = dict(caption__clip=["skip", 0], sampler__latent_image=["invert", 0])
    prompt = at_the_inversion({"skip": skip, "sampler": SAMPLER}, **start)
    edit = {"class_type": "EBCAEditContext", "inputs": {
        "conditioning": ["caption", 0], "direction": "add", "alpha": 0.5, "start_percent": 0.3, "end_percent": 1.0,
        "gamma_attn": 0.0, "gamma_norm": 0.0, "gamma_start_percent": 0.0, "gamma_end_percent": 1.0,
    }}  # fmt: skip
    compose = {"class_type": "EBCACompose", "inputs": {"model": ["loader", 0], "edits.edit0": ["edit", 0]}}
    prompt["sampler"]["inputs"]["model"] = ["compose", 0]
    (saved,) = run_prompt({**prompt, "edit": edit, "compose": compose})["save"]["latents"]
    assert not said()
    assert record_in(f"{saved['subfolder']}/{saved['filename']} [output]")["caption"] == "a red circle"


def edited(prompt: dict, alpha: float = 0.5) -> dict:
    """The prompt with an edit composed into the sampler's model, and an empty negative prompt."""
    edit = {"class_type": "EBCAEditContext", "inputs": {
        "conditioning": ["caption", 0], "direction": "add", "alpha": alpha, "start_percent": 0.3, "end_percent": 1.0,
        "gamma_attn": 0.0, "gamma_norm": 0.0, "gamma_start_percent": 0.0, "gamma_end_percent": 1.0,
    }}  # fmt: skip
    compose = {"class_type": "EBCACompose", "inputs": {"model": ["loader", 0], "edits.edit0": ["edit", 0]}}
    empty = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["loader", 1], "text": ""}}
    prompt = {**prompt, "edit": edit, "compose": compose, "empty": empty}
    holder = prompt["guider" if "guider" in prompt else "sampler"]["inputs"]
    holder.update(model=["compose", 0], negative=["empty", 0], cfg=3.0)
    return prompt


@pytest.mark.parametrize("sampler", [None, CUSTOM], ids=["KSampler (Advanced)", "SamplerCustomAdvanced"])
def test_empty_negative_prompt_beside_an_edit_is_said(run_prompt, file, said, sampler):
    run_prompt(edited(loading(file, sampler)))
    assert is_said(said, "negative prompt", "is ''", "Connect the caption")
    assert len(said()) == 1


def test_negative_prompt_without_guidance_is_of_no_matter(run_prompt, file, said):
    prompt = edited(loading(file))
    prompt["sampler"]["inputs"]["cfg"] = 1.0
    run_prompt(prompt)
    assert not said()


def test_another_model_file_is_said(run_prompt, file, said):
    path = Path(folder_paths.get_full_path("checkpoints", "shapes.safetensors"))
    other = Path(folder_paths.get_folder_paths("checkpoints")[0]) / "other.safetensors"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(path.read_bytes())
    run_prompt(loading(file, loader__ckpt_name="other.safetensors"))
    assert is_said(said, "made with", "shapes.safetensors", "now with", "other.safetensors")


def test_another_family_is_said(comfy, file, said):
    node(comfy, "EBCALoadInversion").execute(file=file, model=toy.model("sdxl"))
    assert is_said(said, "family Shapes", "SDXL")


def test_updates_on_the_model_are_no_other_model(run_prompt, file, said):
    update = {
        "class_type": "EBCAContextUpdate",
        "inputs": {
            "model": ["loader", 0], "gamma_attn": 0.01, "gamma_norm": 0.01, "start_percent": 0.0, "end_percent": 1.0,
            "mask": ["white", 0],
        },
    }  # fmt: skip
    white = {"class_type": "SolidMask", "inputs": {"value": 0.5, "width": 32, "height": 32}}
    run_prompt({**loading(file, load__model=["update", 0]), "update": update, "white": white})
    assert not said()


def test_file_of_another_kind_is_refused(comfy):
    folder = Path(folder_paths.get_input_directory())
    safetensors.torch.save_file({"latent_tensor": torch.ones(1)}, folder / "plain.latent")
    (folder / "broken.latent").write_bytes(b"no safetensors")
    for name in ("plain.latent", "broken.latent"):
        with pytest.raises(ValueError, match="is not a file of EBCA Save Inversion"):
            node(comfy, "EBCALoadInversion").execute(file=name, model=toy.model())


def test_missing_file_is_refused_before_anything_runs(run_prompt):
    with pytest.raises(PromptError, match=r"gone\.latent"):
        run_prompt(loading("gone.latent"))


def offered(comfy) -> list[str]:
    spec = comfy.NODE_CLASS_MAPPINGS["EBCALoadInversion"].INPUT_TYPES()["required"]["file"]
    return spec[1]["options"] if isinstance(spec[0], str) else spec[0]


def test_new_files_are_offered_first(comfy, run_prompt, file):
    assert file in offered(comfy)
    (saved,) = run_prompt(prompt_of(CHAIN))["save"]["latents"]
    newest = f"{saved['subfolder']}/{saved['filename']} [output]"
    assert offered(comfy).index(newest) < offered(comfy).index(file)


def test_files_and_nothing_else_are_offered_by_their_time(comfy):
    folder = Path(folder_paths.get_output_directory()) / "inversions"
    folder.mkdir(exist_ok=True)
    names = ["zebra_00001_.latent", "cat_00002_.latent"]
    for age, name in enumerate(names):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (2e9 + age, 2e9 + age))
    (folder / "folder_00003_.latent").mkdir()
    found = [file for file in offered(comfy) if any(name in file for name in (*names, "folder"))]
    assert found == [f"inversions/{name} [output]" for name in reversed(names)]
    (folder / "folder_00003_.latent").rmdir()
    for name in names:
        (folder / name).unlink()


def test_seed_of_a_new_node_stays_as_it_is(comfy):
    """The front end would draw another for each run, and so invert again each time."""
    (_, options) = comfy.NODE_CLASS_MAPPINGS["EBCAInvert"].INPUT_TYPES()["required"]["seed"]
    assert options["control_after_generate"] == "fixed"
