"""The pack in ComfyUI's front end, with a real browser: its workflow files, blueprints and help pages.

What the browser sees lies in output/front_end afterwards, by ComfyUI's version and kind of nodes, to be looked at.
"""

import base64
import functools
import io
import os
import shlex
import signal
import socket
import threading
from pathlib import Path

import pytest
import torch
from comfyui_version import __version__
from PIL import Image, ImageChops, ImageStat
from safetensors.torch import load_file

from devtools.environment import OLDEST, front_end_of
from devtools.front_end import FrontEnd, FrontEndError, NoBrowser
from devtools.inprocess import CPU_FLAGS
from devtools.server import PACK, Server
from devtools.twins import INPUTS, RANDOM, SHAPES, SMALL, TRANSFORMERS, WORKFLOWS, steps
from devtools.workflows import Prompt, load, substitute, to_api
from support.marks import with_mark

REPO = Path(__file__).resolve().parents[1]
SHAPES_MODEL = REPO / "demo" / "shapes.safetensors"
PICTURES = REPO / "output" / "front_end" / __version__
NODES_2 = "nodes 2.0"

CHECKPOINT = ("CheckpointLoaderSimple", "ckpt_name")
SHOWING = {"SaveImage", "PreviewImage", "EBCASweepGrid"}
VIDEO = {"CreateVideo", "SaveVideo"}
# Sent, not read.
OF_THE_FRONT_END = {("PreviewAny", "preview"), ("PreviewAny", "previewMode"), ("ImageCompare", "compare_view")}
FILES = {path.stem: path for path in sorted(WORKFLOWS.glob("*.json"))}
HELP = {path.stem: path for path in sorted((REPO / "web" / "docs").glob("*.md"))}
BLUEPRINTS = {path.stem: path for path in sorted((REPO / "subgraphs").glob("*.json"))}
# Older front ends are tried with less, which takes less time.
not_on_the_oldest = pytest.mark.skipif(__version__ == OLDEST, reason="ComfyUI's oldest front end")
# What runs: between them, they have the nodes that show a text or a picture, and a photo with its mask.
RUN = ("EBCA 01 Several things (SD 1.5)", "EBCA 06 Photo with mask (SD 1.5)", "EBCA 09 Attention maps (SDXL)")
# Below it, text can no longer be read on a screen of 1920 x 1080; classic nodes leave it out from 0.57 on.
READABLE = 0.6
OWN_TYPES = {"EBCA_EDIT", "EBCA_SCHEDULE", "EBCA_TOKEN_WEIGHTS", "EBCA_TRACE", "EBCA_SWEEP"}

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def server(comfyui_root, tmp_path_factory):
    """A ComfyUI with the front end that it asks for, and the shapes model under all names that the files load."""
    pickled = tmp_path_factory.mktemp("checkpoints") / "shapes.ckpt"
    torch.save({"state_dict": load_file(SHAPES_MODEL)}, pickled)
    models = {f"checkpoints/{name}": pickled if name.endswith(".ckpt") else SHAPES_MODEL for name in RANDOM[CHECKPOINT]}
    for name in TRANSFORMERS:  # their models are listed, not loaded
        listed = [model for node in load(FILES[name])["nodes"] for model in node["properties"].get("models", ())]
        models |= {f"{model['directory']}/{model['name']}": SHAPES_MODEL for model in listed}
    packs = {PACK: REPO, "shapes_family": REPO / "demo" / "shapes_family"}
    root = front_end_of(comfyui_root)
    flags = CPU_FLAGS + (f" --front-end-root {shlex.quote(str(root))}" if root else "")
    settings = {
        "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # text, however small
        "Comfy.Minimap.Visible": False,
    }
    with Server(comfyui_root, packs=packs, models=models, inputs=INPUTS, flags=flags, settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def object_info(server) -> dict:
    """What that ComfyUI says of its nodes."""
    return server.object_info()


@pytest.fixture(scope="module", params=[pytest.param("classic", marks=pytest.mark.nightly), NODES_2])
def look(request) -> str:
    """With which of its two kinds of nodes the front end draws."""
    return request.param


def browser_on(url: str) -> FrontEnd:
    """A browser, if there is one; else the test that asks is skipped or fails."""
    try:
        return FrontEnd(url)
    except NoBrowser as missing:
        if os.environ.get("EBCA_BROWSER") == "required":
            raise
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def front_end(server, look):
    """The front end in a browser, on an empty workflow."""
    server.post("/settings/Comfy.VueNodes.Enabled", look == NODES_2)
    server.post("/settings/Comfy.RightSidePanel.IsOpen", False)  # where help was opened
    server.post("/free", {"unload_models": True, "free_memory": True})  # what ran under the other look runs anew
    with browser_on(server.url) as front_end:
        front_end("open")
        yield front_end


@pytest.fixture
def photograph(front_end, look):
    """A function that keeps a picture of the window."""

    def photograph(name: str) -> None:
        folder = PICTURES / look.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        front_end("screenshot", str(folder / f"{name}.png"))

    return photograph


@pytest.fixture
def closed_afterwards(front_end):
    """The workflow of the test does not stay open, however the test ends."""
    yield
    front_end("close")


def content(graph: dict, look: str) -> dict:
    """What a workflow says, without what front ends keep for themselves."""
    unlike = {"size", "pos"} if look == NODES_2 else set()  # it makes nodes as large as it needs
    groups = [(group["title"], group["color"]) for group in graph["groups"]]
    said = {**graph, **nodes_and_links(graph, unlike), "groups": groups, "extra": {}}
    if graph.get("definitions"):
        subgraphs = [{**subgraph, **nodes_and_links(subgraph)} for subgraph in graph["definitions"]["subgraphs"]]
        said["definitions"] = {**graph["definitions"], "subgraphs": subgraphs}
    return said


def nodes_and_links(graph: dict, unlike: frozenset[str] | set[str] = frozenset()) -> dict:
    """The nodes of a graph or of a subgraph by their ids, without the fields `unlike`, and its links."""
    nodes = {}
    for node in graph["nodes"]:
        own = {"widgets_values_named"}  # newer front ends keep the values a second time, by their names
        if node["type"] == "PreviewAny" or not node.get("widgets_values"):  # the last text that it showed, or no values
            own.add("widgets_values")
        nodes[node["id"]] = {key: node[key] for key in node.keys() - unlike - own}
        # The label of an input that a node has grown is another in each front end.
        inputs = node.get("inputs", ())
        sockets = [{key: value for key, value in one.items() if key != "localized_name"} for one in inputs]
        nodes[node["id"]]["inputs"] = sockets
    # A link is known by its id, wherever it stands: newer front ends put those of grown inputs last.
    links = sorted(graph["links"], key=lambda link: link["id"] if isinstance(link, dict) else link[0])
    return {"nodes": nodes, "links": links}


def sent(prompt: Prompt) -> Prompt:
    """What of a prompt decides what runs. Nodes of a subgraph have the ids that they have within it."""

    def within(value):
        return [inner(value[0]), *value[1:]] if isinstance(value, list) else value

    def inner(node_id: str) -> str:
        return node_id.rpartition(":")[2]

    return {
        inner(node_id): {
            "class_type": node["class_type"],
            "inputs": {
                name: within(value)
                for name, value in node["inputs"].items()
                if (node["class_type"], name) not in OF_THE_FRONT_END
            },
        }
        for node_id, node in prompt.items()
    }


def overlapping(nodes: list[dict]) -> list[tuple[str, str]]:
    """The titles of nodes that lie on each other, in pairs."""
    pairs = ((a, b) for index, a in enumerate(nodes) for b in nodes[:index])
    return [(a["title"], b["title"]) for a, b in pairs if _meet(a["box"], b["box"])]


def _meet(a: list[float], b: list[float]) -> bool:
    return all(max(a[i], b[i]) < min(a[i] + a[i + 2], b[i] + b[i + 2]) - 1 for i in (0, 1))  # a pixel is no overlap


def check(canvas: dict) -> None:
    """Nothing is missing, red or hidden, and no wire runs under a node."""
    assert canvas["nodes"]
    assert [node["type"] for node in canvas["nodes"] if node["red"] or not node["known"]] == []
    assert canvas["complaints"] == []
    if __version__ != OLDEST:  # its Nodes 2.0 make everything a fifth larger, and pictures larger still
        assert overlapping(canvas["nodes"]) == []
        assert canvas["under"] == []


def smaller(name: str, canvas: dict) -> list[tuple[str, str, object]]:
    """What to set so that a file becomes its shapes twin, with few steps: [(node, widget, value)]."""
    prompt = {
        str(node["id"]): {"class_type": node["type"], "inputs": canvas["values"][str(node["id"])]}
        for node in canvas["nodes"]
    }
    twin = {entry: rule for entry, rule in SHAPES[name].items() if entry != CHECKPOINT}
    quick = steps(4) | {entry: rule for entry, rule in SMALL.items() if entry[0] == "EBCASweep"}
    changed = substitute(substitute(prompt, twin), quick)
    return [
        (node, widget, value)
        for node in prompt
        for widget, value in changed[node]["inputs"].items()
        if value != prompt[node]["inputs"][widget]
    ]


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the tests there")
def test_an_interrupted_command_ends_the_browser_and_keeps_nobody_waiting(request):
    # Of programs that a shell began in the background, SIGINT is ignored.
    request.addfinalizer(functools.partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, browser_on(f"http://127.0.0.1:{silent.getsockname()[1]}") as front_end:
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            front_end("open")  # the page never comes
        with pytest.raises(FrontEndError, match="close after the browser's driver had ended"):
            front_end("close")


@not_on_the_oldest
def test_every_file_has_a_card_in_the_template_browser(front_end, photograph):
    cards = front_end("cards", PACK)
    photograph("templates")
    front_end("escape")
    assert set(cards) == set(FILES)
    for name, card in cards.items():
        assert card["title"]
        shown = Image.open(io.BytesIO(base64.b64decode(card["picture"]))).convert("RGB")
        with Image.open(FILES[name].with_suffix(".jpg")) as thumbnail:
            assert shown.size == thumbnail.size
            assert max(ImageStat.Stat(ImageChops.difference(shown, thumbnail.convert("RGB"))).mean) < 2


@not_on_the_oldest
def test_template_search_finds_them_by_the_packs_name(front_end):
    assert set(front_end("searchTemplates", "ebca")) == set(FILES)
    front_end("escape")


@not_on_the_oldest
@pytest.mark.parametrize("words", ["concept", "missing object", "ebca"])
def test_node_search_finds_ebca_concepts(front_end, words):
    found = front_end("search", words)
    assert any("EBCA Concepts" in title for title in found[:8]), found


# The files that every push drops onto the canvas, with the same checks, are opened as templates at night.
@not_on_the_oldest
@pytest.mark.parametrize("name", with_mark(FILES, pytest.mark.nightly, RUN))
@pytest.mark.usefixtures("closed_afterwards")
def test_template_opens_readable_and_as_it_is(front_end, object_info, look, photograph, name):
    assert front_end("openTemplate", PACK, name) > READABLE
    canvas = front_end("canvas")
    photograph(f"opened {name}")
    check(canvas)
    assert canvas["paths"] >= len(load(FILES[name])["links"])
    assert content(canvas["graph"], look) == content(load(FILES[name]), look)
    assert sent(front_end("prompt")) == sent(to_api(load(FILES[name]), object_info))


@pytest.mark.parametrize("name", with_mark(FILES, pytest.mark.nightly, but=RUN))
@pytest.mark.usefixtures("closed_afterwards")
def test_dropped_file_is_saved_unchanged_runs_and_shows_its_pictures(
    front_end, server, object_info, photograph, look, name
):
    zoom = front_end("drop", str(FILES[name]))
    canvas = front_end("canvas")
    check(canvas)
    if __version__ != OLDEST:
        assert zoom > READABLE
        assert canvas["paths"] >= len(load(FILES[name])["links"])
    assert sent(front_end("prompt")) == sent(to_api(load(FILES[name]), object_info))
    saved = server.base / "user" / "default" / front_end("save")
    # The oldest keeps subgraphs in another form, and has fewer sockets on these nodes.
    is_other = "definitions" in canvas["graph"] or VIDEO & {node["type"] for node in canvas["nodes"]}
    if __version__ != OLDEST or not is_other:
        assert content(load(saved), look) == content(load(FILES[name]), look)
    saved.unlink()  # so that the next one gets that name
    if name in RUN:
        front_end("set", smaller(name, canvas))
        answer = front_end("run")
        assert answer.get("node_errors") == {}
        history = server.wait(answer["prompt_id"])
        check_shown(front_end, server, canvas, history, look)
        photograph(name)
        check(front_end("canvas"))


def check_shown(front_end, server, canvas: dict, history: dict, look: str) -> None:
    """The nodes show the pictures and the text that they made."""
    nodes = {str(node["id"]): node["type"] for node in canvas["nodes"]}
    assert {node for node, node_type in nodes.items() if node_type in SHOWING} <= set(history["outputs"])
    for node, output in history["outputs"].items():
        if "images" in output:
            widths = {Image.open(io.BytesIO(picture)).width for picture in server.images(history, node)}
            assert set(front_end("pictures", node)) == widths
    for node, node_type in nodes.items():
        if node_type == "ImageCompare" and look == NODES_2:  # classic nodes say that they cannot compare
            assert front_end("pictures", node) == [64, 64]
        if node_type == "EBCAConcepts":
            shown = "\n".join(front_end("texts", node))
            assert "a red circle 0.1 · a green square 0.1 · a yellow triangle 0.1" in shown


def test_own_sockets_have_colours_of_their_own(front_end, look):
    colours = front_end("colours", sorted(OWN_TYPES))
    seen = [colours[socket_type]["dot" if look == NODES_2 else "socket"] for socket_type in OWN_TYPES]
    assert len({*seen, ""}) == len(OWN_TYPES) + 1
    assert all(colour["wire"] == colour["socket"] == colour["dot"] for colour in colours.values())
    assert len(set(front_end("colours", ["MODEL"])["MODEL"].values())) == 1  # the palette's are as they were


@pytest.mark.parametrize("node_id", HELP)
def test_help_opens_with_its_pictures(front_end, photograph, node_id):
    shown = front_end("help", node_id)
    photograph(f"help_{node_id}")
    page = HELP[node_id].read_text(encoding="utf-8")
    assert shown["headings"] == [line.lstrip("# ") for line in page.splitlines() if line.startswith(("# ", "## "))]
    assert len(shown["pictures"]) == page.count("![")
    assert all(picture["width"] > 0 for picture in shown["pictures"])


@not_on_the_oldest
@pytest.mark.parametrize("name", BLUEPRINTS)
def test_blueprint_is_found_and_put_on_the_canvas(front_end, object_info, photograph, name):
    front_end("place", name)
    canvas = front_end("canvas")
    photograph(f"blueprint_{name}")
    check(canvas)
    prompt = sent(front_end("prompt"))
    assert prompt == sent(to_api(load(BLUEPRINTS[name]), object_info))
    assert prompt == sent(to_api(canvas["graph"], object_info))
