"""EBCA Reroll: what it keeps is bit for bit the plain run of the seed that it names, and it keeps the best."""
from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy.controlnet import ControlBase
from comfy.model_management import InterruptProcessingException
from PIL import Image

from ebca_core import attention_map
from support import other_packs, progress, toy, toy_joint
from support.host import new_executor, node
from support.log_messages import messages, refused
from support.one_place import score_by_loops
from support.probes import described, watched
from support.sampling import sample

interface = pytest.mark.interface
PROMPT = "a red bear, a blue bench and two cats"
#: The places of their words among the prompt's tokens.
WORDS = [[2, 3], [6, 7]]
STEPS, CFG, SEED, LAYERS = 4, 4.0, 3, 5
SMALL = dict(height=8, width=8)


@pytest.fixture
def kept(pack, monkeypatch):
    """What the runs of a test have kept, one for each image, in order."""
    module, seen = import_module(f"{pack.__name__}.comfyui_binding.samplers.reroll"), []
    report = module._report
    monkeypatch.setattr(module, "_report", lambda reroll, found: (seen.extend(found), report(reroll, found)))
    return seen


@cache
def clip(family="sd1"):
    return toy.clip(family)


@cache
def encoded(comfy, text=PROMPT, family="sd1"):
    return node(comfy, "CLIPTextEncode").execute(clip=clip(family), text=text)[0]


def rerolled(comfy, model, family="sd1", **inputs):
    inputs = {"prompt": PROMPT, "tries": 3, **inputs}
    return node(comfy, "EBCAReroll").execute(model=model, clip=clip(family), **inputs)[0]


def ksampler(comfy, model, seed=SEED, latent=None, positive=None, family="sd1", **options):
    settings = dict(steps=STEPS, cfg=CFG, sampler_name="euler", scheduler="normal", denoise=1.0) | options
    positive = positive or encoded(comfy, family=family)
    return node(comfy, "KSampler").execute(
        model=model, seed=seed, positive=positive, negative=toy.conditioning(99),
        latent_image=latent or toy.latent(**SMALL), **settings,
    )[0]["samples"]  # fmt: skip


def image_of(comfy, latent, index):
    return node(comfy, "LatentFromBatch").execute(samples=latent, batch_index=index, length=1)[0]


def scores_by_hand(comfy, model, seeds, step, **options):
    """The scores of plain runs from the attention of their call number `step`, read by hooks of torch in the two
    layers of 8 x 8 tokens."""
    scores = []
    for seed in seeds:
        with watched(model) as seen:
            ksampler(comfy, model, seed=seed, **options)
        calls = seen[step * LAYERS : (step + 1) * LAYERS]
        maps = [attention_map(one.keys, one.queries, one.heads)[1] for one in calls if one.queries.shape[1] == 64]
        assert len(maps) == 2
        mean = (sum(maps) / len(maps)).unflatten(1, (8, 8)).numpy()
        scores.append(score_by_loops(np.stack([mean[places].sum(axis=0) for places in WORDS])))
    return scores


# --- which one is kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "at", "step"), [pytest.param(0, 0.5, 1, marks=interface), (2, 0.5, 1), (2, 0.25, 0), (0, 1.0, 3)]
)
def test_the_best_is_kept_by_the_attention_of_the_step(comfy, kept, seed, at, step):
    model = toy.model()
    got = ksampler(comfy, rerolled(comfy, model, at=at), seed=seed)
    expected = scores_by_hand(comfy, model, range(seed, seed + 3), step)
    (one,) = kept
    assert one.scores == pytest.approx(expected, abs=1e-5)
    assert one.seed == seed + int(np.argmax(expected))
    assert torch.equal(got, ksampler(comfy, model, seed=one.seed))


def test_a_threshold_takes_the_first_that_reaches_it(comfy, kept):
    model = toy.model()
    scores = scores_by_hand(comfy, model, range(SEED, SEED + 3), 1)
    limits = [min(scores) - 1e-3, sorted(scores)[1] - 1e-3, max(scores) + 1e-3]
    for limit in limits:
        reached = [number for number, score in enumerate(scores) if score >= limit]
        expected = reached[0] if reached else int(np.argmax(scores))
        kept.clear()
        got = ksampler(comfy, rerolled(comfy, model, policy="threshold", threshold=limit))
        assert kept[0].seed == SEED + expected
        assert len(kept[0].scores) == (expected + 1 if reached else 3)
        assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed))


