"""The help pages in web/docs: each is about a node that there is, names its inputs, and has its pictures."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "web" / "docs"
PAGES = {path.stem: path for path in sorted(FOLDER.glob("*.md"))}
#: The pictures that the things model has no words for.
OF_SHAPES = ("effects/compose.png", "effects/repaint.png", "looking/schedule.png")
every_page = pytest.mark.parametrize("node_id", PAGES)


@every_page
def test_it_names_every_input_of_its_node(comfy, node_id):
    inputs = comfy.NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()
    names = {name for kind in ("required", "optional") for name in inputs.get(kind, {})}
    named = set(re.findall(r"\w+", PAGES[node_id].read_text(encoding="utf-8")))
    assert names
    assert names <= named


@every_page
def test_it_has_a_picture_and_says_what_is_seen(node_id):
    pictures = shown(PAGES[node_id])
    assert pictures
    for text, file, caption in pictures:
        assert len(text.split()) >= 4
        assert ("shapes model" if file in OF_SHAPES else "things model") in caption


def test_its_pictures_are_all_there_and_small():
    pictures = {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*.png")}
    assert {file for page in PAGES.values() for _, file, _ in shown(page)} == set(pictures)
    assert all(path.stat().st_size < 300_000 for path in pictures.values())


def shown(page: Path) -> list[tuple[str, str, str]]:
    """The pictures of a page: what stands in their place where they cannot be seen, the file, and the caption below."""
    return re.findall(r"!\[([^\]]+)\]\(([^)]+)\)(?:\n\n\*([^*]+)\*\n)?", page.read_text(encoding="utf-8"))
