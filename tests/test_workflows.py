"""The files in workflows/: saved by the front end, and run by a server on the shapes model and on random weights."""

import json
import urllib.request

import numpy as np
import pytest
import torch
from comfy.sd import load_checkpoint_guess_config
from PIL import Image

from devtools import workflows
from devtools.server import PACK
from devtools.thumbnails import CARDS
from devtools.twins import INPUTS, OFF, RANDOM, SHAPES, SMALL, WORKFLOWS, steps
from ebca_core import count_model_calls, repaint_levels
from shapes.drawing import draw
from shapes.scorer import read, verdict
from shapes.world import Picture, Thing
from support.checkpoints import write_checkpoint
from support.workflow_runs import ADDED, CELLS

FILES = {path.stem: path for path in sorted(WORKFLOWS.glob("*.json"))}
QUICK = steps(8)
SAMPLERS = {"KSampler", "KSamplerAdvanced", "SamplerCustomAdvanced"}
SWEEP = "sweep_sd15"
# One file for each of the checkpoints that the files load.
ONE_OF_EACH_KIND = ("multi_concept_sd15", "multi_concept_sdxl", "inpaint_model_sd15")
# What files save besides their samplers' pictures.
CHARTS = {"Energies", "Words", "Schedule"}
every_file = pytest.mark.parametrize("name", FILES)
files_with_an_inversion = pytest.mark.parametrize("name", [name for name in FILES if name.startswith("real_image")])

# What the shapes twins of files with edits show: {name of the file: (without EBCA, with EBCA)}
PHOTO = "a red square on a white background"
EDITED = {
    "compose_sd15": ("a red circle on a white background", "a red circle and a yellow star on a black background"),
    "each_concept_sd15": (
        "a red circle, a yellow triangle and a yellow triangle", "a red circle, a green square and a yellow triangle"
    ),
    "stylise_sd15": ("a blue square", "a yellow square"),
    "schedule_sd15": ("a blue square", "a yellow square"),
    "add_and_remove_sd15": ("a red square", "a blue circle"),
    "real_image_cat_to_dog_sd15": (PHOTO, "a blue circle on a white background"),
    "real_image_horse_to_zebra_sd15": (PHOTO, "a green cross on a white background"),
    "real_image_to_goat_sd15": (PHOTO, "a red circle on a white background"),
    "real_image_with_mask_sd15": (PHOTO, "a blue circle on a white background"),
}

# What the shapes twins of files that paint show, without EBCA and with it, under the seed of the files, 42. Under the
# seeds 40 to 45 inpainting gave it by either way in 6 of 6 pictures, with and without; outpainting without EBCA in 4 of
# 6 and with EBCA in 5 of 6 (the others have a second red square).
PAINTED = {
    "inpaint_model_sd15": "a blue circle on a white background",
    "repaint_sd15": "a blue circle on a white background",
    "outpaint_sd15": "a red square and a blue circle on a white background",  # the square is the photo's own
}
files_that_paint = pytest.mark.parametrize("name", PAINTED)
files_with_repaint = pytest.mark.parametrize("name", ["repaint_sd15", "outpaint_sd15"])

# The pictures of real_image_with_mask_sd15, and where the mask of its twin is zero.
NOISE_MASKED = "With EBCA and noise mask"
OUTSIDE = np.ones((64, 64), bool)
OUTSIDE[8:56, 12:52] = False

# Where the masks of the twins that paint are zero. The edge of what is outpainted is soft, three pixels into the photo.
KEPT = np.ones((64, 64), bool)
KEPT[14:54, 14:50] = False
KEPT_OF_OUTPAINT = np.zeros((64, 96), bool)
KEPT_OF_OUTPAINT[:, 16 + 3 : 80 - 2] = True


def load(name: str) -> dict:
    return workflows.load(FILES[name])


def nodes_of(name: str, node_type: str) -> list[dict]:
    return [node for node in load(name)["nodes"] if node["type"] == node_type]


def wired_to(name: str, node: dict) -> list[int]:
    """The ids of the nodes that a node feeds, once for each wire."""
    return sorted(target for _, source, _, target, *_ in load(name)["links"] if source == node["id"])


def photo() -> np.ndarray:
    return np.asarray(Image.open(INPUTS["example.png"]).convert("RGB"))


@pytest.fixture(scope="module")
def random_checkpoints(server):
    """random_sdxl.ckpt and random_sd15_inpaint.ckpt beside the server's random_sd15.ckpt."""
    for layout in ("sdxl", "sd15_inpaint"):
        write_checkpoint(server.base / "models" / "checkpoints" / f"random_{layout}.ckpt", layout)


