"""The files in workflows/: saved by the front end, and run by a server on the shapes model and on random weights."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from devtools import workflows
from devtools.twins import OFF, RANDOM, SHAPES, SMALL, WORKFLOWS, pictures
from support.genuine import write_checkpoint

FILES = {path.stem: path for path in sorted(WORKFLOWS.glob("*.json"))}
QUICK = {("KSampler", "steps"): 8}
every_file = pytest.mark.parametrize("name", FILES)


def load(name: str) -> dict:
    return workflows.load(FILES[name])


def nodes_of(name: str, node_type: str) -> list[dict]:
    return [node for node in load(name)["nodes"] if node["type"] == node_type]


@pytest.fixture(scope="module")
def random_checkpoints(server):
    """random_sdxl.ckpt beside the server's random_sd15.ckpt."""
    write_checkpoint(server.base / "models" / "checkpoints" / "random_sdxl.ckpt", "sdxl")


@pytest.fixture
def run(server, object_info):
    """A function that runs a file with substitutions: {title: picture [h w 3], 0..255}."""

    def run(name: str, *tables: workflows.Substitutions) -> dict[str, np.ndarray]:
        prompt = workflows.to_api(load(name), object_info)
        for table in tables:
            prompt = workflows.substitute(prompt, table)
        history = server.run(prompt, timeout=1800)
        files = {title: server.images(history, node_id)[0] for title, node_id in pictures(prompt).items()}
        return {title: np.asarray(Image.open(io.BytesIO(file))) for title, file in files.items()}

    return run


def all_differ(images: dict[str, np.ndarray]) -> bool:
    values = list(images.values())
    return all(np.any(a != b) for i, a in enumerate(values) for b in values[:i])


def all_equal(images: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(image, images["Without EBCA"]) for image in images.values())


def is_a_picture(image: np.ndarray) -> bool:
    """Not one plain colour, which is what a latent of NaN decodes to."""
    return image.ndim == 3 and image.std() > 1


def test_every_file_has_a_twin():
    assert set(FILES) == set(SHAPES)


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
def test_one_loader_and_one_seed_feed_all_pictures(name):
    (loader,) = nodes_of(name, "CheckpointLoaderSimple")
    assert loader["widgets_values"][0] in RANDOM["CheckpointLoaderSimple", "ckpt_name"]
    (seed,) = nodes_of(name, "PrimitiveInt")
    assert seed["widgets_values"][1] == "fixed"
    assert len(seed["outputs"][0]["links"]) == len(nodes_of(name, "KSampler")) == len(nodes_of(name, "SaveImage")) >= 2


@every_file
def test_its_note_links_to_the_model_it_loads(name):
    (loader,) = nodes_of(name, "CheckpointLoaderSimple")
    (model,) = loader["properties"]["models"]
    assert model["name"] == loader["widgets_values"][0] == model["url"].rsplit("/")[-1]
    assert f"[{model['name']}]({model['url']})" in json.dumps(nodes_of(name, "MarkdownNote"))


@pytest.mark.server
@every_file
def test_shapes_twin_gives_a_picture_with_and_one_without(run, name):
    images = run(name, SHAPES[name], QUICK)
    assert all(map(is_a_picture, images.values()))
    assert all_differ(images)


@pytest.mark.server
@every_file
def test_shapes_twin_with_strengths_of_zero_gives_one_picture(run, name):
    assert all_equal(run(name, SHAPES[name], QUICK, OFF))


@pytest.mark.server
@pytest.mark.slow
@every_file
def test_it_runs_as_shipped_on_random_weights(run, random_checkpoints, name, request):
    """In its own size and steps only where --full-size asks for that: it takes long on a CPU."""
    images = run(name, RANDOM) if request.config.getoption("--full-size") else run(name, RANDOM, SMALL)
    assert all(map(is_a_picture, images.values()))
    assert all_differ(images)
