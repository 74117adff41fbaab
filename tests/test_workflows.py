"""The files in workflows/: saved by the front end, and run by a server on the shapes model and on random weights."""

import json
import re
import urllib.parse
import urllib.request

import numpy as np
import pytest
import tomllib
import torch
from comfy.sd import load_checkpoint_guess_config
from PIL import Image

import things.scenes
import things.world
from devtools import workflows
from devtools.environment import OLDEST
from devtools.server import PACK
from devtools.twins import INPUTS, OFF, RANDOM, SHAPES, SMALL, THINGS, TRANSFORMERS, VARIANTS, WORKFLOWS, steps
from ebca_core import count_model_calls, repaint_levels
from shapes.drawing import draw
from shapes.scorer import read, verdict
from shapes.world import Picture, Thing
from support.checkpoints import write_checkpoint
from support.marks import with_mark
from support.workflow_runs import ADDED, CELLS, unsampled
from worlds import MODELS

FILES = {path.stem: path for path in sorted(WORKFLOWS.glob("*.json"))}
QUICK = steps(8)
# Gammas far above useful ones.
SEEN = {("EBCAContextUpdate", "gamma_attn"): 0.2, ("EBCAContextUpdate", "gamma_norm"): 0.3}
SAMPLERS = {"KSampler", "SamplerCustom", "SamplerCustomAdvanced"}
LOADERS = {"CheckpointLoaderSimple", "UNETLoader", "CLIPLoader", "VAELoader"}


def file(number: str) -> str:
    """The name of the file that begins with "EBCA" and this number."""
    (name,) = (name for name in FILES if name.startswith(f"EBCA {number} "))
    return name


ADD_AND_REMOVE, STYLE, PHOTO_EDIT, PHOTO_WITH_MASK = map(file, ("03", "04", "05", "06"))
INPAINTING, OUTPAINTING, MAPS, UPDATE, SWEEP = map(file, ("07", "08", "09", "10", "11"))
PAPER = "several concepts, as in the paper"
# One file for each of the checkpoints that the files load.
ONE_OF_EACH_KIND = (file("01"), file("02"), INPAINTING)
# What files show besides their samplers' pictures.
CHARTS = {"Energies", "Words", "Sweep", "Ranking"}
every_file = pytest.mark.parametrize("name", FILES)
INVERTING = (PHOTO_EDIT, PHOTO_WITH_MASK)
INVERTING_FLOW = file("16")
VIDEOS = (file("13"), file("14"))

# What the shapes twins show where EBCA is to be seen: {file or variant: (without EBCA or the photo, with EBCA)}
PHOTO = "a red square on a white background"
EDITED = {
    file("01"): (
        "a red circle, a yellow triangle and a yellow triangle", "a red circle, a green square and a yellow triangle"
    ),
    file("02"): (
        "a yellow star, a yellow star, a purple square and a blue circle",
        "a yellow star, a purple square and a blue circle",
    ),
    file("12"): (
        "a red circle, a yellow triangle and a yellow triangle", "a red circle, a green square and a yellow triangle"
    ),
    ADD_AND_REMOVE: ("a red square", "a blue circle"),
    "a thing and a style": (
        "a red circle on a white background", "a red circle and a yellow star on a black background"
    ),
    STYLE: ("a blue square", "a yellow square"),
    "a style": ("a blue square", "a yellow square"),
    PHOTO_EDIT: (PHOTO, "a blue circle on a white background"),
    "horse to zebra": (PHOTO, "a green cross on a white background"),
    "any animal to goat": (PHOTO, "a red circle on a white background"),
    PHOTO_WITH_MASK: (PHOTO, "a blue circle on a white background"),
}  # fmt: skip

# What the shapes twins of files that paint show, without EBCA and with it, under the seed of the files, 42. Under the
# seeds 40 to 45 inpainting gave it by either way in 6 of 6 pictures, with and without; outpainting without EBCA in 4 of
# 6 and with EBCA in 5 of 6 (the others have a second red square).
PAINTED = {
    INPAINTING: "a blue circle on a white background",
    OUTPAINTING: "a red square and a blue circle on a white background",  # the square is the photo's own
}
files_that_paint = pytest.mark.parametrize("name", PAINTED)

