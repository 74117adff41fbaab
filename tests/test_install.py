"""The registry's archive, installed as ComfyUI-Manager does it: unpacked into custom_nodes, and ComfyUI restarted."""

import shutil
import socket
from pathlib import Path
from zipfile import ZipFile

import pytest

from devtools import workflows
from devtools.archive import build
from devtools.server import PACK, Server
from devtools.twins import INPUTS, SHAPES, WORKFLOWS, steps

REPO = Path(__file__).resolve().parents[1]
TWIN = "EBCA 03 Add and remove (SD 1.5)"

pytestmark = [pytest.mark.server, pytest.mark.slow]


def files_in(folder: Path, *apart_from: str) -> set[str]:
    """What lies in a folder, but for code that Python has compiled."""
    paths = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    return {path.as_posix() for path in paths if path.parts[0] not in apart_from}


def our_nodes(server: Server) -> set[str]:
    return {node for node in server.object_info() if node.startswith("EBCA")}


def test_archive_runs_and_leaves_nothing_when_it_is_removed(comfyui_root, pack, tmp_path):
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    archive = build(tmp_path)
    packs = {"shapes_family": REPO / "demo" / "shapes_family"}
    models = {"checkpoints/shapes.safetensors": REPO / "demo" / "shapes.safetensors"}
    comfyui = files_in(comfyui_root)
    with Server(comfyui_root, packs=packs, models=models, inputs=INPUTS) as server:
        assert our_nodes(server) == set()
        before = files_in(server.base, "output", "temp")

        installed = server.base / "custom_nodes" / PACK
        with ZipFile(archive) as packed:
            packed.extractall(installed)
        unpacked = files_in(installed)
        assert not [line for line in (installed / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
        server.restart()
        assert our_nodes(server) == {cls.GET_SCHEMA().node_id for cls in pack.nodes.NODES}
        prompt = workflows.to_api(workflows.load(WORKFLOWS / f"{TWIN}.json"), server.object_info())
        for table in (SHAPES[TWIN], steps(4)):
            prompt = workflows.substitute(prompt, table)
        pictures = server.images(server.run(prompt))
        assert len(pictures) == len(set(pictures)) == 2  # with EBCA and without it
        assert server.log_text().count("Energy-Based Cross Attention") == 1
        assert files_in(installed) == unpacked

        shutil.rmtree(installed)
        server.restart()
        assert our_nodes(server) == set()
        assert files_in(server.base, "output", "temp") == before
        base, port = server.base, int(server.url.rsplit(":", 1)[1])
    assert files_in(comfyui_root) == comfyui
    # Nor does the server of the tests leave anything.
    assert not base.exists()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