@pytest.mark.parametrize("policy", [pytest.param("best", marks=interface), "threshold"])
def test_previews_judge_runs_of_fewer_steps(comfy, kept, policy):
    """Every second sigma of a run of 8 steps."""
    model, options = toy.model(), dict(steps=8)
    got = ksampler(comfy, rerolled(comfy, model, preview_steps=4, policy=policy, threshold=-1.0), **options)
    sigmas = sigmas_of(model, 8)[::2]
    expected = []
    for seed in range(SEED, SEED + 3):
        with watched(model) as seen:
            sample(model, encoded(comfy), latent=toy.latent(**SMALL), sigmas=sigmas, seed=seed, steps=4)
        expected.append(len(seen))
    assert set(expected) == {4 * LAYERS}
    assert len(kept[0].scores) == (3 if policy == "best" else 1)
    assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed, **options))


def sigmas_of(model, steps):
    from comfy.samplers import KSampler

    return KSampler(model, steps, model.load_device, "euler", "normal", 1.0).sigmas


# --- bit for bit -----------------------------------------------------------------------------------------------------

SAMPLERS = ("euler", "heun", "euler_ancestral", "dpmpp_2m_sde", "uni_pc")
MORE = (
    "dpm_2", "lms", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m", "dpmpp_3m_sde", "ddpm", "lcm",
    "ddim", "ipndm", "res_multistep_ancestral", "er_sde", "seeds_2", "sa_solver", "euler_ancestral_cfg_pp",
)  # fmt: skip


@interface
@pytest.mark.parametrize("sampler", [*SAMPLERS, *(pytest.param(one, marks=pytest.mark.nightly) for one in MORE)])
def test_kept_picture_is_the_plain_run_of_its_seed(comfy, kept, sampler):
    model = toy.model()
    got = ksampler(comfy, rerolled(comfy, model), sampler_name=sampler)
    assert None not in kept[0].scores
    assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed, sampler_name=sampler))


@pytest.mark.parametrize("sampler", ["dpm_fast", pytest.param("dpm_adaptive", marks=interface)])
def test_samplers_that_choose_their_own_steps_keep_some_try(comfy, kept, sampler):
    model = toy.model()
    got = ksampler(comfy, rerolled(comfy, model, at=0.9), sampler_name=sampler, steps=6)
    assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed, sampler_name=sampler, steps=6))


@interface
@pytest.mark.parametrize("family", ["sdxl", "sd2"])
def test_other_models(comfy, kept, family):
    model, options = toy.model(family), dict(family=family)
    got = ksampler(comfy, rerolled(comfy, model, **options), **options)
    assert None not in kept[0].scores
    assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed, **options))


def custom_advanced(comfy, model, seed, latent, sampler="euler_ancestral"):
    (noise,) = node(comfy, "RandomNoise").execute(noise_seed=seed)
    (guider,) = node(comfy, "CFGGuider").execute(
        model=model, positive=encoded(comfy), negative=toy.conditioning(99), cfg=CFG
    )
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=noise, guider=guider, sampler=node(comfy, "KSamplerSelect").execute(sampler_name=sampler)[0],
        sigmas=sigmas_of(model, STEPS), latent_image=latent,
    )  # fmt: skip


@interface
def test_custom_sampling_with_both_of_its_outputs(comfy, kept):
    model, latent = toy.model(), toy.latent(2, **SMALL)
    got = custom_advanced(comfy, rerolled(comfy, model), SEED, latent)
    for image, one in enumerate(kept):
        expected = custom_advanced(comfy, model, one.seed, image_of(comfy, latent, image))
        for out, wanted in zip(got, expected, strict=True):
            assert torch.equal(out["samples"][image : image + 1], wanted["samples"])