@pytest.fixture
def run(workflow_runs):
    """A function that runs a file with substitutions, or without sampling: {title: picture [h w 3], 0..255}."""

    def run(name: str, *tables: workflows.Substitutions, sampled: bool = True) -> dict[str, np.ndarray]:
        pictures = workflow_runs(name, *tables, sampled=sampled)
        own = {title: batch for title, batch in pictures.items() if title not in ADDED}
        return {title: np.asarray(picture) for title, (picture,) in own.items()}

    return run


@pytest.fixture
def run_sweep(workflow_runs):
    """A function that runs the sweep with substitutions: its grid and its cells."""

    def run_sweep(*tables: workflows.Substitutions) -> tuple[np.ndarray, list[np.ndarray]]:
        pictures = dict(workflow_runs(SWEEP, *tables))
        cells = [np.asarray(cell) for cell in pictures.pop(CELLS)]
        ((grid,),) = pictures.values()
        return np.asarray(grid), cells

    return run_sweep


@pytest.fixture
def shapes_sweep(run_sweep):
    """The grid and the cells of the sweep's shapes twin."""
    return run_sweep(SHAPES[SWEEP])


def all_differ(images: dict[str, np.ndarray]) -> bool:
    values = list(images.values())
    return not any(np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])


def all_equal(images: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(image, images["Without EBCA"]) for image in images.values())


def is_a_picture(image: np.ndarray) -> bool:
    """Not one plain colour, which is what a latent of NaN decodes to."""
    return image.ndim == 3 and image.std() > 1


