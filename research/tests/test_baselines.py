"""The baselines that EBCA is compared with, each against a computation of its own."""

import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from baselines.attend_and_excite import AttendAndExcite, attention_map, losses
from baselines.composable import combined
from baselines.normalised_attention_guidance import guided, normalised_attention_guidance
from support import toy
from support.host import node
from support.sampling import relative_error, sample

HEADS = 4
OPTIONS = {"n_heads": HEADS, "attn_precision": None}


def attention_by_hand(q, k, v):
    """Of one image and one head after the other, [n, (h d)]."""
    out = np.zeros((q.shape[0], v.shape[1]))
    for part in np.split(np.arange(q.shape[1]), HEADS):
        logits = q[:, part] @ k[:, part].T / len(part) ** 0.5
        weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        out[:, part] = weights @ v[:, part]
    return out


# --- normalised attention guidance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("halves", [[0, 1], [1, 0]])
def test_nag_is_its_formula_on_the_positive_half_alone(halves):
    scale, tau, alpha = 3.0, 1.2, 0.4
    model = normalised_attention_guidance(toy.model(), scale, tau, alpha)
    attend = next(iter(model.model_options["transformer_options"]["patches_replace"]["attn2"].values()))
    q, k, v = (toy.noise(2, rows, 32, seed=seed) for seed, rows in enumerate((6, 5, 5)))
    got = attend(q, k, v, {**OPTIONS, "cond_or_uncond": halves}).numpy()

    q, k, v = (x.double().numpy() for x in (q, k, v))
    positive, negative = halves.index(0), halves.index(1)
    ours, against = (attention_by_hand(q[positive], k[half], v[half]) for half in (positive, negative))
    for token in range(6):
        extrapolated = ours[token] + scale * (ours[token] - against[token])
        ratio = np.abs(extrapolated).sum() / np.abs(ours[token]).sum()
        expected = alpha * extrapolated * min(ratio, tau) / ratio + (1 - alpha) * ours[token]
        assert np.allclose(got[positive, token], expected, atol=1e-5)
    assert np.allclose(got[negative], attention_by_hand(q[negative], k[negative], v[negative]), atol=1e-5)


def test_nag_without_scale_is_the_plain_model():
    plain = sample(toy.model(), toy.conditioning())
    guided = sample(normalised_attention_guidance(toy.model(), 0.0, 2.5, 0.5), toy.conditioning())
    assert relative_error(guided, plain) < 1e-5


def test_nag_normalises_only_what_grew_beyond_tau():
    positive, negative = toy.noise(1, 8, 16, seed=1), toy.noise(1, 8, 16, seed=2)
    out = guided(positive, negative, 5.0, 1.5, 1.0)
    ratio = out.abs().sum(-1) / positive.abs().sum(-1)
    assert ratio.max() < 1.5 + 1e-5
    assert torch.allclose(guided(positive, negative, 5.0, 1e9, 1.0), positive + 5 * (positive - negative), atol=1e-5)


def test_nag_refuses_halves_in_separate_calls():
    model = normalised_attention_guidance(toy.model(), 3.0, 2.5, 0.5)
    with pytest.raises(RuntimeError, match="one positive and one negative"):
        sample(model, toy.conditioning(), cfg=1.0)


# --- Attend-and-Excite -----------------------------------------------------------------------------------------------


