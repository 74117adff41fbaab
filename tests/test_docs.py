"""What the documents promise in code: the examples of docs/method.md, the names in it, and the length of README."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from support import toy
from support.sampling import relative_error

REPO = Path(__file__).resolve().parents[1]
METHOD = (REPO / "docs" / "method.md").read_text(encoding="utf-8")
README = (REPO / "README.md").read_text(encoding="utf-8")
#: Where the repository's files are on the web: pages, and pictures as they are.
ADDRESS = re.compile(
    r"https://(github\.com/[\w-]+/energy-based-cross-attention/blob|raw\.githubusercontent\.com/[\w-]+/energy-based-"
    r"cross-attention)/main/"
)


def code_of(heading: str) -> str:
    """The indented blocks of a section of docs/method.md, as one program."""
    section = METHOD.split(f"## {heading}\n")[1].split("\n## ")[0]
    return "\n".join(dedent(block) for block in re.findall(r"(?:^(?: {4}.*)?\n)+", section, re.MULTILINE))


def test_six_lines_of_python_are_one_gradient_step():
    code = code_of("In Python")
    assert len(code.strip().splitlines()) == 6
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    context = names["context"].clone().requires_grad_()
    keys = context @ names["w_k"].T
    similarity = keys @ names["queries"].mT / 4  # beta = 1 / sqrt(16)
    energy = 0.01 * -4 * similarity.logsumexp(dim=-1).sum() + 0.02 * 0.5 * keys.square().sum(-1).logsumexp(-1).sum()
    (gradient,) = torch.autograd.grad(energy, context)
    assert relative_error(names["updated"] - names["context"], -gradient) < 1e-10


def test_another_pack_can_call_the_nodes(comfy, pack):
    model, clip = toy.model(), toy.clip()
    names = {"model": model, "clip": clip}
    exec(code_of("From another pack"), names)
    settings = names["model"].model_options["transformer_options"]["ebca"]
    assert "ebca" not in model.model_options["transformer_options"]
    assert (len(settings.updates), len(settings.edits)) == (1, 3)  # a bear, a bench, the empty prompt
    assert "a bench" in names["found"]


def test_functions_in_the_table_of_symbols_exist():
    table = METHOD.split("## Symbols\n")[1].split("\n## ")[0]
    names = set(re.findall(r"`([a-z_]+)\.(\w+)`", table))
    assert len(names) > 10
    for module, name in names:
        assert hasattr(importlib.import_module(f"ebca_core.{module}"), name), f"{module}.{name}"


def test_the_messages_in_the_document_on_other_packs_are_those_of_the_log(pack):
    document = (REPO / "docs" / "neighbours.md").read_text(encoding="utf-8")
    notices = pack.comfyui_binding.runtime.notices
    replaced = {"NETWORK": notices.network_replaced("...")}
    quoted = dict(re.findall(r'^\* ([A-Z_]+): "((?:.|\n)*?)"$', document, re.MULTILINE))
    assert len(quoted) > 10
    for name, text in quoted.items():
        assert " ".join(text.split()) in replaced.get(name, getattr(notices, name, "")), name
    table = document.split("## Who replaces what\n")[1].split("\n\nThe messages")[0]
    assert set(re.findall(r"\b[A-Z_]{5,}\b", table)) == set(quoted)


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_readme_has_at_most_1500_words_and_no_relative_link():
    assert len(README.split()) <= 1500
    assert [link for link in links(README) if not link.startswith(("https://", "#"))] == []


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))])
def test_links_to_files_of_the_repository_lead_somewhere(document):
    path = REPO / document
    for link in links(path.read_text(encoding="utf-8")):
        address, target = ADDRESS.match(link), ADDRESS.sub("", link).partition("#")[0]
        if target and not target.startswith("https://"):
            assert ((REPO if address else path.parent) / target).exists(), f"{document}: {link}"
