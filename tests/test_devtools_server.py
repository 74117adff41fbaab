"""The server of the tests and the demo: it starts, and says what went wrong. What it leaves: tests/test_install.py."""

from pathlib import Path

import pytest

from devtools.server import PACK, Server, ServerError, link_or_copy

pytestmark = pytest.mark.server

EMPTY = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 2, "color": 255}}


def preview(node_id: str) -> dict:
    return {"class_type": "PreviewImage", "inputs": {"images": [node_id, 0]}}


def test_it_has_our_nodes(server, object_info):
    assert "EBCAContextUpdate" in object_info
    assert f"custom_nodes/{PACK}" in server.log_text()


def test_a_run_gives_its_pictures(server):
    history = server.run({"1": EMPTY, "2": preview("1"), "10": preview("1")})
    assert len(server.images(history)) == 4
    assert len(server.images(history, "10")) == 2


def test_a_refused_prompt_is_explained(server):
    wrong = {**EMPTY, "inputs": {**EMPTY["inputs"], "width": -64}}
    with pytest.raises(ServerError, match=r"node 1 \(EmptyImage\): Value -64 smaller than min of 1"):
        server.run({"1": wrong, "2": preview("1")})


def test_an_unknown_node_is_explained(server):
    with pytest.raises(ServerError, match="Nope"):
        server.run({"1": {"class_type": "Nope", "inputs": {}}})


def test_a_failed_node_is_explained(server):
    crop = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    (server.base / "input" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ServerError, match=r"Node 1 \(LoadImage\) failed: PIL.UnidentifiedImageError"):
        server.run({"1": crop, "2": preview("1")})


def test_a_server_that_does_not_start_shows_its_log(comfyui_root):
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-flag"), Server(
        comfyui_root, flags="--no-such-flag"
    ):
        pass


def test_a_pack_is_copied_where_links_are_not_allowed(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("not allowed")

    source = tmp_path / "pack"
    (source / ".host").mkdir(parents=True)
    (source / "nodes").mkdir()
    (source / "nodes" / "a.py").write_text("")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_or_copy(source, tmp_path / "copy")
    assert sorted(p.name for p in (tmp_path / "copy").rglob("*")) == ["a.py", "nodes"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        link_or_copy(tmp_path / "nowhere", tmp_path / "target")
