"""The help pages in web/docs: each is about a node that there is, names its inputs, and has its pictures."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "web" / "docs"
PAGES = {path.stem: path for path in sorted(FOLDER.glob("*.md"))}
every_page = pytest.mark.parametrize("node_id", PAGES)


@every_page
def test_it_names_every_input_of_its_node(comfy, node_id):
    inputs = comfy.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    names = {name for kind in ("required", "optional") for name in inputs.get(kind, {})}
    named = set(re.findall(r"\w+", PAGES[node_id].read_text(encoding="utf-8")))
    assert names
    assert names <= named


def test_its_pictures_are_all_there_and_small():
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES.values())
    shown = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", texts))
    pictures = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*.png")}
    assert shown == set(pictures)
    assert all(path.stat().st_size < 300_000 for path in pictures.values())
