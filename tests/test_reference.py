"""Every scenario of the authors' reference numbers, through the nodes and ComfyUI's own sampler."""

from __future__ import annotations

import pytest
import torch

from support import reference
from support.host import node
from support.marks import with_mark
from support.sampling import relative_error, sample_sigmas

SETTINGS, TENSORS = reference.load("reference_a")


def conditioning(context):
    return [[context, {}]]


def update(comfy, pack, model, scenario):
    weights = None
    if "token_weights" in scenario:
        values = torch.ones(SETTINGS["tokens"])
        for token, weight in scenario["token_weights"].items():
            values[int(token)] = weight
        weights = pack.comfyui_binding.text.token_weights.TokenWeights(values)
    return node(comfy, "EBCAContextUpdate").execute(
        model=model,
        gamma_attn=scenario["gamma_attn"],
        gamma_norm=scenario["gamma_norm"],
        end_percent=scenario.get("end_percent", 1.0),
        token_weights=weights,
        mask=TENSORS["mask"][:, 0] if scenario.get("mask") else None,
    )[0]


def compose(comfy, model, scenario):
    edits = {}
    for i, alpha in enumerate(scenario["alpha"]):
        (edits[f"edit{i}"],) = node(comfy, "EBCAEditContext").execute(
            conditioning=conditioning(TENSORS["edit_contexts"][i : i + 1]),
            direction="add" if scenario["direction"][i] > 0 else "remove",
            alpha=alpha,
            start_percent=scenario["start_percent"][i],
            end_percent=1.0,
            gamma_attn=scenario["gamma_attn"][i],
            gamma_norm=scenario["gamma_norm"][i],
            gamma_start_percent=scenario.get("gamma_start_percent", [0, 0])[i],
            gamma_end_percent=1.0,
        )
    return node(comfy, "EBCACompose").execute(model=model, edits=edits)[0]


def scenario_model(comfy, pack, model, scenario):
    if "alpha" in scenario:
        model = compose(comfy, model, scenario)
        main = {"gamma_attn": scenario.get("gamma_attn_main", 0.0), "gamma_norm": scenario.get("gamma_norm_main", 0.0)}
        return update(comfy, pack, model, main)
    return update(comfy, pack, model, scenario) if scenario else model


@pytest.mark.parametrize(
    "name", with_mark(SETTINGS["scenarios"], pytest.mark.interface, ["update_mask", "compose_update"])
)
def test_scenario_matches_the_reference(comfy, pack, name):
    model = scenario_model(comfy, pack, reference.reference_model(), SETTINGS["scenarios"][name])
    outputs = []

    def record(executor, *args, **kwargs):
        outputs.append(executor(*args, **kwargs))
        return outputs[-1]

    model.add_wrapper_with_key("diffusion_model", "record", record)

    latent = (
        sample_sigmas(
            model,
            reference.reference_noise(),
            TENSORS["sigmas"],
            conditioning(TENSORS["positive"]),
            conditioning(TENSORS["negative"]),
            SETTINGS["cfg"],
        )
        * 0.18215
    )

    assert relative_error(latent, TENSORS[f"{name}/latent"]) < 1e-5
    assert relative_error(outputs[0], TENSORS[f"{name}/eps_first"]) < 1e-5
    assert relative_error(outputs[-1], TENSORS[f"{name}/eps_last"]) < 1e-5
