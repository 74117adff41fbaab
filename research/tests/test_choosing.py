"""Choosing among runs: the maps against a computation of their own, the policies against runs played one by one."""

import argparse
import itertools
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

import bootstrap
from alignment.results import Cell, Results
from alignment.settings import PLAIN
from choosing import choose, policies, report, runs, scores, settings
from support import toy, toy_dit, transformer_runs
from support.sampling import sample

RNG = np.random.default_rng(0)
METHOD = settings.STUDIES["unet"].settings["cfg 3"].method

# --- policies --------------------------------------------------------------------------------------------------------


def played(noises, tries, threshold, cost):
    """One caption's runs, one after the other: noises are pairs of score and verdict. -> verdict, time"""
    time, seen = 0.0, []
    for score, right in noises[:tries]:
        time += cost.early
        if score >= threshold:
            return right, time + cost.whole - (cost.early if cost.goes_on else 0)
        seen.append((score, right))
    best = max(seen, key=lambda run: run[0])
    if best is seen[-1] and cost.goes_on:  # it has come as far as its choice and goes on
        return best[1], time + cost.whole - cost.early
    return best[1], time + cost.whole


@pytest.mark.parametrize("goes_on", [True, False], ids=["runs", "previews"])
@pytest.mark.parametrize(("tries", "threshold"), [(1, 0.3), (2, 0.3), (3, 0.5), (4, 0.7), (2, np.inf), (4, np.inf)])
def test_rerolled_runs_played_one_by_one_in_every_order(tries, threshold, goes_on):
    values, right = RNG.random((30, 4)), RNG.integers(0, 2, (30, 4)).astype(float)
    cost = policies.Cost(0.6, 1.3, goes_on)
    got_right, got_time = policies.rerolled(values, right, tries, threshold, cost)
    for caption, first in np.ndindex(30, 4):
        orders = [order for order in itertools.permutations(range(4)) if order[0] == first]
        runs_of = [[(values[caption, noise], right[caption, noise]) for noise in order] for order in orders]
        expected = np.mean([played(noises, tries, threshold, cost) for noises in runs_of], axis=0)
        assert [got_right[caption, first], got_time[caption, first]] == pytest.approx(list(expected))


def test_first_and_last_of_all_pictures():
    values, right = RNG.random((20, 5)), RNG.integers(0, 2, (20, 5))
    for place in (0, 1, -1):
        expected = [sorted(zip(-row, verdicts))[place][1] for row, verdicts in zip(values, right)]
        assert list(policies.ranked(values, right, place)) == expected


def share_in_order(pairs):
    return np.mean([1.0 if good > bad else 0.5 if good == bad else 0.0 for good, bad in pairs])


def test_auc_counts_pairs_of_all_pictures_or_of_one_captions():
    values, right = RNG.integers(0, 5, (12, 4)).astype(float), RNG.integers(0, 2, (12, 4))

    def pairs(numbers, verdicts):
        return list(itertools.product(numbers[verdicts == 1], numbers[verdicts == 0]))

    everything = pairs(values.ravel(), right.ravel())
    assert policies.auc(values.ravel(), right.ravel()) == pytest.approx(share_in_order(everything))
    within = [pair for row, verdicts in zip(values, right) for pair in pairs(row, verdicts)]
    assert policies.auc_within(values, right) == pytest.approx(share_in_order(within))


# --- scores ----------------------------------------------------------------------------------------------------------


def test_gap_pixel_by_pixel():
    places = RNG.dirichlet(np.ones(64), size=(2, 3)).reshape(2, 3, 8, 8)
    got = scores.gaps(torch.from_numpy(places))
    for image, thing in np.ndindex(2, 3):
        grid = places[image, thing]
        top = np.unravel_index(grid.argmax(), grid.shape)
        inside = sum(grid[y, x] for y, x in np.ndindex(8, 8) if np.hypot(y - top[0], x - top[1]) / 8 <= 0.29)
        assert float(got[image, thing]) == pytest.approx(np.log(inside / (1 - inside)))