# Where the mask of the twin of PHOTO_WITH_MASK is zero.
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
    """The nodes of a type, those within blueprints too."""
    return [node for node in every_node(load(name)) if node["type"] == node_type]


def every_node(workflow: dict) -> list[dict]:
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    return [*workflow["nodes"], *(node for subgraph in subgraphs for node in subgraph["nodes"])]


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
    """A function that runs a file with substitutions or rewired: {title: picture [h w 3], 0..255}."""

    def run(name: str, *tables: workflows.Substitutions, **options) -> dict[str, np.ndarray]:
        pictures = workflow_runs(name, *tables, **options)
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
def run_twin(run):
    """A function that runs the shapes twin of a file or of a variant, with further substitutions."""

    def run_twin(name: str, *tables: workflows.Substitutions, **options) -> dict[str, np.ndarray]:
        of, changes = VARIANTS.get(name, (name, {}))
        return run(of, SHAPES[of], changes, *tables, **options)

    return run_twin


@pytest.fixture
def shapes_sweep(run_sweep):
    """The grid and the cells of the sweep's shapes twin."""
    return run_sweep(SHAPES[SWEEP])


def all_differ(images: dict[str, np.ndarray]) -> bool:
    values = list(images.values())
    return not any(np.array_equal(a, b) for i, a in enumerate(values) for b in values[:i])


def is_a_picture(image: np.ndarray) -> bool:
    """Not one plain colour, which is what a latent of NaN decodes to."""
    return image.ndim == 3 and image.std() > 1


