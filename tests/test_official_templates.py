"""ComfyUI's own workflow templates, one of a family, with EBCA put in: run by a server on tiny random models.

Loaders are stand-ins, sizes and steps are small, LoRAs are left out, and a run ends with the latent of its first
sampler, because no tiny autoencoders exist for sound. All else is as in the template.
"""

import copy
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from comfyui_version import __version__

from devtools import environment
from devtools.workflows import Prompt, load, node_ids, to_api
from support.stand_ins import replace_loaders

pytestmark = [
    pytest.mark.server,
    pytest.mark.nightly,
    pytest.mark.skipif(__version__ == environment.OLDEST, reason="it lacks nodes of the templates"),
]

#: {template: whether the context update exists for its model}
TEMPLATES = {
    "text_to_video_wan": True,
    "image_anima_base_v1": True,
    "ltxv_text_to_video": True,
    "video_ltx2_t2v": True,
    "image_kandinsky5_t2i": True,
    "audio_ace_step_1_t2a_song": True,
    "audio_stable_audio_example": True,
    "audio_stable_audio_3_medium_base": False,
    "image_qwen_image": False,
    "image_z_image_turbo": False,
}
SMALL = {"steps": 3, "width": 128, "height": 128, "length": 9, "frames_number": 9, "seconds": 1.0}
SAMPLERS = ("KSampler", "SamplerCustom", "SamplerCustomAdvanced")


@pytest.fixture(scope="module")
def template(pack, object_info):
    """A function that gives a template, small, with stand-in loaders, up to its first sampler."""
    bench = importlib.import_module("bench.templates")
    folder = environment.fetched_package(bench.PACKAGE, bench.VERSION) / bench.PACKAGE.replace("-", "_") / "templates"

    def template(name: str) -> Prompt:
        prompt = to_api(load(folder / f"{name}.json"), object_info)
        for node in prompt.values():
            node["inputs"] |= {key: value for key, value in SMALL.items() if key in node["inputs"]}
        if node_ids(prompt, "TextGenerate"):  # an LLM that rewrites the prompt: a switch leaves it out
            (switch,) = node_ids(prompt, "PrimitiveBoolean")
            prompt[switch]["inputs"]["value"] = False
        without_loras(prompt)
        replace_loaders(prompt)
        prompt["digest"] = {"class_type": "LatentDigest", "inputs": {"samples": [first_sampler(prompt), 0]}}
        return {node_id: prompt[node_id] for node_id in ("digest", *above(prompt, "digest"))}

    return template


def links(node: dict[str, Any]) -> Iterator[tuple[str, list]]:
    """Names and links of the inputs that are wired."""
    return ((name, value) for name, value in node["inputs"].items() if isinstance(value, list))


def above(prompt: Prompt, node_id: str) -> list[str]:
    """The nodes that a node depends on."""
    found: dict[str, None] = {}
    for _, (source, _) in links(prompt[node_id]):
        found |= dict.fromkeys([source, *above(prompt, source)])
    return list(found)


def first_sampler(prompt: Prompt) -> str:
    samplers = {node_id for kind in SAMPLERS for node_id in node_ids(prompt, kind)}
    (first,) = (node_id for node_id in samplers if not samplers & set(above(prompt, node_id)))
    return first


def without_loras(prompt: Prompt) -> None:
    for lora in node_ids(prompt, "LoraLoaderModelOnly"):
        for node in prompt.values():
            node["inputs"] |= {name: prompt[lora]["inputs"]["model"] for name, link in links(node) if link[0] == lora}


def with_ebca(prompt: Prompt, alpha: float, gamma: float | None) -> Prompt:
    """The prompt with a text composed in, and the context update with a gamma of its own if it is not None."""
    prompt = copy.deepcopy(prompt)
    sampler = prompt[first_sampler(prompt)]
    guided = prompt[sampler["inputs"]["guider"][0]] if "guider" in sampler["inputs"] else sampler
    text = guided["inputs"]["positive"][0]
    while "clip" not in prompt[text]["inputs"]:
        text = prompt[text]["inputs"]["positive"][0]
    prompt["text"] = copy.deepcopy(prompt[text])
    written = "tags" if "tags" in prompt["text"]["inputs"] else "text"
    prompt["text"]["inputs"][written] = "a red cat"
    edit = dict(direction="add", alpha=alpha, start_percent=0.0, end_percent=1.0, gamma_attn=0.0, gamma_norm=0.0,
                gamma_start_percent=0.0, gamma_end_percent=1.0, conditioning=["text", 0])  # fmt: skip
    prompt["edit"] = {"class_type": "EBCAEditContext", "inputs": edit}
    model = guided["inputs"]["model"]
    if gamma is not None:
        update = dict(model=model, gamma_attn=gamma, gamma_norm=0.0, start_percent=0.0, end_percent=1.0)
        prompt["update"] = {"class_type": "EBCAContextUpdate", "inputs": update}
        model = ["update", 0]
    prompt["compose"] = {"class_type": "EBCACompose", "inputs": {"model": model, "edits.edit0": ["edit", 0]}}
    guided["inputs"]["model"] = ["compose", 0]
    return prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_runs_with_ebca_put_in(server, template, name):
    """Composition and the update change the result, each of them; with zero strengths it is that of the template."""
    prompt = template(name)

    def digest(prompt: Prompt) -> str:
        shown = server.run(prompt)["outputs"]["digest"]
        assert shown["deviation"][0] > 0.01  # false of NaN too
        return shown["digest"][0]

    has_update = TEMPLATES[name]
    plain = digest(prompt)
    assert digest(with_ebca(prompt, 0.0, 0.0 if has_update else None)) == plain
    results = {plain, digest(with_ebca(prompt, 0.7, None))}
    assert len(results) == 2
    if has_update:
        assert digest(with_ebca(prompt, 0.7, 0.5)) not in results