def test_mean_of_both_grids_counts_every_layer_once():
    fine, coarse = RNG.random((1, 1, 1, 64)), RNG.random((1, 1, 1, 16))
    got = scores.on_fine_grid({8: fine, 4: coarse}).reshape(8, 8)
    for y, x in np.ndindex(8, 8):
        expected = (3 * fine.reshape(8, 8)[y, x] + 4 * coarse.reshape(4, 4)[y // 2, x // 2]) / 7
        assert got[y, x] == pytest.approx(expected)


# --- recording -------------------------------------------------------------------------------------------------------


def maps_by_hand(x, context, layer, heads):
    """Of one image: softmax over tokens and over pixels, each the mean over heads, [n, t]."""
    q, k = (tensor.double().numpy() @ linear.weight.detach().double().numpy().T
            for tensor, linear in ((x, layer.to_q), (context, layer.to_k)))  # fmt: skip
    found = []
    for part in np.split(np.arange(q.shape[1]), heads):
        weights = np.exp(q[:, part] @ k[:, part].T / len(part) ** 0.5)
        found.append([weights / weights.sum(axis, keepdims=True) for axis in (1, 0)])
    return np.mean(found, axis=0)


def layers_inputs(layers, model, *prompts):
    """What each layer of a plain run of one step was given, [layer, image tokens, text], and the sample."""
    inputs = []

    def look(layer, args, kwargs):
        inputs.append((layer, args[0], kwargs.get("context", args[-1])))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    plain = sample(model, *prompts, steps=1)
    for hook in hooks:
        hook.remove()
    return inputs, plain


def rows_with(text, inputs):
    """Layer, image tokens [n, c] and text [t, c] of the rows that have the text, which is in every input."""
    for layer, x, context in inputs:
        (row,) = [row for row in range(len(context)) if torch.equal(context[row], text)]
        yield layer, x[row], context[row]


def test_maps_are_those_of_the_layers_own_inputs_and_the_picture_stays():
    from choosing.recording import UNetRecorder

    model = toy.model()
    ((text, _),) = toy.conditioning()
    recorder = UNetRecorder(model.get_model_object("diffusion_model"), text)
    layers = list(recorder._layers.values())
    inputs, plain = layers_inputs(layers, model, toy.conditioning())
    assert torch.equal(sample(recorder.applied_to(model), toy.conditioning(), steps=1), plain)
    (call,) = recorder.means()
    expected = {}
    for layer, x, context in rows_with(text[0], inputs):
        expected.setdefault(round(len(x) ** 0.5), []).append(maps_by_hand(x, context, layer, layer.heads))
    assert len(inputs) == len(layers)
    assert set(call) == set(expected)
    for side, found in expected.items():
        attention, places = np.mean(found, axis=0)
        assert np.allclose(call[side]["attention"][0], attention, atol=1e-5)
        assert np.allclose(call[side]["places"][0], places, atol=1e-5)
    scored = UNetRecorder(model.get_model_object("diffusion_model"), text, is_tuning=False)
    sample(scored.applied_to(model), toy.conditioning(), steps=1)
    ((only,),) = [one.values() for one in scored.means()]
    assert list(only) == ["attention"]
    assert torch.equal(only["attention"], call[8]["attention"])


def normalised(values, norm):
    """RMS norm of each head, [..., d]."""
    size = np.sqrt((values**2).mean(-1, keepdims=True) + norm.eps)
    return values / size * norm.weight.detach().double().numpy()


def maps_of_predict2(x, context, layer):
    """As `maps_by_hand`, with a norm of each head's queries and keys."""

    def projected(tensor, linear):
        out = tensor.double().numpy() @ linear.weight.detach().double().numpy().T
        return out.reshape(len(tensor), layer.n_heads, -1)

    q = normalised(projected(x, layer.q_proj), layer.q_norm)
    k = normalised(projected(context, layer.k_proj), layer.k_norm)
    weights = np.exp(np.einsum("nhd,thd->hnt", q, k) / layer.head_dim**0.5)
    return [(weights / weights.sum(axis, keepdims=True)).mean(0) for axis in (2, 1)]


def test_maps_of_a_transformer_are_of_the_prompt_beside_others_and_before_an_update(comfy, pack):
    from choosing.recording import TransformerRecorder

    family = "predict2"
    model = toy_dit.model(family)
    prompt, other, negative = (toy_dit.conditioning(family, seed) for seed in (1, 2, 3))
    ((text, _),), positive = prompt, [*other, *prompt]  # two prompts, whose predictions are averaged
    network = model.get_model_object("diffusion_model")
    layers = [block.cross_attn for block in network.blocks]
    latent = {"samples": torch.zeros(toy_dit.shape(family))}
    inputs, plain = layers_inputs(layers, model, positive, negative, latent)
    recorder = TransformerRecorder(network, text)
    assert torch.equal(sample(recorder.applied_to(model), positive, negative, latent, steps=1), plain)
    found = [maps_of_predict2(x, context, layer) for layer, x, context in rows_with(text[0], inputs)]
    (call,) = recorder.means()
    ((side, maps),) = call.items()
    assert len(found) == len(layers)
    assert side**2 == inputs[0][1].shape[1]
    for got, expected in zip(maps.values(), np.mean(found, axis=0), strict=True):
        assert np.allclose(got[0], expected, atol=1e-5)
    updated = transformer_runs.ebca(family).on(comfy, pack, model)
    changed = sample(updated, positive, negative, latent, steps=1)
    again = TransformerRecorder(network, text)
    assert torch.equal(sample(again.applied_to(updated), positive, negative, latent, steps=1), changed)
    assert not torch.equal(changed, plain)
    assert len(again.calls[0][side]) == len(layers)
    first = [one.calls[0][side][0]["attention"] for one in (again, recorder)]
    assert torch.equal(*first)


def test_maps_of_a_unet_are_of_the_prompt_beside_others():
    from choosing.recording import UNetRecorder

    model, prompt, other = toy.model(), toy.conditioning(1), toy.conditioning(2)
    found = []
    for positive in (prompt, [*other, *prompt], [*prompt, *other]):
        recorder = UNetRecorder(model.get_model_object("diffusion_model"), prompt[0][0])
        sample(recorder.applied_to(model), positive, steps=1)
        (call,) = recorder.means()
        found.append({side: maps["attention"] for side, maps in call.items()})
    for maps in found[1:]:
        assert all(torch.allclose(maps[side], found[0][side], atol=1e-6) for side in found[0])


def test_timed_score_is_that_of_the_call_and_the_picture_stays(pack, monkeypatch):
    from choosing import cost
    from choosing.recording import UNetRecorder

    found = []
    monkeypatch.setattr(cost, "pack_module", lambda name: import_module(f"{pack.__name__}.{name}"))
    monkeypatch.setattr(cost, "one_place_score", lambda maps: found.append(maps))
    model, timed = toy.model(), cost.TimedCalls()
    recorder = UNetRecorder(model.get_model_object("diffusion_model"), toy.conditioning()[0][0])
    got = sample(timed.applied_to(recorder.applied_to(model)), toy.conditioning(), steps=1)
    assert torch.equal(got, sample(model, toy.conditioning(), steps=1))
    (call,), (maps,) = recorder.means(), found
    attention = call[maps.shape[-1]]["attention"]
    expected = torch.stack([attention[..., list(tokens)].sum(-1) for tokens in cost.OBJECTS], 1)
    torch.testing.assert_close(maps.flatten(2), expected)
    assert len(timed.pairs) == 1


# --- runs and tables -------------------------------------------------------------------------------------------------


def line(letters, value):
    """Of a noise: every score of every picture has the value of its letter."""
    each = [value[letter] for letter in letters]
    calls = {str(call): each for call in settings.CALLS}
    return {"labels": letters, "scores": {name: calls | {settings.MEAN: each} for name in scores.SCORES}}


def test_noises_share_captions_and_no_noise():
    cells = [runs.cell(PLAIN, "three objects", 500, noise, is_tuning) for noise in range(4) for is_tuning in (0, 1)]
    assert len({seed for cell in cells for seed in cell.seeds()}) == 8 * 500
    assert cells[0].scenes() == cells[2].scenes()
    assert cells[0].seeds() == Cell("three objects", PLAIN.kind, PLAIN.settings, False, 500).seeds()
    assert len({cell.key for cell in cells}) == 8


def test_runs_are_read_by_caption_and_noise():
    found = runs.Runs.of([line("Rmr", {"R": 900, "r": 800, "m": -100}), line("uRR", {"R": 700, "u": 0})])
    assert found.right.tolist() == [[1, 0], [0, 1], [1, 1]]
    assert found.scores[scores.CHOSEN][5].tolist() == [[0.9, 0], [-0.1, 0.7], [0.8, 0.7]]
    assert found.noises == 2


def test_perfect_judge_has_what_one_of_its_runs_has(tmp_path):
    """Of three noises, all pairs."""
    results, value = Results(tmp_path / "results"), {"R": 900, "m": 100}
    for noise, letters in enumerate(("Rmm", "mmR", "mmR")):
        results.add(runs.cell(METHOD, "three objects", 3, noise).key, **line(letters, value))
    table = report.choices(report.Recordings("unet", results, Results(tmp_path / "none"), 3, 3), "three objects")
    best = [text.split("|")[3].strip() for text in table.splitlines() if "*a perfect judge, best of 2*" in text]
    assert best == [f"{100 * (2 / 3 + 0 + 1) / 3:.1f} %"]


def test_score_that_knows_the_verdict_gains_what_a_perfect_judge_does(tmp_path):
    results, alignment = Results(tmp_path / "results"), Results(tmp_path / "alignment")
    method, value = METHOD, {"R": 900, "m": 100}
    for noise, letters in enumerate(("RRmm", "mRRm")):
        results.add(runs.cell(method, "three objects", 4, noise).key, **line(letters, value))
    table = report.choices(report.Recordings("unet", results, alignment, 2, 4), "three objects").splitlines()
    row = [cell.strip() for cell in next(text for text in table if "| best of 2 |" in text).split("|")]
    assert row[3] == "75.0 %"
    assert row[4] == "1.88"  # one run and a half, and another half for an earlier try: half of the orders, all ties
    assert [text.split("|")[3].strip() for text in table if "perfect judge" in text] == ["75.0 %"]


def test_previews_choose_among_runs_in_full(tmp_path):
    """Two noises of three captions: the last call picks m, R and m, the mean R, R and R."""
    results, steps = Results(tmp_path / "results"), settings.STUDIES["unet"].settings["cfg 3"].previews[0]
    for noise, (letters, previewed) in enumerate((("RRm", [1, 3, 2]), ("mRR", [2, 2, 1]))):
        results.add(runs.cell(METHOD, "three objects", 3, noise).key, **line(letters, {"R": 900, "m": 100}))
        calls = {str(steps): previewed, settings.MEAN: previewed[::-1]}
        preview = runs.cell(METHOD, "three objects", 3, noise, preview=steps)
        results.add(preview.key, labels="uuu", scores={scores.CHOSEN: calls})
    table = report.choices(report.Recordings("unet", results, Results(tmp_path / "none"), 2, 3), "three objects")
    rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines() if "previews" in row]
    assert [row[3] for row in rows] == ["33.3 %", "100.0 %"]
    assert [row[4] for row in rows] == [f"{1 + 2 * steps / 10:.2f}"] * 2


@pytest.mark.parametrize(("sampled", "ranked"), [(16, 16), (14, 12)])
def test_captions_with_many_noises_are_the_first_of_the_others(tmp_path, sampled, ranked):
    """They are ranked four at a time, and all at once."""
    results, labels = Results(tmp_path / "results"), RNG.choice(list("Rm"), (16, 500))
    values = RNG.permutation(16 * 500).reshape(16, 500)
    for noise in range(sampled):
        count = 500 if noise < 4 else 100
        each = values[noise, :count].tolist()
        scored = {name: {str(call): each for call in settings.CALLS} for name in scores.SCORES}
        scored[scores.CHOSEN][settings.MEAN] = each
        one = runs.cell(METHOD, "three objects", count, noise)
        results.add(one.key, labels="".join(labels[noise, :count]), scores=scored)
    table = report.ranking(report.Recordings("unet", results, Results(tmp_path / "none"), 4))
    rows = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()[-2:]]
    for row, size in zip(rows, (4, ranked)):
        first, some = [], []
        for caption, start in itertools.product(range(100), range(0, ranked, size)):
            group = range(start, start + size)
            first.append(labels[max(group, key=lambda noise: values[noise, caption]), caption] == "R")
            some.append(any(labels[noise, caption] == "R" for noise in group))
        assert row[3] == str(size)
        assert row[5] == f"{100 * np.mean(first):.1f} %"
        assert row[9] == f"{100 * np.mean(some):.1f} %"