def distance(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far each pixel [h w] is from the other picture's, in its worst channel, of 255."""
    return np.abs(image.astype(int) - other.astype(int)).max(-1)


def test_every_file_has_a_twin_or_is_for_a_transformer():
    assert sorted(FILES) == sorted([*SHAPES, *TRANSFORMERS])


def test_every_file_in_which_ebca_is_to_be_seen_says_what_its_twin_shows():
    seen = {name for name in SHAPES if nodes_of(name, "EBCAEditContext") or nodes_of(name, "EBCAConcepts")}
    assert set(EDITED) - set(VARIANTS) == seen
    assert set(VARIANTS) - set(EDITED) == {PAPER, "one strength throughout"}


def test_every_file_that_paints_says_what_its_twin_shows():
    assert set(PAINTED) == {name for name in SHAPES if nodes_of(name, "LoadImage") and not nodes_of(name, "EBCAInvert")}


def test_the_twins_photo_is_a_drawing():
    drawing = draw(Picture((Thing("red", "square", x=0.5, y=0.5, radius=0.22),), "white"))
    assert np.array_equal(photo(), (drawing * 255).round())


def test_the_photo_of_the_things_twins_is_a_cat_in_the_style_that_no_model_has_seen():
    cat = things.world.Thing("cat", None, None, x=0.5, y=0.5, size=0.45)
    drawing = things.scenes.draw(things.world.Picture((cat,), things.world.HELD_OUT, "lime"))
    with Image.open(INPUTS["cat.png"]) as picture:
        assert distance(np.asarray(picture.convert("RGB")), (drawing * 255).round()).max() <= 1


def test_things_twins_are_sampled_as_the_things_model_is_measured():
    world = MODELS["things"].world
    sampler = {"cfg": world.cfg, "sampler_name": world.sampler["name"], "scheduler": world.sampler["scheduler"],
               "steps": world.sampler["steps"]}
    for name, table in THINGS.items():
        if name in INVERTING:
            assert table["CFGGuider", "cfg"] == world.cfg
        else:
            assert {setting: table["KSampler", setting] for setting in sampler} == sampler


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
    # Newer front ends number all links of a file together, and give those of a subgraph that are not unique other ids.
    subgraphs = file.get("definitions", {}).get("subgraphs", [])
    numbers = [link for link, *_ in file["links"]] + [link["id"] for graph in subgraphs for link in graph["links"]]
    assert len(numbers) == len(set(numbers))
    assert file["last_link_id"] == max(numbers)
    assert all(subgraph["state"]["lastLinkId"] == max(numbers) for subgraph in subgraphs)


@every_file
def test_its_reroutes_are_whole(name):
    extra = load(name)["extra"]
    reroutes = {reroute["id"]: reroute for reroute in extra.get("reroutes", [])}
    passed = {number: set() for number in reroutes}
    for extension in extra.get("linkExtensions", []):
        number = extension["parentId"]
        while number is not None:
            passed[number].add(extension["id"])
            number = reroutes[number].get("parentId")
    assert passed == {number: set(reroute["linkIds"]) for number, reroute in reroutes.items()}


@every_file
def test_notes_say_what_it_shows_and_what_to_try(name):
    notes = {note["title"]: note["widgets_values"][0] for note in nodes_of(name, "MarkdownNote")}
    notes.pop("What this does", None)  # within a blueprint
    assert set(notes) == {"What this shows", "What to try"}
    assert all(len(text) > 200 for text in notes.values())
    assert not any("`" in text for text in notes.values())  # Nodes 2.0 draws it blue on brown
    shows = re.split(r"\*\*Models?\b", notes["What this shows"])[0]
    assert len(shows.replace("#", "").split()) <= 60
    assert "**Not yet tried on these weights.**" in notes["What this shows"]


@pytest.mark.parametrize("path", [*FILES.values(), *sorted((WORKFLOWS.parent / "subgraphs").glob("*.json"))], ids=str)
def test_every_node_says_which_pack_it_comes_from(path):
    workflow = workflows.load(path)
    subgraphs = {subgraph["id"] for subgraph in workflow.get("definitions", {}).get("subgraphs", [])}
    version = tomllib.loads((WORKFLOWS.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    for node in every_node(workflow):
        if node["type"] not in {"MarkdownNote", *subgraphs}:
            pack = (PACK, version) if node["type"].startswith("EBCA") else ("comfy-core", OLDEST)
            assert (node["properties"].get("cnr_id"), node["properties"].get("ver")) == pack


@pytest.mark.parametrize("name", [name for name in FILES if name not in (*INVERTING, INVERTING_FLOW)])
def test_one_loader_of_each_kind_and_one_seed_feed_all_pictures(name):
    loaders = [node for node in load(name)["nodes"] if node["type"] in LOADERS]
    assert len({loader["type"] for loader in loaders}) == len(loaders) == (3 if name in TRANSFORMERS else 1)
    if name in SHAPES:
        assert loaders[0]["widgets_values"][0] in RANDOM["CheckpointLoaderSimple", "ckpt_name"]
    (seed,) = nodes_of(name, "PrimitiveInt")
    assert "fixed" in seed["widgets_values"]
    samplers = [node for node in load(name)["nodes"] if node["type"] in SAMPLERS]
    assert wired_to(name, seed) == sorted(node["id"] for node in samplers)
    assert len(samplers) == (1 if name == SWEEP else 2)
    settings = [[value for value in node["widgets_values"] if value != "fixed"] for node in samplers]
    assert all(values == settings[0] for values in settings)


@pytest.mark.parametrize("name", [name for name in FILES if name not in (SWEEP, *VIDEOS)])
def test_it_compares_what_it_shows_and_saves_one_picture(name):
    sources = {(target, socket): (origin, output) for _, origin, output, target, socket, _ in load(name)["links"]}
    (compare,), (saved,) = nodes_of(name, "ImageCompare"), nodes_of(name, "SaveImage")
    assert saved["title"] == "With EBCA"
    assert sources[compare["id"], 1] == sources[saved["id"], 0]
    before = sources[compare["id"], 0]
    if name in (*INVERTING, INVERTING_FLOW):
        nodes = {node["id"]: node for node in load(name)["nodes"]}
        assert "photo" in (nodes[before[0]].get("title", "").lower(), nodes[before[0]]["outputs"][before[1]]["name"])
    else:
        (shown,) = nodes_of(name, "PreviewImage")
        assert (shown["title"], sources[shown["id"], 0]) == ("Without EBCA", before)


@pytest.mark.parametrize("name", VIDEOS)
def test_it_saves_a_video_with_and_one_without(name):
    sources = {(target, socket): origin for _, origin, _, target, socket, _ in load(name)["links"]}
    nodes = {node["id"]: node for node in load(name)["nodes"]}
    shown = {}
    for saved in nodes_of(name, "SaveVideo"):
        sampler = sources[sources[sources[saved["id"], 0], 0], 0]  # through Create Video and VAE Decode
        shown[saved["title"]] = nodes[sampler]["title"]
    assert shown == {"With EBCA": "Sample with EBCA", "Without EBCA": "Sample without EBCA"}


@pytest.mark.server
@pytest.mark.parametrize("name", [*INVERTING, INVERTING_FLOW])
def test_samplers_go_back_the_way_of_the_inversion(name, object_info):
    prompt = workflows.to_api(load(name), object_info)

    def only(node_type: str) -> tuple[str, dict]:
        (node_id,) = workflows.node_ids(prompt, node_type)
        return node_id, prompt[node_id]["inputs"]

    (plain, _), (inverted, inversion), (_, compose) = map(
        only, ("ModelSamplingSD3" if name == INVERTING_FLOW else "CheckpointLoaderSimple", "EBCAInvert", "EBCACompose")
    )
    (_, guider), (_, sampler), (_, kind) = map(only, ("CFGGuider", "SamplerCustomAdvanced", "KSamplerSelect"))
    assert inversion["model"] == compose["model"] == [plain, 0]
    assert guider["positive"] == guider["negative"] == inversion["caption"]
    assert kind["sampler_name"] == "euler"
    assert sampler["sigmas"] == inversion["sigmas"]
    assert sampler["noise"] == [inverted, 1]
    latent = sampler["latent_image"]
    if name in INVERTING:
        masked, mask = only("SetLatentNoiseMask")
        assert latent == [masked, 0]
        latent = mask["samples"]
    assert latent == inversion["latent"]


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


def test_its_notes_count_the_calls_of_the_model():
    (scheduler,), (sampler,) = nodes_of(OUTPAINTING, "BasicScheduler"), nodes_of(OUTPAINTING, "EBCARePaintSampler")
    assert (scheduler["widgets_values"][1], sampler["widgets_values"]) == (50, [10, 3, 0])
    _, tries = (note["widgets_values"][0] for note in nodes_of(OUTPAINTING, "MarkdownNote"))
    assert f"jump_length 10 and jump_n_sample 3, as here, {calls(50, 10, 3)};" in tries
    assert f"jump_n_sample 2: {calls(50, 10, 2)}; 1 (plain inpainting): {calls(50, 10, 1)};" in tries
    assert f"5: {calls(50, 10, 5)}; 10 (the authors of RePaint): {calls(50, 10, 10)}." in tries
    assert f"With 25 steps and jump_length 5: {calls(25, 5, 3)}." in tries


def calls(*settings: int) -> int:
    """How often RePaint calls the model: once for each step towards the picture."""
    return count_model_calls(repaint_levels(*settings))


@pytest.mark.parametrize("name", [name for name in FILES if nodes_of(name, "LoadImage")])
def test_its_photo_is_the_one_that_every_comfyui_has(name):
    (loader,) = nodes_of(name, "LoadImage")
    assert loader["widgets_values"][0] == "example.png"


@every_file
def test_its_note_links_to_the_models_it_loads(name):
    loaders = [node for node in every_node(load(name)) if node["type"] in LOADERS]
    assert loaders
    for loader in loaders:
        (model,) = loader["properties"]["models"]
        assert model["name"] == loader["widgets_values"][0] == model["url"].rsplit("/")[-1]
        assert f"[{model['name']}]({model['url']})" in json.dumps(nodes_of(name, "MarkdownNote"))
        if name in TRANSFORMERS:  # that of a checkpoint is in the sentence
            assert f"- {model['directory']}: [{model['name']}]" in json.dumps(nodes_of(name, "MarkdownNote"))


@pytest.mark.server
def test_template_browser_has_every_file_with_its_thumbnail(server):
    assert sorted(server.get("/workflow_templates")[PACK]) == sorted(FILES)
    for name, path in FILES.items():
        address = f"{server.url}/api/workflow_templates/{PACK}/{urllib.parse.quote(name)}.jpg"
        with urllib.request.urlopen(address) as answer:
            assert answer.read() == path.with_suffix(".jpg").read_bytes()


@pytest.mark.server
@pytest.mark.parametrize("name", with_mark(SHAPES, pytest.mark.interface, [ADD_AND_REMOVE]))
def test_shapes_twin_gives_a_picture_with_and_one_without(run, name):
    images = run(name, SHAPES[name], SEEN if name == UPDATE else {})
    assert all(map(is_a_picture, images.values()))
    if name in INVERTING:
        images["Without EBCA"] = photo()
    assert {"Without EBCA", "With EBCA"} <= set(images) or name == SWEEP
    assert all_differ(images)


@pytest.mark.server
@pytest.mark.nightly  # tests/test_off.py has shown it without a server
@pytest.mark.parametrize("name", [name for name in SHAPES if name != SWEEP])
def test_shapes_twin_with_strengths_of_zero_gives_one_picture(run_twin, name):
    images = run_twin(name, QUICK, OFF)
    if name in INVERTING:  # they show the photo, not the image without EBCA
        images["Without EBCA"] = run_twin(name, QUICK, change=without_compose)["With EBCA"]
    assert np.array_equal(images["With EBCA"], images["Without EBCA"])


def without_compose(prompt: workflows.Prompt) -> None:
    """Connect what follows EBCA Compose to what precedes it."""
    (compose,) = workflows.node_ids(prompt, "EBCACompose")
    for node in prompt.values():
        if node["inputs"].get("model") == [compose, 0]:
            node["inputs"]["model"] = prompt[compose]["inputs"]["model"]


@pytest.mark.server
@pytest.mark.nightly
def test_sweep_over_zeros_gives_the_picture_without_ebca_every_time(run_twin, run_sweep):
    _, cells = run_sweep(SHAPES[SWEEP], QUICK, OFF)
    plain = run_twin(PAPER, QUICK)["Without EBCA"]
    assert len(cells) == 4
    assert all(np.array_equal(cell, plain) for cell in cells)


@pytest.mark.server
def test_sweep_shows_each_pair_in_its_place(run_twin, shapes_sweep):
    grid, cells = shapes_sweep
    found = [places(cell.repeat(3, axis=0).repeat(3, axis=1), grid) for cell in cells]
    assert len(found) == 16
    assert all(len(corners) == 1 for corners in found)
    assert [corner for (corner,) in found] == sorted(corner for (corner,) in found)

    assert np.array_equal(cells[0], run_twin(PAPER)["Without EBCA"])  # the same prompt
    # In the grid, x goes to the right and y down: this is the second of the fourth row.
    gammas = {("EBCAContextUpdate", "gamma_attn"): 0.1, ("EBCAContextUpdate", "gamma_norm"): 0.8}
    assert np.array_equal(cells[13], run_twin(PAPER, gammas)["With EBCA"])


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
def test_traces_leave_the_pictures_as_they_are(run_twin):
    images = run_twin(MAPS)
    gammas = {entry: gamma for entry, gamma in SHAPES[MAPS].items() if entry[0] == "EBCAContextUpdate"}
    untraced = run_twin(PAPER, gammas)  # the same prompt
    assert all(np.array_equal(images[title], untraced[title]) for title in ("Without EBCA", "With EBCA"))


@pytest.mark.server
def test_words_are_hot_where_their_objects_are(run_twin):
    images = run_twin(MAPS)
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
def test_edit_that_fades_leaves_the_shape_to_the_prompt(run_twin):
    (spoilt,), (kept,) = (
        read(run_twin(name)["With EBCA"] / 255).found for name in ("one strength throughout", STYLE)
    )
    assert kept.overlap > 0.92 > 0.85 > spoilt.overlap  # with a drawn square


@pytest.mark.server
@pytest.mark.parametrize("name", EDITED)
def test_shapes_twin_shows_the_edit(run_twin, name):
    before, after = EDITED[name]
    images = run_twin(name)
    assert verdict(images.get("Without EBCA", photo()) / 255, before).complete
    assert verdict(images["With EBCA"] / 255, after).complete


@pytest.mark.server
def test_masked_edit_moves_little_outside_and_nothing_under_a_noise_mask(run_twin):
    moved, unmasked = (
        distance(run_twin(PHOTO_WITH_MASK, change=change)["With EBCA"], photo())
        for change in (lambda prompt: None, without_noise_mask)
    )
    assert all(each[~OUTSIDE].max() > 200 for each in (moved, unmasked))
    assert 0 < unmasked[OUTSIDE].max() <= 12  # of 255; measured: 8, and 3 without EBCA
    assert not moved[OUTSIDE].any()
    assert not distance(run_twin(PHOTO_WITH_MASK, QUICK, OFF)["With EBCA"], photo())[OUTSIDE].any()


def without_noise_mask(prompt: workflows.Prompt) -> None:
    """What the note says: Disable Noise and the latent output of EBCA Invert to the sampler."""
    (inversion,) = workflows.node_ids(prompt, "EBCAInvert")
    (sampler,) = workflows.node_ids(prompt, "SamplerCustomAdvanced")
    prompt["silence"] = {"class_type": "DisableNoise", "inputs": {}, "_meta": {"title": "Disable Noise"}}
    prompt[sampler]["inputs"] |= {"noise": ["silence", 0], "latent_image": [inversion, 0]}


@pytest.mark.server
@files_that_paint
def test_shapes_twin_paints_what_is_asked_and_keeps_the_rest(run_twin, name):
    kept = KEPT_OF_OUTPAINT if name == OUTPAINTING else KEPT
    start = run_twin(name, change=unsampled)["Without EBCA"]
    # Saving cuts off what decoding leaves behind the point, so that some values of the photo come back one lower.
    assert distance(start[:, 16:80] if name == OUTPAINTING else start, photo()).max() <= 1
    images = run_twin(name)
    assert all_differ(images)
    for image in images.values():
        judged = verdict(image / 255, PAINTED[name])
        assert judged.complete
        (circle,) = (found for found in judged.reading.found if found.shape == "circle")
        assert not kept[int(circle.y * 64), int(circle.x * 64)]
        assert np.array_equal(image[kept], start[kept])


@pytest.mark.server
def test_inpainting_keeps_the_photos_own_values_outside_the_mask(run_twin):
    assert all(np.array_equal(image[KEPT], photo()[KEPT]) for image in run_twin(INPAINTING).values())


@pytest.mark.server
def test_repaint_paints_inside_the_photo_as_its_note_says(run_twin):
    words = {("CLIPTextEncode", "text"): lambda text: PAINTED[INPAINTING] if text else ""}
    for image in run_twin(OUTPAINTING, words, change=painted_inside).values():
        judged = verdict(image / 255, PAINTED[INPAINTING])
        assert judged.complete
        (circle,) = judged.reading.found
        assert not KEPT[int(circle.y * 64), int(circle.x * 64)]
        assert np.array_equal(image[KEPT], photo()[KEPT])


def painted_inside(prompt: workflows.Prompt) -> None:
    """What the note says: Photo to VAE Encode, and the rectangle of the inpainting file to Set Latent Noise Mask."""
    (photo,), (encoder,), (masking,) = (
        workflows.node_ids(prompt, node) for node in ("ImageScale", "VAEEncode", "SetLatentNoiseMask")
    )
    prompt[encoder]["inputs"]["pixels"] = [photo, 0]
    prompt[masking]["inputs"]["mask"] = ["rectangle", 0]
    sizes = {"black": (0.0, 64, 64), "white": (1.0, 36, 40)}
    for name, (value, width, height) in sizes.items():
        inputs = {"value": value, "width": width, "height": height}
        prompt[name] = {"class_type": "SolidMask", "inputs": inputs, "_meta": {"title": name}}
    inputs = {"destination": ["black", 0], "source": ["white", 0], "x": 14, "y": 14, "operation": "add"}
    prompt["rectangle"] = {"class_type": "MaskComposite", "inputs": inputs, "_meta": {"title": "rectangle"}}


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
@pytest.mark.parametrize("name", with_mark(SHAPES, pytest.mark.nightly, but=ONE_OF_EACH_KIND))
def test_it_runs_as_shipped_on_random_weights(run, random_checkpoints, name, request):
    """In its own size and steps only where --full-size asks for that: it takes long on a CPU."""
    images = run(name, RANDOM) if request.config.getoption("--full-size") else run(name, RANDOM, SMALL)
    assert all(map(is_a_picture, images.values()))
    assert all_differ(images)