def distance(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far each pixel [h w] is from the other picture's, in its worst channel, of 255."""
    return np.abs(image.astype(int) - other.astype(int)).max(-1)


def test_every_file_has_a_twin():
    assert set(FILES) == set(SHAPES)


def test_every_file_with_edits_says_what_its_twin_shows():
    assert set(EDITED) == {name for name in FILES if nodes_of(name, "EBCAEditContext")}


def test_every_file_that_paints_says_what_its_twin_shows():
    assert set(PAINTED) == {name for name in FILES if nodes_of(name, "LoadImage") and not nodes_of(name, "EBCAInvert")}


def test_the_twins_photo_is_a_drawing():
    drawing = draw(Picture((Thing("red", "square", x=0.5, y=0.5, radius=0.22),), "white"))
    assert np.array_equal(photo(), (drawing * 255).round())


@every_file
def test_it_is_saved_as_the_front_end_saves(name):
    file = load(name)
    assert file["version"] == 0.4
    assert {"id", "revision", "last_node_id", "last_link_id", "groups", "config", "extra"} <= set(file)
    assert all({"order", "mode", "flags", "properties", "size", "pos"} <= set(node) for node in file["nodes"])


@every_file
def test_its_links_are_whole(name):
    file = load(name)
    nodes = {node["id"]: node for node in file["nodes"]}
    for link, source, output, target, socket, _ in file["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][socket]["link"] == link
    assert len(file["links"]) == len({link for link, *_ in file["links"]})


@every_file
def test_notes_say_what_it_shows_and_what_to_try(name):
    notes = {note["title"]: note["widgets_values"][0] for note in nodes_of(name, "MarkdownNote")}
    assert set(notes) == {"What this shows", "What to try"}
    assert all(len(text) > 200 for text in notes.values())


@every_file
def test_one_loader_and_one_start_feed_all_pictures(name):
    (loader,) = nodes_of(name, "CheckpointLoaderSimple")
    assert loader["widgets_values"][0] in RANDOM["CheckpointLoaderSimple", "ckpt_name"]
    (start,) = nodes_of(name, "PrimitiveInt") + nodes_of(name, "EBCAInvert")
    assert "fixed" in start["widgets_values"]
    for noise in nodes_of(name, "RandomNoise"):  # from the seed to the samplers
        assert wired_to(name, start) == [noise["id"]]
        start = noise
    started = wired_to(name, start)
    samplers = [node["id"] for node in load(name)["nodes"] if node["type"] in SAMPLERS]
    sampled = [node for node in nodes_of(name, "SaveImage") if node["title"] not in CHARTS]
    muted = [node["id"] for node in nodes_of(name, "EBCASaveInversion") if node["mode"] == 2]
    assert started == sorted(samplers + muted)
    if name == SWEEP:
        assert (len(samplers), len(sampled), len(nodes_of(name, "EBCASweepGrid"))) == (1, 0, 1)
    else:
        assert len(samplers) == len(sampled) >= 2


@pytest.mark.server
@files_with_an_inversion
def test_samplers_go_back_the_way_of_the_inversion(name, object_info):
    prompt = workflows.to_api(load(name), object_info)
    inputs = {node_id: node["inputs"] for node_id, node in prompt.items()}
    (loader,), (inversion,) = (workflows.node_ids(prompt, t) for t in ("CheckpointLoaderSimple", "EBCAInvert"))
    assert inputs[inversion]["model"] == [loader, 0]
    guided = [values for values in inputs.values() if "positive" in values]
    assert len(guided) == 2
    assert all(v["positive"] == v["negative"] == inputs[inversion]["caption"] for v in guided)
    assert {values["sampler_name"] for values in inputs.values() if "sampler_name" in values} == {"euler"}
    assert len({values["scheduler"] for values in inputs.values() if "scheduler" in values}) == 1
    assert len({values["steps"] for values in inputs.values() if "steps" in values}) == 1
    for values in inputs.values():
        if "add_noise" in values:  # KSampler (Advanced)
            assert (values["add_noise"], values["start_at_step"], values["end_at_step"]) == ("disable", 0, 10000)
            assert (values["return_with_leftover_noise"], values["latent_image"]) == ("disable", [inversion, 0])
        if "guider" in values:  # SamplerCustomAdvanced
            assert values["sigmas"] == inputs[inversion]["sigmas"]
            (silence,) = workflows.node_ids(prompt, "DisableNoise")
            (masked,) = workflows.node_ids(prompt, "SetLatentNoiseMask")
            starts = [([silence, 0], [inversion, 0]), ([inversion, 1], [masked, 0])]
            assert (values["noise"], values["latent_image"]) in starts
            assert inputs[masked]["samples"] == inputs[inversion]["latent"]


@pytest.mark.server
@files_that_paint
def test_both_pictures_paint_the_same_region_and_it_alone_moves_the_prompt(name, object_info):
    prompt = workflows.to_api(load(name), object_info)
    (update,) = workflows.node_ids(prompt, "EBCAContextUpdate")
    nodes = ("SetLatentNoiseMask", "InpaintModelConditioning")
    (masking,) = (node_id for node in nodes for node_id in workflows.node_ids(prompt, node))
    update, mask = prompt[update]["inputs"], prompt[masking]["inputs"]["mask"]
    assert (update.get("mask"), update["use_noise_mask"]) in [(mask, False), (None, True)]
    assert prompt[masking]["inputs"].get("noise_mask", True) is True
    samplers = [node["inputs"] for node in prompt.values() if node["class_type"] in SAMPLERS]
    assert len({tuple(inputs["latent_image"]) for inputs in samplers}) == 1
    assert samplers[0]["latent_image"][0] == masking


@files_with_repaint
def test_its_notes_count_the_calls_of_the_model(name):
    (scheduler,), (sampler,) = nodes_of(name, "BasicScheduler"), nodes_of(name, "EBCARePaintSampler")
    assert (scheduler["widgets_values"][1], sampler["widgets_values"]) == (50, [10, 3, 0])
    shows, tries = (note["widgets_values"][0] for note in nodes_of(name, "MarkdownNote"))
    assert f"10 and 10, call the model {calls(50, 10, 10)} times at 50 steps" in shows
    assert f"10 and 3, as here, it is {calls(50, 10, 3)} times" in shows
    assert f"jump_n_sample 2 ({calls(50, 10, 2)} calls of the model) or 1 ({calls(50, 10, 1)}: plain" in tries
    assert f"25 steps with jump_length 5 ({calls(25, 5, 3)} calls)" in tries
    assert f"jump_n_sample 5 ({calls(50, 10, 5)} calls) or 10 ({calls(50, 10, 10)})" in tries


def calls(*settings: int) -> int:
    """How often RePaint calls the model: once for each step towards the picture."""
    return count_model_calls(repaint_levels(*settings))


@pytest.mark.parametrize("name", [name for name in FILES if nodes_of(name, "LoadImage")])
def test_its_photo_is_the_one_that_every_comfyui_has(name):
    (loader,) = nodes_of(name, "LoadImage")
    assert loader["widgets_values"][0] == "example.png"


@every_file
def test_its_note_links_to_the_model_it_loads(name):
    (loader,) = nodes_of(name, "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert model["name"] == loader["widgets_values"][0] == model["url"].rsplit("/")[-1]
    assert f"[{model['name']}]({model['url']})" in json.dumps(nodes_of(name, "MarkdownNote"))


@pytest.mark.server
def test_template_browser_has_every_file_with_its_thumbnail(server):
    assert sorted(server.get("/workflow_templates")[PACK]) == sorted(FILES)
    for name, path in FILES.items():
        with urllib.request.urlopen(f"{server.url}/api/workflow_templates/{PACK}/{name}.jpg") as answer:
            assert answer.read() == path.with_suffix(".jpg").read_bytes()


@pytest.mark.server
@every_file
def test_shapes_twin_gives_a_picture_with_and_one_without(run, name):
    images = run(name, SHAPES[name], CARDS[name].changes)  # the run of its thumbnail
    assert all(map(is_a_picture, images.values()))
    assert all_differ(images)


@pytest.mark.server
@pytest.mark.nightly  # tests/test_off.py has shown it without a server
@pytest.mark.parametrize("name", [name for name in FILES if name != SWEEP])
def test_shapes_twin_with_strengths_of_zero_gives_one_picture(run, name):
    images = run(name, SHAPES[name], QUICK, OFF)
    for title in CHARTS & set(images):
        del images[title]
    images.pop(NOISE_MASKED, None)  # outside the mask it is the photo, to which the others do not quite come back
    assert len(images) >= 2
    assert all_equal(images)


@pytest.mark.server
@pytest.mark.nightly
def test_sweep_over_zeros_gives_the_picture_without_ebca_every_time(run, run_sweep):
    _, cells = run_sweep(SHAPES[SWEEP], QUICK, OFF)
    plain = run("multi_concept_sd15", SHAPES["multi_concept_sd15"], QUICK)["Without EBCA"]
    assert len(cells) == 4
    assert all(np.array_equal(cell, plain) for cell in cells)


@pytest.mark.server
def test_sweep_shows_each_pair_in_its_place(run, shapes_sweep):
    grid, cells = shapes_sweep
    found = [places(cell.repeat(3, axis=0).repeat(3, axis=1), grid) for cell in cells]
    assert len(found) == 16
    assert all(len(corners) == 1 for corners in found)
    assert [corner for (corner,) in found] == sorted(corner for (corner,) in found)

    multi_concept = SHAPES["multi_concept_sd15"]  # the same prompt
    assert np.array_equal(cells[0], run("multi_concept_sd15", multi_concept)["Without EBCA"])
    # In the grid, x goes to the right and y down: this is the second of the fourth row.
    gammas = {("EBCAContextUpdate", "gamma_attn"): 0.1, ("EBCAContextUpdate", "gamma_norm"): 0.8}
    assert np.array_equal(cells[13], run("multi_concept_sd15", multi_concept, gammas)["With EBCA"])


@pytest.mark.server
def test_sweep_has_strengths_that_change_what_is_seen(shapes_sweep):
    _, cells = shapes_sweep
    assert verdict(cells[0] / 255, "a purple square and a yellow star").right
    assert verdict(cells[8] / 255, "a purple square").right  # gamma_norm 0.3 alone: the star is lost,
    assert verdict(cells[10] / 255, "a purple square and a yellow star").right  # and gamma_attn 0.2 brings it back


def places(picture: np.ndarray, sheet: np.ndarray) -> list[tuple[int, int]]:
    """The (row, column) of each place in a sheet where a picture stands, but for the rounding of the two files."""
    height, width = (1 + whole - part for whole, part in zip(sheet.shape[:2], picture.shape[:2]))
    rows, columns = np.indices((height, width)).reshape(2, -1)
    samples = [(row, column) for row in range(0, picture.shape[0], 8) for column in range(0, picture.shape[1], 8)]
    for row, column in sorted(samples, key=lambda at: picture[at].sum()):  # the darkest leave the fewest places
        fits = distance(sheet[rows + row, columns + column], picture[row, column]) <= 1
        rows, columns = rows[fits], columns[fits]
    return list(zip(rows.tolist(), columns.tolist()))


@pytest.mark.server
def test_traces_leave_the_pictures_as_they_are(run):
    images = run("trace_sd15", SHAPES["trace_sd15"])
    gammas = {entry: gamma for entry, gamma in SHAPES["trace_sd15"].items() if entry[0] == "EBCAContextUpdate"}
    untraced = run("multi_concept_sd15", SHAPES["multi_concept_sd15"], gammas)  # the same prompt
    assert all(np.array_equal(images[title], untraced[title]) for title in ("Without EBCA", "With EBCA"))


@pytest.mark.server
def test_words_are_hot_where_their_objects_are(run):
    images = run("trace_sd15", SHAPES["trace_sd15"])
    purple, yellow = (
        next(thing for thing in read(images["With EBCA"] / 255).found if thing.colour == colour)
        for colour in ("purple", "yellow")
    )
    for thing, tile in ((purple, 0), (yellow, 2)):  # of purple, square, yellow, star
        x, y = hottest(images["Words"], tile, tiles=4)
        assert max(abs(x - thing.x), abs(y - thing.y)) < thing.radius


def hottest(sheet: np.ndarray, tile: int, tiles: int) -> tuple[float, float]:
    """The middle of the yellowest percent of a tile that is square but for its caption, from 0 to 1."""
    side = sheet.shape[1] // tiles
    red, green, blue = np.moveaxis(sheet[:side, tile * side : (tile + 1) * side].astype(float), -1, 0)
    yellow = red + green - blue
    assert yellow.std() > 10
    rows, columns = np.nonzero(yellow >= np.quantile(yellow, 0.99))
    return columns.mean() / side, rows.mean() / side


@pytest.mark.server
def test_edit_that_fades_leaves_the_shape_to_the_prompt(run):
    images = run("schedule_sd15", SHAPES["schedule_sd15"])
    (spoilt,), (kept,) = (read(images[title] / 255).found for title in ("With EBCA", "With EBCA and schedule"))
    assert kept.overlap > 0.92 > 0.85 > spoilt.overlap  # with a drawn square


@pytest.mark.server
@pytest.mark.parametrize("name", EDITED)
def test_shapes_twin_shows_the_edit(run, name):
    before, after = EDITED[name]
    images = {title: image for title, image in run(name, SHAPES[name]).items() if title not in CHARTS}
    assert verdict(images.pop("Without EBCA") / 255, before).complete
    assert images
    assert all(verdict(image / 255, after).complete for image in images.values())


@pytest.mark.server
def test_masked_edit_moves_little_outside_and_nothing_under_a_noise_mask(run):
    name = "real_image_with_mask_sd15"
    moved = {title: distance(image, photo()) for title, image in run(name, SHAPES[name]).items()}
    assert all(moved[title][~OUTSIDE].max() > 200 for title in ("With EBCA", NOISE_MASKED))
    assert 0 < moved["With EBCA"][OUTSIDE].max() <= 12  # of 255; measured: 8, and 3 without EBCA
    assert not moved[NOISE_MASKED][OUTSIDE].any()
    assert not distance(run(name, SHAPES[name], QUICK, OFF)[NOISE_MASKED], photo())[OUTSIDE].any()


@pytest.mark.server
@files_that_paint
def test_shapes_twin_paints_what_is_asked_and_keeps_the_rest(run, name):
    kept = KEPT_OF_OUTPAINT if name == "outpaint_sd15" else KEPT
    start = run(name, SHAPES[name], sampled=False)["Without EBCA"]
    # Saving cuts off what decoding leaves behind the point, so that some values of the photo come back one lower.
    assert distance(start[:, 16:80] if name == "outpaint_sd15" else start, photo()).max() <= 1
    images = run(name, SHAPES[name])
    assert all_differ(images)
    for image in images.values():
        judged = verdict(image / 255, PAINTED[name])
        assert judged.complete
        (circle,) = (found for found in judged.reading.found if found.shape == "circle")
        assert not kept[int(circle.y * 64), int(circle.x * 64)]
        assert np.array_equal(image[kept], start[kept])


@pytest.mark.server
@pytest.mark.parametrize("name", ["inpaint_model_sd15", "repaint_sd15"])
def test_shapes_twin_keeps_the_photos_own_values_outside_the_mask(run, name):
    assert all(np.array_equal(image[KEPT], photo()[KEPT]) for image in run(name, SHAPES[name]).values())


@pytest.mark.slow
def test_random_inpainting_checkpoint_is_one_for_comfyui(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "random_sd15_inpaint.ckpt", "sd15_inpaint")
    model = load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0].model
    assert type(model.model_config).__name__ == "SD15"
    assert model.model_config.unet_config["in_channels"] == model.diffusion_model.in_channels == 9
    assert model.model_config.inpaint_model()
    noise, hole = torch.randn(1, 4, 16, 16), torch.zeros(1, 1, 16, 16)
    extra = model.concat_cond(noise=noise, concat_latent_image=noise, concat_mask=hole, device="cpu")
    assert extra.shape == (1, 5, 16, 16)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ONE_OF_EACH_KIND else pytest.mark.nightly) for name in FILES]
)
def test_it_runs_as_shipped_on_random_weights(run, random_checkpoints, name, request):
    """In its own size and steps only where --full-size asks for that: it takes long on a CPU."""
    images = run(name, RANDOM) if request.config.getoption("--full-size") else run(name, RANDOM, SMALL)
    assert all(map(is_a_picture, images.values()))
    assert all_differ(images)