def test_pictures_of_a_verdict_are_those_of_the_results(tmp_path):
    results = Results(tmp_path / "results")
    cells = [runs.cell(METHOD, "three objects", 4, noise) for noise in range(3)]
    for one, labels in zip(cells[:2], ("RmrR", "emmR")):
        results.add(one.key, labels=labels)
    wanted = cells[0].scenes()
    assert list(choose.with_verdict(results, cells, "rR")) == [
        (wanted[0], 0), (wanted[2], 2), (wanted[3], 3), (wanted[3], runs.STRIDE + 3)
    ]  # fmt: skip
    assert [seed for _, seed in choose.with_verdict(results, cells, "m")] == [1, runs.STRIDE + 1, runs.STRIDE + 2]


@pytest.mark.parametrize("model", settings.STUDIES)
def test_every_cell_is_sampled_once_and_every_table_has_its_place(model, monkeypatch):
    for draws in ("DRAWS", "FEWER_DRAWS"):
        monkeypatch.setattr(bootstrap, draws, 10)  # their intervals take the time
    options = argparse.Namespace(
        model=model, tune=False, captions=None, setting=None, images=None, noises=4, report=True,
        results=runs.PATH, document=choose.DOCUMENT,
    )  # fmt: skip
    cells = [one for one, _, _ in choose.wanted(options, settings.STUDIES[model])]
    assert len({one.key for one in cells}) == len(cells)
    assert {one.model for one in cells} == {model}
    names = [*choose.counted(options), *choose.counted(argparse.Namespace(**{**vars(options), "tune": True}))]
    text = choose.DOCUMENT.read_text()
    assert all(f"<!-- {name}: written by the command above -->" in text for name in names)


@pytest.mark.slow
def test_command_samples_once_and_writes_its_tables(comfyui_root, monkeypatch, capsys, tmp_path):
    document = tmp_path / "choosing.md"
    document.write_text(choose.DOCUMENT.read_text())
    options = ["--comfyui", comfyui_root, "--threads", "1", "--images", "2", "--noises", "2", "--captions",
               "three objects", "--results", tmp_path / "results", "--document", document]  # fmt: skip
    call = [sys.executable, choose.__file__, *options]
    printed = subprocess.run(call, capture_output=True, text=True, timeout=600, check=True).stdout
    assert "12 of 12" in printed
    monkeypatch.setattr(choose, "boot", lambda options: None)
    monkeypatch.setattr(choose, "SmallModel", lambda name, checkpoint: None)  # with it nothing can be sampled
    choose.main(list(map(str, options)))
    assert "12 of 12" not in capsys.readouterr().out
    assert document.read_text().count("| three objects | cfg 3 | 4 |") == 1
