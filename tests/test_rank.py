"""EBCA Rank: its order is that of scores computed from the trace in another way, and it refuses what it cannot know."""
from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from support import toy
from support.host import node
from support.log_messages import messages, refused
from support.one_place import score_by_loops
from support.sampling import sample

PROMPT = "a red bear, a blue bench and two cats on a beach"
#: Places of the words in the prompt's tokens: start, a, red, bear, comma, a, blue, bench, ...
WORDS = {"a red bear": [2, 3], "a blue bench": [6, 7]}


@cache
def clip():
    return toy.clip()


def encoded(comfy, text=PROMPT):
    return node(comfy, "CLIPTextEncode").execute(clip=clip(), text=text)[0]


def traced_run(comfy, batch=4, seed=0, text=PROMPT, **latent):
    """A trace with maps, the latent that came out, and pictures that differ."""
    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(), attention_maps=True)
    samples = sample(model, encoded(comfy, text), latent={**toy.latent(batch, 16, 16), **latent}, steps=2, seed=seed)
    return trace, {**latent, "samples": samples}, toy.noise(batch, 24, 24, 3, seed=seed).sigmoid()


def rank(comfy, trace, image, latent=None, **inputs):
    """Everything in lists, as ComfyUI hands it to a node that takes lists."""
    given = dict(trace=trace, image=image, clip=clip()) | {"prompt": PROMPT, "concepts": "", **inputs}
    given |= {} if latent is None else {"latent": latent}
    return node(comfy, "EBCARank").execute(**{k: v if isinstance(v, list) else [v] for k, v in given.items()})


def expected_scores(trace):
    """From the record by hand: of toy's seven layers, four have 8 x 8 and three 16 x 16."""
    (maps,) = trace.record.maps
    (grid,) = [grid for grid in maps.by_grid if grid.shape[-1] == 8]
    objects = [grid[:, places].sum(dim=1) for places in WORDS.values()]
    return [score_by_loops(np.stack([one[image].numpy() for one in objects])) for image in range(len(grid))]


def shown_scores(table):
    """{image: score} in the order of the table."""
    rows = [line.split() for line in table.splitlines()[1:] if line[0].isdigit()]
    return {int(image) - 1: float(score) for _, image, score in rows}


@pytest.mark.parametrize(("layers", "chosen", "side"), [
    ({8: 1, 16: 5, 32: 5, 64: 5}, 16, 16),  # SD 1.5 at 512 x 512
    ({12: 1, 24: 5, 48: 5, 96: 5}, 24, 16),  # the same at 768 x 768
    ({32: 60, 64: 10}, 32, 16),  # SDXL at 1024 x 1024
    ({4: 4, 8: 3}, 8, 8),  # the shapes model
    ({2: 4, 4: 3}, 4, 4),
], ids=["SD 1.5", "large", "SDXL", "shapes", "tiny"])  # fmt: skip
def test_the_grid_is_the_coarsest_that_many_layers_have(pack, layers, chosen, side):
    trace = pack.comfyui_binding.trace
    grids = {one: toy.noise(2, 77, one, one, seed=one).sigmoid() for one in layers}
    maps = trace.trace_record.WordMaps(list(grids.values()), list(layers.values()))
    summed = torch.stack([grids[chosen][:, [2, 3]].sum(dim=1), grids[chosen][:, 7]], dim=1)
    expected = torch.nn.functional.adaptive_avg_pool2d(summed, side)
    torch.testing.assert_close(trace.object_maps.object_maps(maps, [[2, 3], [7]]), expected)


def test_everything_is_sorted_by_the_scores_of_the_trace(comfy):
    trace, latent, pictures = traced_run(comfy)
    images, latents, best_image, best_latent, table, sheet = rank(comfy, trace, pictures, latent)
    expected = expected_scores(trace)
    order = sorted(range(4), key=lambda image: -expected[image])
    shown = shown_scores(table)
    assert list(shown) == order
    assert [shown[image] for image in order] == pytest.approx([expected[image] for image in order], abs=6e-4)
    assert torch.equal(images, pictures[order])
    assert torch.equal(latents["samples"], latent["samples"][order])
    assert latents["batch_index"] == order
    assert torch.equal(best_image, pictures[order[:1]])
    assert torch.equal(best_latent["samples"], latent["samples"][order[:1]])
    assert sheet.shape[1] > sheet.shape[2] > 0  # four rows of three tiles


def test_sheet_marks_the_peak_of_each_map(pack):
    """A row of three cells of 200 pixels with gaps of 8: the picture, and the maps of two things with a ring each."""
    module = pack.plots.rank_sheet
    maps, spots = torch.zeros(2, 8, 8), ((1, 6), (5, 2))
    for one, spot in zip(maps, spots, strict=True):
        one[spot] = 1.0
    picture = module.RankedPicture("1", torch.zeros(64, 64, 3), maps, [8 * row + column for row, column in spots])
    sheet = module.rank_sheet([picture], ["a bear", "a bench"])[0]
    for cell, (row, column) in enumerate(spots, 1):
        x, y = 8 + cell * 208 + 25 * column + 12, 8 + 25 * row + 12
        ring = sheet[y, x + 8 : x + 10]
        assert (ring == 1).all()
        assert not (sheet[y, x - 60 + 8 : x - 60 + 10] == 1).all()


def test_what_is_not_scored_is_said(comfy):
    trace, _, pictures = traced_run(comfy)
    table = rank(comfy, trace, pictures)[4]
    assert "scored: a red bear, a blue bench" in table
    assert "not scored: `two cats`: several of a kind" in table