def loss_by_hand(maps, subjects, prompt):
    """L of one image, pixel by pixel: maps [h, w, t]."""
    height, width, _ = maps.shape
    sharp = np.zeros_like(maps)
    for y in range(height):
        for x in range(width):
            values = np.exp(100 * maps[y, x, prompt])
            sharp[y, x, prompt] = values / values.sum()
    kernel = np.exp(-np.arange(-1, 2) ** 2 / (2 * 0.5**2))
    kernel = np.outer(kernel, kernel) / kernel.sum() ** 2
    reflected = np.pad(sharp, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    lacks = []
    for token in np.flatnonzero(subjects):
        smooth = [(kernel * reflected[y:y + 3, x:x + 3, token]).sum() for y in range(height) for x in range(width)]
        lacks.append(1 - max(smooth))
    return max(lacks)


def test_loss_of_attend_and_excite_pixel_by_pixel():
    rng = np.random.default_rng(0)
    maps = rng.dirichlet(np.ones(7), size=(3, 4, 4))
    subjects, prompt = np.zeros((3, 7), bool), np.zeros((3, 7), bool)
    prompt[:, 1:6], subjects[:, [2, 4]], subjects[1, 5] = True, True, True
    got = losses(*(torch.from_numpy(x) for x in (maps, subjects, prompt)))
    expected = [loss_by_hand(*image) for image in zip(maps, subjects, prompt)]
    assert np.allclose(got, expected, atol=1e-6)


def test_attention_map_is_the_layers_own_attention():
    q, k = toy.noise(1, 6, 32, seed=1), toy.noise(1, 5, 32, seed=2)
    one_hot = np.tile(np.eye(5)[:, :, None], (1, 1, 8)).reshape(5, 40)  # token t in every place of head t' is [t == t']
    got = attention_map(q, k, HEADS)[0].numpy()
    by_head = [attention_by_hand(q[0].double().numpy(), k[0].double().numpy(),
                                 np.repeat(one_hot[:, 8 * t:8 * t + 1], 32, 1)) for t in range(5)]  # fmt: skip
    expected = np.stack([out[:, ::8].mean(1) for out in by_head], 1)
    assert np.allclose(got, expected, atol=1e-6)


def excite(batch, step_size, refines=False):
    subjects, prompt = torch.zeros(batch, 77, dtype=torch.bool), torch.zeros(batch, 77, dtype=torch.bool)
    subjects[:, [2, 5]], prompt[:, 1:8] = True, True
    return AttendAndExcite(subjects, prompt, step_size, refines, side=8)


class Probe:
    """Calls `look(guider, x, timestep, model_options)` before the first prediction of a run."""

    def __init__(self, look):
        self.look, self.found = look, None

    def __call__(self, executor, x, timestep, model_options, seed=None):
        if self.found is None:
            self.found = self.look(executor.class_obj, x, timestep, model_options)
        return executor(x, timestep, model_options, seed)


def run(model, **options):
    """Sampling outside inference mode, as Attend-and-Excite needs it."""
    import comfy.sample

    noise = toy.noise(2, 4, 16, 16)
    return comfy.sample.sample(
        model, noise, 4, 3.0, "euler", "normal", toy.conditioning(batch=2), toy.conditioning(99, batch=2),
        torch.zeros_like(noise), disable_pbar=True, seed=0, **options,
    )  # fmt: skip


def test_gradient_of_attend_and_excite_by_finite_differences():
    method = excite(2, 1.0)

    def look(guider, x, timestep, options):
        _, gradient = method._loss(guider, x, timestep, options)
        direction = toy.noise(*x.shape, seed=5)
        step = 1e-2 * x.std()
        ahead, behind = (method._loss(guider, x + sign * step * direction, timestep, options)[0] for sign in (1, -1))
        return (gradient * direction).sum((1, 2, 3)), (ahead - behind) / (2 * step)

    model, probe = toy.model(), Probe(look)
    model.add_wrapper(WrappersMP.PREDICT_NOISE, probe)
    run(model)
    along, slope = probe.found
    assert slope.abs().min() > 0
    assert torch.allclose(along, slope, rtol=0.05)


def test_attend_and_excite_steps_down_its_loss_in_the_first_half_of_the_steps():
    seen = []

    def look(executor, x, timestep, model_options, seed=None):
        seen.append(x.clone())
        return executor(x, timestep, model_options, seed)

    method = excite(2, 0.01)
    model = method.applied_to(toy.model())
    model.add_wrapper(WrappersMP.PREDICT_NOISE, look)  # after the method's own: sees what it has changed
    changed = run(model)
    plain = run(toy.model())
    assert not torch.equal(changed, plain)
    assert torch.equal(run(excite(2, 0.0).applied_to(toy.model())), plain)
    probe = Probe(lambda guider, x, *rest: [method._loss(guider, z, *rest)[0] for z in (x, seen[0])])
    model = toy.model()
    model.add_wrapper(WrappersMP.PREDICT_NOISE, probe)
    run(model)
    before, after = probe.found
    assert (after < before).all()


@pytest.mark.parametrize(("reach", "calls"), [(0.0, 2), (2.0, 2 + 20)])  # two of four steps; 2 is never reached
def test_refinement_goes_on_until_the_maps_reach_far_enough(monkeypatch, reach, calls):
    counted, original = [], AttendAndExcite._loss
    monkeypatch.setattr("baselines.attend_and_excite.REFINED", {0.0: reach})
    monkeypatch.setattr(AttendAndExcite, "_loss", lambda *call: counted.append(1) or original(*call))
    run(excite(2, 0.01, refines=True).applied_to(toy.model()))
    assert len(counted) == calls


# --- composable diffusion --------------------------------------------------------------------------------------------


def test_combined_prompts_average_their_predictions(comfy):
    one, two, none = (toy.conditioning(seed) for seed in (1, 2, 99))
    first = {"cfg": 3.0, "steps": 1}

    def run_node(name, **inputs):
        return node(comfy, name).execute(**inputs)

    got = sample(toy.model(), combined(run_node, [one, two]), none, **first)
    alone = [sample(toy.model(), each, none, **first) for each in (one, two)]
    assert relative_error(got, (alone[0] + alone[1]) / 2) < 1e-5
