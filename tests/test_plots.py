"""The pictures: what was measured is where the axes say, heat is where the values are high, and words are found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from support import toy
from support.host import node
from support.log_messages import messages, refused

CAPTION = "a lion with a crown and a lion"


@pytest.fixture(scope="module")
def plots(pack):
    import importlib

    return {
        name: importlib.import_module(f"{pack.__name__}.plots.{name}")
        for name in ("canvas", "energy_plot", "line_chart", "word_map_sheet", "schedule_curve", "sweep_grid")
    }


@pytest.fixture(scope="module")
def trace_types(pack):
    return pack.comfyui_binding.trace.trace_record


RED = (213, 0, 0)


def drawn(plots, curves, places=11, size=(500, 300)):
    sheet = Image.new("RGB", size, "white")
    plots["line_chart"].Panel("title", "step", [str(i) for i in range(places)], curves).draw(
        ImageDraw.Draw(sheet), 0, 0, *size
    )
    return np.asarray(sheet)


def is_red(picture):
    return (picture == RED).all(axis=-1)


def test_curve_passes_through_its_values(plots):
    """Between the highest and the lowest point of a curve the others lie in proportion."""
    values = [0.0, 10.0, 4.0, 4.0, 4.0, 7.5, 7.5, 7.5, 1.0, 1.0, 1.0]
    red = is_red(drawn(plots, [plots["line_chart"].Curve("a", values, RED)]))
    columns = np.flatnonzero(red.any(axis=0))
    left, right = columns.min(), columns.max()
    rows = [np.flatnonzero(red[:, round(left + (right - left) * place / 10)]) for place in (0, 1, 3, 6, 9)]
    bottom, top, middle, high, low = rows[0].max(), rows[1].min(), *(row.mean() for row in rows[2:])
    heights = [(bottom - y) / (bottom - top) for y in (middle, high, low)]
    assert heights == pytest.approx([0.4, 0.75, 0.1], abs=0.02)


def test_missing_values_are_gaps(plots):
    values = [1.0, 2.0, math.nan, math.nan, 2.0, 1.0, 2.0, math.nan, 3.0, math.nan, 1.0]
    red = is_red(drawn(plots, [plots["line_chart"].Curve("a", values, RED)])).any(axis=0)
    columns = np.flatnonzero(red)
    at = [round(columns.min() + (columns.max() - columns.min()) * place / 10) for place in (2.5, 8, 9)]
    assert [bool(red[column]) for column in at] == [False, True, False]  # a value without neighbours is a dot


@pytest.mark.parametrize("values", [[math.nan] * 11, [5.0] * 11, [1e-9 * i for i in range(11)], [1e9] * 10 + [2e9]])
def test_any_values_can_be_drawn(plots, values):
    assert is_red(drawn(plots, [plots["line_chart"].Curve("a", values, RED)])).any() != math.isnan(values[0])


@pytest.mark.parametrize("places", [5, 20, 70, 300])
def test_dashes_show_however_near_the_points_are(plots, places):
    """A straight line, solid and dashed: about half of it is there."""
    values = [float(i) for i in range(places)]
    solid, dashed = (
        is_red(drawn(plots, [plots["line_chart"].Curve("a", values, RED, dashed)], places)).any(axis=0).sum()
        for dashed in (False, True)
    )
    assert dashed / solid == pytest.approx(0.5, abs=0.12)


def test_axis_from_zero_shows_small_changes_small(plots):
    panel, values = plots["line_chart"].Panel, [4.6, 4.5, 4.7] + [4.6] * 8
    heights = []
    for from_zero in (False, True):
        sheet = Image.new("RGB", (500, 300), "white")
        curve = plots["line_chart"].Curve("a", values, RED)
        panel("t", "step", [str(i) for i in range(11)], [curve], from_zero).draw(ImageDraw.Draw(sheet), 0, 0, 500, 300)
        rows = np.flatnonzero(is_red(np.asarray(sheet)).any(axis=1))
        heights.append(rows.max() - rows.min())
    assert heights[0] > 150
    assert heights[1] < 20


@pytest.mark.parametrize(
    ("tick", "step", "text"),
    [(0.0, 0.5, "0.0"), (-0.3002, 0.0002, "-0.3002"), (1234.0, 2.0, "1,234"), (2.5e-7, 5e-8, "2.5e-07")],
)
def test_ticks_are_written_to_the_places_they_need(plots, tick, step, text):
    assert plots["line_chart"]._written(tick, step) == text


def record(trace_types, steps=5, layers=("d0.0", "m0.0", "u0.0"), roles=("positive", "negative"), offset=0.0, seed=0):
    values = torch.randn(4, steps, len(layers), len(roles), generator=torch.Generator().manual_seed(seed)) + offset
    settings = {"updates": [], "edits": []}
    return trace_types.TraceRecord(values, layers, roles, tuple(range(steps, 0, -1)), settings, True)


def test_two_traces_of_a_kind_get_columns_for_their_difference(plots, trace_types):
    plot = plots["energy_plot"].energy_plot
    one, other = record(trace_types), record(trace_types, seed=1)
    alone, both = plot([one]), plot([one, other])
    assert both.shape[2] == 2 * alone.shape[2]
    longer = record(trace_types, steps=7)
    assert plot([one, longer]).shape[2] == alone.shape[2]


def test_layers_of_other_models_stand_at_their_own_names(plots, trace_types):
    small, large = record(trace_types), record(trace_types, layers=("d0.0", "d1.0", "m0.0", "m0.1", "u0.0"))
    _, by_layer = plots["energy_plot"]._panels(0, [small, large], dict.fromkeys(small.roles, RED))
    assert by_layer.places == ["d0.0", "m0.0", "u0.0", "d1.0", "m0.1"]
    ours, theirs = by_layer.curves[0].values, by_layer.curves[2].values
    assert ours[:3] == pytest.approx(small.values[0, ..., 0].mean(dim=0).tolist())
    assert all(math.isnan(value) for value in ours[3:])
    assert theirs[1] == pytest.approx(float(large.values[0, :, 2, 0].mean()))


def test_layers_that_ran_now_and_then_do_not_bend_the_mean(plots, trace_types):
    one = record(trace_types)
    one.values[:, ::2, 1] = math.nan
    by_step, _ = plots["energy_plot"]._panels(0, [one], dict.fromkeys(one.roles, RED))
    assert by_step.curves[0].values == pytest.approx(one.values[0, :, [0, 2], 0].mean(dim=1).tolist())


def test_difference_of_a_trace_and_itself_is_flat(plots, trace_types):
    one = record(trace_types)
    panels = plots["energy_plot"]._panels(0, [one, one], dict.fromkeys(one.roles, RED))
    assert all(value == 0 for panel in panels[2:] for curve in panel.curves for value in curve.values)


def test_panels_show_means_over_the_other_axis(plots, trace_types):
    one = record(trace_types)
    one.values[:, 3] = math.nan  # a step that did not run
    by_step, by_layer = plots["energy_plot"]._panels(1, [one], dict.fromkeys(one.roles, RED))
    negative = one.values[1, ..., 1].numpy()
    assert by_step.curves[1].values == pytest.approx(negative.mean(axis=1).tolist(), nan_ok=True)
    assert by_layer.curves[1].values == pytest.approx(np.nanmean(negative, axis=0).tolist())


def test_legend_says_what_was_asked_for(plots, comfy):
    curve = node(comfy, "EBCASchedule").execute(shape="cosine", end_factor=0.2)[0]
    update = dict(gamma_attn=0.03, schedule=curve, end_percent=0.5, blocks="d0,u0", apply_to="positive")
    model = node(comfy, "EBCAContextUpdate").execute(model=toy.model(), **update)[0]
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2), direction="remove", alpha=0.4)[0]
    model = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]
    model, trace = node(comfy, "EBCATrace").execute(model=model)
    from support.sampling import sample

    sample(model, toy.conditioning(1), steps=1)
    line = plots["energy_plot"].legend(trace.record)
    for part in ("gamma_attn 0.03", "cosine 1 to 0.2", "from 0 to 0.5", "layers d0.0 u0.0", "positive only"):
        assert part in line
    assert "edit0: remove alpha 0.4 from 0.3 to 1" in line


def test_constant_schedule_is_called_by_its_one_factor(plots, comfy):
    curve = node(comfy, "EBCASchedule").execute(shape="constant", start_factor=0.5, end_factor=0.1)[0]
    assert str(curve) == "constant 0.5"


# --- words -----------------------------------------------------------------------------------------------------------


def test_heat_is_where_the_values_are_high(plots):
    image = torch.full((64, 96, 3), 0.5)
    values = torch.zeros(8, 12)
    values[6, 2] = 1.0
    sheet = plots["word_map_sheet"].word_map_sheet(image, {"lion": values})[0]
    canvas = plots["word_map_sheet"]
    tile = sheet[canvas.GAP : canvas.GAP + 213, canvas.GAP : canvas.GAP + canvas.TILE]
    y, x = divmod(int(tile.sum(dim=-1).argmax()), tile.shape[1])
    assert (y / 213 * 8, x / 320 * 12) == pytest.approx((6.5, 2.5), abs=0.6)


def test_sheet_has_a_tile_for_each_word(plots):
    maps = {f"word {i}": torch.rand(4, 4) for i in range(6)}
    sheet = plots["word_map_sheet"].word_map_sheet(torch.rand(64, 64, 3), maps)
    assert sheet.shape == (1, 2 * (320 + 48) + 8, 4 * (320 + 8) + 8, 3)


def test_flat_map_can_be_drawn(plots):
    assert plots["word_map_sheet"].word_map_sheet(torch.rand(64, 64, 3), {"a": torch.ones(4, 4)}).isfinite().all()


def test_mean_map_weighs_grids_by_their_layers(plots):
    coarse, fine = torch.full((3, 2, 2), 1.0), torch.full((3, 4, 4), 4.0)
    mean = plots["word_map_sheet"].mean_map([coarse, fine], [2, 1], [0, 2])
    assert mean.shape == (4, 4)
    assert torch.allclose(mean, torch.tensor(2.0))


@pytest.fixture(scope="module")
def traced_caption(comfy):
    """A trace of a run on CAPTION with a toy model and CLIP of SD 1's family, and its image."""
    clip = toy.clip()
    positive = node(comfy, "CLIPTextEncode").execute(clip=clip, text=CAPTION)[0]
    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(), attention_maps=True)
    latent = node(comfy, "KSampler").execute(
        model=model, positive=positive, negative=toy.conditioning(99), latent_image=toy.latent(2, 8, 8), steps=2,
        sampler_name="euler", scheduler="normal",
    )[0]  # fmt: skip
    image = node(comfy, "VAEDecode").execute(samples=latent, vae=toy.vae())[0]
    return dict(trace=trace, image=image, clip=clip, text=CAPTION)