@pytest.mark.parametrize(
    ("sampler", "size"), [("euler", (8, 8)), pytest.param("dpmpp_2m_sde", (9, 7), marks=interface)], ids=str
)
def test_images_of_a_batch_are_each_as_if_alone(comfy, kept, sampler, size):
    """9 x 7: ComfyUI draws other noise for Latent From Batch than for the whole batch there."""
    model, latent = toy.model(), toy.latent(3, *size)
    got = ksampler(comfy, rerolled(comfy, model), latent=latent, sampler_name=sampler)
    assert [one.batch_index for one in kept] == [0, 1, 2]
    for image, one in enumerate(kept):
        alone = ksampler(comfy, model, one.seed, image_of(comfy, latent, image), sampler_name=sampler)
        assert torch.equal(got[image : image + 1], alone)


@interface
def test_part_of_a_batch_keeps_its_places(comfy, kept):
    model, latent = toy.model(), toy.latent(5, **SMALL)
    part = node(comfy, "LatentFromBatch").execute(samples=latent, batch_index=2, length=2)[0]
    got = ksampler(comfy, rerolled(comfy, model), latent=part)
    assert [one.batch_index for one in kept] == [2, 3]
    for image, one in enumerate(kept):
        assert torch.equal(got[image : image + 1], ksampler(comfy, model, one.seed, image_of(comfy, latent, 2 + image)))


def pictures(images=2):
    mask = (torch.arange(8 * 8 * images).view(images, 1, 8, 8) % 3 > 0).float()
    return {"samples": toy.noise(images, 4, 8, 8, seed=7), "noise_mask": mask}


@pytest.mark.parametrize("sampler", ["euler", pytest.param("euler_ancestral", marks=interface), "ddim"])
def test_image_to_image_with_a_mask_for_each_image(comfy, kept, sampler):
    model, latent, options = toy.model(), pictures(), dict(denoise=0.7, sampler_name=sampler)
    got = ksampler(comfy, rerolled(comfy, model), latent=latent, **options)
    for image, one in enumerate(kept):
        alone = ksampler(comfy, model, one.seed, image_of(comfy, latent, image), **options)
        assert torch.equal(got[image : image + 1], alone)


@interface
def test_inpainting_model_with_a_picture_for_each_image(comfy, kept):
    model, latent, prompt = toy.model("sd1_inpaint"), pictures(), encoded(comfy)

    def prompt_with(rows):
        return [[prompt[0][0], {**prompt[0][1], "concat_latent_image": latent["samples"][rows],
                                "concat_mask": latent["noise_mask"][rows]}]]  # fmt: skip

    got = ksampler(comfy, rerolled(comfy, model), latent=latent, positive=prompt_with(slice(None)))
    for image, one in enumerate(kept):
        rows = slice(image, image + 1)
        alone = ksampler(comfy, model, one.seed, image_of(comfy, latent, image), prompt_with(rows))
        assert torch.equal(got[rows], alone)


def advanced(comfy, model, latent, start, end, seed=SEED):
    return node(comfy, "KSamplerAdvanced").execute(
        model=model, add_noise="enable" if start == 0 else "disable", noise_seed=seed, steps=6, cfg=CFG,
        sampler_name="euler", scheduler="normal", positive=encoded(comfy), negative=toy.conditioning(99),
        latent_image=latent, start_at_step=start, end_at_step=end,
        return_with_leftover_noise="enable" if end < 6 else "disable",
    )[0]  # fmt: skip


@interface
def test_of_two_stages_the_first_is_tried_and_the_second_goes_on(comfy, kept, caplog):
    model = toy.model()
    reroll = rerolled(comfy, model)
    caplog.set_level("INFO", "ebca")
    got = advanced(comfy, reroll, advanced(comfy, reroll, toy.latent(**SMALL), 0, 4), 4, 6)
    (one,) = kept
    assert sum("adds no noise of its own" in message for message in messages(caplog)) == 1
    stage = advanced(comfy, model, toy.latent(**SMALL), 0, 4, one.seed)
    assert torch.equal(got["samples"], advanced(comfy, model, stage, 4, 6, one.seed)["samples"])


