"""Every sampler gets the same method, and every node that samples the same run."""

from __future__ import annotations

import comfy.samplers as comfy_samplers
import pytest
import torch

from support import oracle, toy
from support.host import node
from support.sampling import relative_error, sample
from support.wiring import Ebca, text

EDITS = (oracle.Edit(text(21), 0.8, 0.08, 0.06), oracle.Edit(text(22), -0.5, 0.05, 0.02))
CASES = {
    "update": Ebca([oracle.Update(0.01, 0.02)]),
    "update and carried edits": Ebca([oracle.Update(0.01, 0.02)], EDITS),
}
SAMPLERS = ("euler", "heun", "dpm_2", "lms", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "uni_pc", "ddim", "lcm")
STEPS, CFG, SEED = 4, 4.0, 3
#: Higher orders divide differences of images by differences of sigmas, which enlarges the rounding of either side.
TOLERANCE = 1e-4
POSITIVE, NEGATIVE = toy.conditioning(1), toy.conditioning(99)


def sampled(samplers: tuple[str, ...]) -> pytest.MarkDecorator:
    """Each sampler with each case; in tier 1 the update alone, which does less than the other, with one sampler."""
    pairs = [(sampler, name) for sampler in samplers for name in CASES]
    later = {(sampler, "update") for sampler in samplers if sampler != "heun"}
    return pytest.mark.parametrize(("sampler", "name"), [
        pytest.param(*pair, id="-".join(pair), marks=pytest.mark.nightly if pair in later else ()) for pair in pairs
    ])  # fmt: skip


def ksampler(comfy, model, sampler: str) -> torch.Tensor:
    return node(comfy, "KSampler").execute(
        model=model, seed=SEED, steps=STEPS, cfg=CFG, sampler_name=sampler, scheduler="normal", positive=POSITIVE,
        negative=NEGATIVE, latent_image=toy.latent(), denoise=1.0,
    )[0]["samples"]  # fmt: skip


def advanced(comfy, model, sampler: str, latent: dict, start: int, end: int) -> dict:
    """One stage of a run of STEPS steps; the first adds the noise, all but the last leave some over."""
    return node(comfy, "KSamplerAdvanced").execute(
        model=model, add_noise="enable" if start == 0 else "disable", noise_seed=SEED, steps=STEPS, cfg=CFG,
        sampler_name=sampler, scheduler="normal", positive=POSITIVE, negative=NEGATIVE, latent_image=latent,
        start_at_step=start, end_at_step=end, return_with_leftover_noise="enable" if end < STEPS else "disable",
    )[0]  # fmt: skip


def custom_advanced(comfy, model, sampler: str) -> torch.Tensor:
    (noise,) = node(comfy, "RandomNoise").execute(noise_seed=SEED)
    (guider,) = node(comfy, "CFGGuider").execute(model=model, positive=POSITIVE, negative=NEGATIVE, cfg=CFG)
    sigmas = comfy_samplers.KSampler(model, STEPS, model.load_device, sampler, "normal", 1.0).sigmas  # uni_pc's differ
    (sampler,) = node(comfy, "KSamplerSelect").execute(sampler_name=sampler)
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=toy.latent()
    )[0]["samples"]


@sampled(SAMPLERS)
def test_sampler_equals_the_computation_by_hand(comfy, pack, sampler, name):
    model, case = toy.model(), CASES[name]
    with case.by_hand(model, POSITIVE, NEGATIVE):
        expected = ksampler(comfy, model, sampler)
    got = ksampler(comfy, case.on(comfy, pack, model), sampler)
    assert relative_error(got, expected) < TOLERANCE
    assert relative_error(got, ksampler(comfy, model, sampler)) > 10 * TOLERANCE


@sampled(("euler", "heun", "dpmpp_2m_sde", "uni_pc", "ddim"))
def test_every_sampling_node_gives_the_same_image(comfy, pack, sampler, name):
    model = CASES[name].on(comfy, pack, toy.model())
    expected = ksampler(comfy, model, sampler)
    assert torch.equal(advanced(comfy, model, sampler, toy.latent(), 0, STEPS)["samples"], expected)
    assert torch.equal(custom_advanced(comfy, model, sampler), expected)


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
def test_two_stages_without_edits_equal_one_run(comfy, pack, sampler):
    """A context update depends on nothing but the call; euler's and ddim's steps on nothing but the last image."""
    model = CASES["update"].on(comfy, pack, toy.model())
    first = advanced(comfy, model, sampler, toy.latent(), 0, 2)
    second = advanced(comfy, model, sampler, first, 2, STEPS)["samples"]
    assert relative_error(second, ksampler(comfy, model, sampler)) < 1e-5


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m_sde", "uni_pc", "ddim"])
def test_each_of_two_stages_is_a_run_of_its_own(comfy, pack, sampler):
    """The second stage begins with the edits' contexts as the user gave them, as by hand in a new run."""
    model, case = toy.model(), CASES["update and carried edits"]
    latent, expected = toy.latent(), toy.latent()
    patched = case.on(comfy, pack, model)
    for start, end in ((0, 2), (2, STEPS)):
        latent = advanced(comfy, patched, sampler, latent, start, end)
        with case.by_hand(model, POSITIVE, NEGATIVE):
            expected = advanced(comfy, model, sampler, expected, start, end)
    assert relative_error(latent["samples"], expected["samples"]) < TOLERANCE
    assert relative_error(latent["samples"], ksampler(comfy, patched, sampler)) > 10 * TOLERANCE


def test_two_samplers_in_one_graph_do_not_meet(comfy, pack):
    """A second pass over the first one's image, as in a hires fix, with another prompt beside and the same model."""
    case = CASES["update and carried edits"]
    shared, fresh = case.on(comfy, pack, toy.model()), case.on(comfy, pack, toy.model())
    ksampler(comfy, shared, "euler")
    second = sample(shared, toy.conditioning(2), toy.conditioning(98), seed=5)
    assert torch.equal(second, sample(fresh, toy.conditioning(2), toy.conditioning(98), seed=5))