def test_several_runs_are_ranked_as_one_batch(comfy):
    runs = [traced_run(comfy, batch=batch, seed=seed) for seed, batch in enumerate((1, 2, 1))]
    traces, latents, pictures = (list(part) for part in zip(*runs, strict=True))
    images, sorted_latents, *_, table, _ = rank(comfy, traces, pictures, latents)
    expected = [score for trace in traces for score in expected_scores(trace)]
    order = sorted(range(4), key=lambda image: -expected[image])
    assert list(shown_scores(table)) == order
    assert torch.equal(images, torch.cat(pictures)[order])
    assert torch.equal(sorted_latents["samples"], torch.cat([one["samples"] for one in latents])[order])
    assert "batch_index" not in sorted_latents  # of runs with seeds of their own


def test_a_trace_that_no_longer_holds_the_runs_is_refused(comfy):
    """ComfyUI runs a sampler once for each value of a list of seeds, and its one trace holds the last of them."""
    trace, latent, pictures = traced_run(comfy, batch=1)
    refused(lambda: rank(comfy, trace, [pictures] * 3, [latent] * 3), "3 images", "the last run only", "batch")
    refused(lambda: rank(comfy, [trace] * 3, [pictures] * 3), "3 images", "the last run only")
    _, other, _ = traced_run(comfy, batch=1, seed=5)
    refused(lambda: rank(comfy, trace, pictures, other), "another run than the trace")


def test_noise_masks_and_places_in_the_batch_follow_their_latents(comfy):
    mask = (torch.arange(4.0) / 4).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    trace, latent, pictures = traced_run(comfy, batch_index=[7, 3, 5, 9], noise_mask=mask)
    latents, table = (rank(comfy, trace, pictures, latent)[output] for output in (1, 4))
    order = list(shown_scores(table))
    assert latents["batch_index"] == [[7, 3, 5, 9][image] for image in order]
    assert torch.equal(latents["noise_mask"], mask[order])


def test_without_a_latent_only_who_reads_it_is_stopped(comfy):
    from comfy_execution.graph_utils import ExecutionBlocker

    trace, _, pictures = traced_run(comfy)
    images, latents, _, best_latent, *_ = rank(comfy, trace, pictures)
    assert images.shape == pictures.shape
    assert isinstance(latents, ExecutionBlocker)
    assert "no latent is connected" in best_latent.message


@pytest.mark.parametrize(("inputs", "words"), [
    ({"concepts": "a red bear"}, ("Only one concept", "can be scored")),
    ({"concepts": "two cats\na red bear"}, ("Only one concept", "several of a kind")),
    ({"concepts": "a red bear\na green hat"}, ("Only one concept", "not in the prompt")),
    ({"concepts": "oil painting\nthree dogs"}, ("No concept", "a style", "several of a kind")),
    ({"prompt": "1girl, masterpiece"}, ("list of tags", "concepts")),
    ({"prompt": ["a bear and a bench", "a cat and a dog"]}, ("different texts",)),
], ids=str)  # fmt: skip
def test_what_cannot_be_compared_is_refused(comfy, inputs, words):
    trace, _, pictures = traced_run(comfy, batch=1)
    refused(lambda: rank(comfy, trace, pictures, **inputs), *words)


def test_refused_before_sampling(comfy):
    check = node(comfy, "EBCARank").cls.validate_inputs
    assert check(prompt=[PROMPT], concepts=[""]) is True
    assert check(prompt=(None,), concepts=[""]) is True
    assert "Only one concept" in check(prompt=["a bear"], concepts=[""])


def test_traces_without_maps_and_other_prompts(comfy, caplog):
    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(), attention_maps=False)
    sample(model, encoded(comfy), steps=1)
    refused(lambda: rank(comfy, trace, torch.zeros(1, 8, 8, 3)), "no attention maps")
    trace, _, pictures = traced_run(comfy, batch=1, text="a green bear, a red bench and two cats on a beach")
    rank(comfy, trace, pictures)
    assert any("not the encoded text" in message for message in messages(caplog))


@pytest.mark.parametrize(("concept", "reason"), [
    ("a red balloon", None), ("the old bench", None), ("a woman with red hair", None), ("glasses", None),
    ("a bowl of apples", None), ("a house", None), ("1girl", None), ("a red door", None),
    ("a green square", None), ("Totoro", None),
    ("two cats", "SEVERAL"), ("cats", "SEVERAL"), ("3 dogs", "SEVERAL"), ("2girls", "SEVERAL"),
    ("people", "SEVERAL"), ("several birds", "SEVERAL"), ("a beach", "PLACE"), ("forest", "PLACE"),
    ("a blue sky", "PLACE"), ("red hair", "PART"), ("blue eyes", "PART"), ("oil painting", "STYLE_REASON"),
    ("cinematic lighting", "STYLE_REASON"),
    ("a cat on a mat", "THINGS"),
], ids=str)  # fmt: skip
def test_what_has_one_place(pack, concept, reason):
    scored = pack.comfyui_binding.text.scored_concepts
    assert scored.why_not_scored(concept) == (reason and getattr(scored, reason))


def test_words_without_articles_and_prepositions_are_read(comfy, pack):
    find = pack.comfyui_binding.text.scored_concepts.scored_concepts
    scored = find(clip(), "a bowl of (red apples:1.3), next to the small dog", "")
    assert list(scored.places.values()) == [[2, 4, 5], [10, 11]]
    assert scored.prompt.length == 77