@interface
@pytest.mark.parametrize("cache_node", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("is_first", [True, False])
def test_caches_of_other_nodes_start_anew_with_each_try(comfy, kept, cache_node, is_first):
    def cached(model):
        return node(comfy, cache_node).execute(model=model, reuse_threshold=0.5, start_percent=0.0, end_percent=1.0)[0]

    model, options = toy.model(), dict(steps=6)
    reroll = rerolled(comfy, cached(model)) if is_first else cached(rerolled(comfy, model))
    got = ksampler(comfy, reroll, **options)
    assert torch.equal(got, ksampler(comfy, cached(model), seed=kept[0].seed, **options))


def test_largest_seed_is_followed_by_the_first(comfy, kept):
    model = toy.model()
    got = ksampler(comfy, rerolled(comfy, model, tries=2, policy="threshold", threshold=1.0), seed=2**64 - 1)
    assert kept[0].seed in (2**64 - 1, 0)
    assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed))


@pytest.mark.parametrize("cfg", [pytest.param(1.0, marks=interface), 4.0])
def test_without_guidance_and_with_little_memory(comfy, kept, monkeypatch, cfg):
    model, apart = toy.model(), toy.model()
    monkeypatch.setattr(apart.model, "memory_required", lambda *args, **kwargs: float("inf"))
    got = ksampler(comfy, rerolled(comfy, model), cfg=cfg)
    together = kept.pop()
    assert torch.equal(got, ksampler(comfy, model, seed=together.seed, cfg=cfg))
    got = ksampler(comfy, rerolled(comfy, apart), cfg=cfg)
    assert kept[0].seed == together.seed
    assert kept[0].scores == pytest.approx(together.scores, abs=1e-4)
    assert torch.equal(got, ksampler(comfy, apart, seed=kept[0].seed, cfg=cfg))


# --- with other EBCA nodes -------------------------------------------------------------------------------------------


def concepts(comfy, model):
    return node(comfy, "EBCAConcepts").execute(model=model, clip=clip(), prompt=PROMPT)[0]


def test_with_concepts_in_any_order(comfy, kept):
    model = toy.model()
    after, before = rerolled(comfy, concepts(comfy, model)), concepts(comfy, rerolled(comfy, model))
    got = [ksampler(comfy, one) for one in (after, before)]
    assert torch.equal(*got)
    assert kept[0] == kept[1]
    assert torch.equal(got[0], ksampler(comfy, concepts(comfy, model), seed=kept[0].seed))
    plain = scores_by_hand(comfy, model, [SEED], 0)
    assert kept[0].scores[0] != pytest.approx(plain[0], abs=1e-4)  # of the composed run


def test_masks_and_texts_for_each_image_go_with_it(comfy, kept):
    """Of an update and of an edit, for two images; each alone has its own rows."""
    masks, texts = pictures()["noise_mask"][:, 0], torch.cat([toy.conditioning(seed)[0][0] for seed in (7, 8)])

    def edited(model, rows):
        edit = node(comfy, "EBCAEditContext").execute(
            conditioning=[[texts[rows], {}]], mask=masks[rows], start_percent=0.0, gamma_start_percent=0.0
        )[0]
        model = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]
        return node(comfy, "EBCAContextUpdate").execute(model=model, mask=masks[rows])[0]

    model, latent = toy.model(), toy.latent(2, **SMALL)
    got = ksampler(comfy, rerolled(comfy, edited(model, slice(None))), latent=latent)
    for image, one in enumerate(kept):
        rows = slice(image, image + 1)
        alone = ksampler(comfy, edited(model, rows), one.seed, image_of(comfy, latent, image))
        assert torch.equal(got[rows], alone)


@interface
def test_trace_holds_the_kept_runs_of_all_images(comfy, kept):
    def traced(model):
        return node(comfy, "EBCATrace").execute(model=model, attention_maps=True)

    model, latent = toy.model(), toy.latent(2, **SMALL)
    reroll, trace = traced(rerolled(comfy, model))
    samples = ksampler(comfy, reroll, latent=latent)
    plain, records = traced(model), []
    for image, one in enumerate(kept):
        ksampler(comfy, plain[0], one.seed, image_of(comfy, latent, image))
        records.append(plain[1].record)
    record = trace.recorded_with(samples)
    assert record.is_complete
    assert torch.equal(record.values.nan_to_num(), torch.stack([one.values for one in records]).mean(0).nan_to_num())
    for number, grid in enumerate(record.maps[0].by_grid):
        assert torch.equal(grid, torch.cat([one.maps[0].by_grid[number] for one in records]))