def test_words_are_at_their_tokens(comfy, pack):
    """Every word of the caption is one token of CLIP's vocabulary; the start token comes first."""
    found, prompt = pack.comfyui_binding.trace.word_positions.positions_of_words(toy.clip(), CAPTION, "")
    assert prompt.length == 77
    assert found == {"a": [1, 4, 7], "lion": [2, 8], "with": [3], "crown": [5], "and": [6]}
    found, _ = pack.comfyui_binding.trace.word_positions.positions_of_words(toy.clip(), CAPTION, "crown, a lion\nand")
    assert found == {"crown": [5], "a lion": [1, 2, 7, 8], "and": [6]}


def test_text_that_is_not_the_prompt_is_said(comfy, traced_caption, caplog):
    maps = node(comfy, "EBCAAttentionMaps")
    maps.execute(**traced_caption, words="lion")
    assert not messages(caplog)
    maps.execute(**{**traced_caption, "text": "a tiger with a crown and a tiger"}, words="tiger")
    assert any("is not the encoded text of this node" in message for message in messages(caplog))


def test_picture_of_another_run_is_refused_where_the_latent_is_wired(comfy, traced_caption):
    maps = node(comfy, "EBCAAttentionMaps")
    refused(lambda: maps.execute(**traced_caption, words="lion", latent=toy.latent(2, 8, 8)), "another")


