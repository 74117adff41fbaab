"""The hand-made EBCA that other tests compare with gives the reference's numbers itself."""
from __future__ import annotations

import pytest
import torch

from support import oracle, reference
from support.marks import with_mark
from support.sampling import relative_error, sample_sigmas

SETTINGS, TENSORS = reference.load("reference_a")


def updates(scenario: dict) -> list[oracle.Update]:
    attn, norm = (scenario.get(f"gamma_{name}_main", scenario.get(f"gamma_{name}", 0.0)) for name in ("attn", "norm"))
    if not scenario or isinstance(attn, list):
        return []
    weights = torch.ones(SETTINGS["tokens"])
    for token, weight in scenario.get("token_weights", {}).items():
        weights[int(token)] = weight
    mask = TENSORS["mask"][:, 0] if scenario.get("mask") else None
    return [oracle.Update(attn, norm, weights, mask, (0.0, scenario.get("end_percent", 1.0)))]


def edits(scenario: dict) -> list[oracle.Edit]:
    starts, gamma_starts = scenario.get("start_percent", []), scenario.get("gamma_start_percent", [0.0, 0.0])
    return [
        oracle.Edit(
            TENSORS["edit_contexts"][i], alpha * scenario["direction"][i], scenario["gamma_attn"][i],
            scenario["gamma_norm"][i], (starts[i], 1.0), (gamma_starts[i], 1.0),
        )
        for i, alpha in enumerate(scenario.get("alpha", []))
    ]


#: In tier 1, with a region and with edits. Tests of the nodes would not pass beside a wrong oracle, as the nodes give
#: the numbers of all scenarios (tests/test_reference.py).
PUSHED = ("update_mask", "compose_update")


@pytest.mark.parametrize("name", with_mark(SETTINGS["scenarios"], pytest.mark.nightly, but=PUSHED))
def test_hand_made_run_matches_the_reference(name):
    scenario, model = SETTINGS["scenarios"][name], reference.reference_model()
    prompts = [oracle.Prompt(TENSORS[role][0], role == "positive") for role in ("positive", "negative")]
    ebca = oracle.Ebca(model.get_model_object("model_sampling"), prompts, updates(scenario), edits(scenario))

    with oracle.applied(ebca, model):
        latent = sample_sigmas(
            model, reference.reference_noise(), TENSORS["sigmas"], [[TENSORS["positive"], {}]],
            [[TENSORS["negative"], {}]], SETTINGS["cfg"],
        ) * 0.18215  # fmt: skip

    assert relative_error(latent, TENSORS[f"{name}/latent"]) < 1e-5