def test_maps_are_read_in_one_call_of_each_try(comfy, pack, monkeypatch):
    """What is watched costs nothing in the other calls, and no energies anywhere."""
    recorder = import_module(f"{pack.__name__}.comfyui_binding.trace.recorder")
    read = []
    monkeypatch.setattr(recorder, "attention_map", lambda *args: read.append(1) or attention_map(*args))
    monkeypatch.setattr(recorder, "energy_values", lambda *args: pytest.fail("an energy was computed"))
    ksampler(comfy, rerolled(comfy, toy.model(), tries=2), steps=8)
    assert len(read) == 2 * LAYERS


# --- nothing is left, and off is off ---------------------------------------------------------------------------------


def test_off_gives_the_model_itself(comfy):
    model = toy.model()
    assert rerolled(comfy, model, tries=1, prompt="") is model


def test_second_run_is_as_the_first_and_the_model_stays_as_it_was(comfy, kept):
    model = rerolled(comfy, toy.model())
    before = described(model)
    first = ksampler(comfy, model)
    assert torch.equal(ksampler(comfy, model), first)
    assert kept[0] == kept[1]
    assert described(model) == before


@pytest.mark.parametrize("step", [1, 3, pytest.param(4, marks=interface), 9])
def test_interrupt_stops_at_once_and_leaves_nothing(comfy, monkeypatch, step):
    model = rerolled(comfy, toy.model())
    fresh = ksampler(comfy, model)
    with monkeypatch.context() as patch:
        seen = progress.interrupted_at(patch, step)
        with pytest.raises(InterruptProcessingException) as stop:
            ksampler(comfy, model)
        assert type(stop.value) is InterruptProcessingException
        assert seen[-1] == step
    assert torch.equal(ksampler(comfy, model), fresh)


@pytest.mark.parametrize("images", [1, pytest.param(2, marks=interface)])
def test_progress_counts_all_tries_and_ends_at_its_total(comfy, monkeypatch, images):
    seen = progress.recorded(monkeypatch)
    ksampler(comfy, rerolled(comfy, toy.model()), latent=toy.latent(images, **SMALL))
    values, totals = [value for value, *_ in seen], {total for _, total, *_ in seen}
    assert values == sorted(values)
    assert totals == {images * (3 * 2 + 4)}
    assert values[-1] == images * (3 * 2 + 4)
    assert all(preview for _, _, preview in seen)


# --- what is told ----------------------------------------------------------------------------------------------------


@pytest.fixture
def graph(comfy, monkeypatch):
    """A picture by EBCA Reroll and core's nodes; toy_parts gives the parts of a checkpoint."""
    from comfy_api.latest import io

    class ToyParts(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.Model.Output(), io.Clip.Output(), io.Vae.Output()]
            return io.Schema(node_id="ToyParts", category="test", inputs=[], outputs=outputs)

        @classmethod
        def execute(cls):
            return io.NodeOutput(toy.model(), clip(), toy.vae())

    ToyParts.GET_SCHEMA()
    monkeypatch.setitem(comfy.NODE_CLASS_MAPPINGS, "ToyParts", ToyParts)
    nodes = {
        "toy": ("ToyParts", {}),
        "reroll": ("EBCAReroll", dict(model=["toy", 0], clip=["toy", 1], prompt=PROMPT, concepts="", at=0.5, tries=2,
                                      policy="best")),
        "text": ("CLIPTextEncode", dict(clip=["toy", 1], text=PROMPT)),
        "latent": ("EmptyLatentImage", dict(width=64, height=64, batch_size=2)),
        "sampler": ("KSampler", dict(model=["reroll", 0], seed=SEED, steps=2, cfg=4.0, sampler_name="euler",
                                     scheduler="normal", positive=["text", 0], negative=["text", 0],
                                     latent_image=["latent", 0], denoise=1.0)),
        "decode": ("VAEDecode", dict(samples=["sampler", 0], vae=["toy", 2])),
        "save": ("SaveImage", dict(images=["decode", 0], filename_prefix="reroll")),
    }  # fmt: skip
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def in_metadata(outputs):
    """What the saved picture says of the node."""
    place = outputs["save"]["images"][0]
    with Image.open(Path(folder_paths.get_output_directory()) / place["subfolder"] / place["filename"]) as picture:
        return json.loads(picture.text["prompt"])["reroll"]["_meta"]["ebca_reroll"]