def test_every_image_gets_a_sheet(comfy, traced_caption):
    (sheets,) = node(comfy, "EBCAAttentionMaps").execute(**traced_caption, words="lion, crown")
    assert sheets.shape == (2, 320 + 48 + 8, 2 * (320 + 8) + 8, 3)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (dict(words="tiger"), ("tiger", "lion")),
        (dict(text=""), ("text has no words",)),
        (dict(text="a " * 100 + CAPTION), ("154 tokens", "has 77")),
        (dict(image=torch.zeros(1, 64, 64, 3)), ("image has 1 image(s)", "made 2")),
    ],
)
def test_what_does_not_fit_the_traced_run_is_refused(comfy, traced_caption, changes, parts):
    maps = node(comfy, "EBCAAttentionMaps")
    refused(lambda: maps.execute(**{**traced_caption, "words": "", **changes}), *parts)


def test_trace_without_maps_is_refused(comfy, traced_caption):
    from support.sampling import sample

    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(), attention_maps=False)
    sample(model, toy.conditioning(1), steps=1)
    maps = node(comfy, "EBCAAttentionMaps")
    refused(lambda: maps.execute(**{**traced_caption, "trace": trace}, words=""), "attention_maps", "run again")


@pytest.mark.parametrize("area", [{}, dict(area=(4, 4, 0, 0), strength=1.0)], ids=["combined", "with an area"])
def test_several_positive_prompts_are_refused(comfy, pack, traced_caption, tmp_path, area):
    from support.sampling import sample

    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(), attention_maps=True)
    positive = toy.conditioning(1) + toy.conditioning(2, **area)
    sample(model, positive, steps=1, latent=toy.latent(2, 8, 8))
    maps = node(comfy, "EBCAAttentionMaps")
    refused(lambda: maps.execute(**{**traced_caption, "trace": trace}, words=""), "2 positive prompts", "Combine")
    files = pack.comfyui_binding.trace.trace_file
    files.save(tmp_path / "x.safetensors", trace.record, {})
    loaded = type(trace)(True, files.load(tmp_path / "x.safetensors"), is_from_file=True)
    refused(lambda: maps.execute(**{**traced_caption, "trace": loaded}, words=""), "2 positive prompts", "Combine")