@interface
def test_picture_says_which_seed_was_kept_also_where_the_node_is_reused(graph, run_prompt, kept):
    executor = new_executor()
    for seed in (SEED, SEED + 10):
        kept.clear()
        graph["sampler"]["inputs"]["seed"] = seed
        said = in_metadata(run_prompt(json.loads(json.dumps(graph)), executor))
        assert [(one["seed"], one["batch_index"], one["scores"]) for one in said] == [
            (one.seed, one.batch_index, one.scores) for one in kept
        ]
        assert [one["batch_index"] for one in said] == [0, 1]


@interface
def test_graph_of_a_picture_that_is_sent_again_has_the_entries_of_the_new_run_alone(graph, run_prompt):
    graph["reroll"]["_meta"] = {"ebca_reroll": [{"prompt_id": "an earlier run", "seed": 1, "scores": [0.5]}]}
    said = in_metadata(run_prompt(graph))
    assert [one["batch_index"] for one in said] == [0, 1]
    assert "an earlier run" not in {one["prompt_id"] for one in said}


def test_picture_says_which_of_two_samplers_kept_a_seed(graph, run_prompt):
    graph["second"] = json.loads(json.dumps(graph["sampler"]))
    graph["second"]["inputs"]["seed"] = SEED + 10
    graph["decode second"] = {"class_type": "VAEDecode", "inputs": {"samples": ["second", 0], "vae": ["toy", 2]}}
    graph["both"] = {"class_type": "ImageBatch", "inputs": {"image1": ["decode", 0], "image2": ["decode second", 0]}}
    graph["save"]["inputs"]["images"] = ["both", 0]
    said = in_metadata(run_prompt(graph))
    for sampler, seed in (("sampler", SEED), ("second", SEED + 10)):
        of_one = [one for one in said if one["sampler"] == sampler]
        assert [one["batch_index"] for one in of_one] == [0, 1]
        assert all(one["seed"] - seed == np.argmax(one["scores"]) for one in of_one)
    assert len(said) == 4


def test_node_and_log_say_what_was_kept_and_what_is_not_scored(comfy, kept, caplog):
    caplog.set_level("INFO", "ebca")
    ksampler(comfy, rerolled(comfy, toy.model()))
    (message,) = [one for one in messages(caplog) if "kept" in one]
    assert f"kept seed {kept[0].seed}, scores {', '.join(f'{score:.2f}' for score in kept[0].scores)}" in message
    assert "not scored: `two cats`: several of a kind" in message


@interface
def test_attention_that_cannot_be_read_keeps_the_first(comfy, kept, caplog):
    """Another node merges the image tokens in every layer."""
    model = node(comfy, "TomePatchModel").execute(model=toy.model(), ratio=0.5)[0]
    latent = toy.latent(1, 32, 32)
    got = ksampler(comfy, rerolled(comfy, model), latent=latent)
    if kept[0].scores == [None]:
        assert any("could not be read" in message for message in messages(caplog))
    assert torch.equal(got, ksampler(comfy, model, seed=kept[0].seed, latent=latent))


def test_error_of_the_recorder_names_this_node_and_keeps_the_first(comfy, pack, kept, monkeypatch, caplog):
    monkeypatch.setattr(pack.comfyui_binding.trace.recorder.CallRecorder, "record_maps", lambda *_: 1 / 0)
    got = ksampler(comfy, rerolled(comfy, toy.model()))
    assert torch.equal(got, ksampler(comfy, toy.model()))
    assert [one.scores for one in kept] == [[None]]
    assert any("EBCA Reroll stopped reading" in message for message in messages(caplog))
    assert not any("EBCA Trace" in message for message in messages(caplog))


def test_layers_that_cannot_be_read_name_this_node(comfy, caplog):
    """Another node samples the image in tiles."""
    scene = other_packs.scene(latent=toy.latent(1, 16, 16))
    model = rerolled(comfy, scene.model)
    other_packs.tiles(True)(comfy, replace(scene, model=model)).sampled(comfy)
    assert any("EBCA Reroll: layers not read" in message for message in messages(caplog))
    assert not any("EBCA Trace" in message for message in messages(caplog))


def test_other_text_than_the_samplers_is_said(comfy, caplog):
    ksampler(comfy, rerolled(comfy, toy.model()), positive=encoded(comfy, "a green bear, a red bench"))
    assert any("not the encoded text of this node" in message for message in messages(caplog))


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("inputs", "words"), [
    ({"prompt": "a red bear"}, ("Only one concept",)),
    ({"concepts": "a red bear\na green hat"}, ("Only one concept", "not in the prompt")),
    ({"prompt": "1girl, masterpiece"}, ("list of tags",)),
], ids=str)  # fmt: skip
def test_prompts_without_two_scored_concepts_are_refused(comfy, inputs, words):
    refused(lambda: rerolled(comfy, toy.model(), **inputs), *words)


def test_refused_before_sampling(comfy):
    check = node(comfy, "EBCAReroll").cls.validate_inputs
    assert check(prompt=PROMPT, concepts="", tries=2) is True
    assert "Only one concept" in check(prompt="a bear", concepts="", tries=2)
    assert check(prompt="a bear", concepts="", tries=1) is True


def test_models_without_maps_and_second_rerolls_are_refused(comfy):
    refused(lambda: rerolled(comfy, toy_joint.model("chroma")), "cannot read the attention of Chroma")
    refused(lambda: rerolled(comfy, rerolled(comfy, toy.model())), "EBCA Reroll already")


def combined():
    return toy.conditioning(1) + toy.conditioning(2)


@interface
@pytest.mark.parametrize(("options", "words"), [
    ({"positive": combined}, ("2 positive prompts", "Conditioning Combine")),
    ({"positive": lambda: toy.conditioning(1, area=(4, 4, 0, 0))}, ("an area",)),
    ({"positive": lambda: toy.conditioning(1, tokens=154)}, ("77 tokens", "154")),
    ({"positive": lambda: toy.conditioning(1, guide=torch.zeros(2, 4)), "images": 2}, ("one after another", "guide")),
], ids=["combined", "area", "length", "rows"])  # fmt: skip
def test_runs_that_cannot_be_tried_anew_are_refused(comfy, options, words):
    latent = toy.latent(options.get("images", 1), **SMALL)
    model = rerolled(comfy, toy.model())
    refused(lambda: ksampler(comfy, model, positive=options["positive"](), latent=latent), *words)


@interface
def test_control_pictures_for_each_image_are_refused(comfy):
    control = ControlBase()
    control.cond_hint_original = torch.zeros(2, 3, 8, 8)
    (text, options), = encoded(comfy)
    model, prompt = rerolled(comfy, toy.model()), [[text, {**options, "control": control}]]
    refused(lambda: ksampler(comfy, model, positive=prompt, latent=toy.latent(2, **SMALL)), "ControlNet")


@interface
def test_noise_of_other_nodes_is_refused(comfy):
    from comfy.sample import sample_custom
    from comfy.samplers import sampler_object

    model, noise = rerolled(comfy, toy.model()), 1.01 * toy.noise(1, 4, 8, 8)
    options = dict(positive=encoded(comfy), negative=toy.conditioning(99), latent_image=torch.zeros_like(noise))
    sampler, sigmas = sampler_object("euler"), sigmas_of(model, 2)
    refused(lambda: sample_custom(model, noise, CFG, sampler, sigmas, seed=SEED, **options), "not that of its seed")
    refused(lambda: sample_custom(model, noise, CFG, sampler, sigmas, **options), "RandomNoise")
