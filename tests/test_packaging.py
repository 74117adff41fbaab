"""What users install: which files, what these import, and what they never do."""

import ast
import asyncio
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree
from zipfile import ZipFile

import pytest
import tomllib

from devtools.archive import build
from support.log_messages import messages

REPO = Path(__file__).resolve().parents[1]
OWN = ("nodes", "comfyui_binding", "ebca_core", "plots")
SHIPPED = [REPO / "__init__.py", *(path for name in OWN for path in sorted((REPO / name).rglob("*.py")))]
STANDARD_LIBRARY = set(sys.stdlib_module_names)
IN_ARCHIVE = {
    "__init__.py", *OWN, "workflows", "subgraphs", "web", "locales",
    "pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE", "PICTURES.md",
}  # fmt: skip

# ComfyUI's own modules that a pack may import, and the packages that ComfyUI itself requires.
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers", "server"}
PACKAGES = {"torch", "einops", "safetensors", "PIL", "numpy"}
# Of the standard library, what the registry's scanner asks about: other programs, the network, code from data.
UNWANTED = {"subprocess", "socket", "http", "urllib", "ftplib", "smtplib", "ssl", "ctypes", "pickle", "marshal", "code"}
FORBIDDEN = re.compile(
    r"\b(eval|exec)\s*\(|\bsubprocess\b|\bos\.(system|popen|exec\w*|spawn\w*)\b|\bpip\s+install\b|\bimportlib\b"
    r"|\bnew Function\b|\bXMLHttpRequest\b|\bWebSocket\b|\bfetch\(['\"`]"
)
UNWANTED_CALLS = {"eval", "exec", "compile", "__import__", "print", "breakpoint"}


def imports(path: Path) -> set[str]:
    """The top-level modules that a file imports absolutely, anywhere in it."""
    found = set()
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            found |= {alias.name.split(".")[0] for alias in item.names}
        elif isinstance(item, ast.ImportFrom) and not item.level:
            found.add(item.module.split(".")[0])
    return found


def pyproject() -> dict:
    return tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_licences_of_the_pictures_are_shipped():
    """The sets of drawings are those that the sheet names, with the texts that their licences ask for."""
    sources = REPO / "research" / "things"
    shipped = (REPO / "PICTURES.md").read_text(encoding="utf-8")
    named = (sources / "LICENSES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+` \|[^|]+\|[^|]+\|[^|]+)\|", named, re.MULTILINE)
    assert len(rows) == 4
    assert all(row in shipped for row in rows)
    apache = (sources / "APACHE-2.0.txt").read_text(encoding="utf-8")
    assert "".join(apache.split()) in "".join(shipped.split())
    assert "Copyright (c) Microsoft Corporation." in shipped


def test_there_is_something_to_ship():
    assert set(OWN) <= {p.parent.name for p in SHIPPED}


@pytest.mark.parametrize(("folder", "packages"), [
    ("", HOST | PACKAGES),  # all that is shipped, with what ComfyUI has
    ("ebca_core", {"torch", "einops"}),
    ("plots", {"torch", "numpy", "PIL"}),
])  # fmt: skip
def test_only_what_is_there_is_imported(folder, packages):
    files = [path for path in SHIPPED if path.is_relative_to(REPO / folder)]
    assert files
    for path in files:
        unknown = imports(path) - packages - (STANDARD_LIBRARY - UNWANTED)
        assert not unknown, f"{path} imports {sorted(unknown)}"


def test_own_packages_are_imported_relatively():
    for path in SHIPPED:
        assert not imports(path) & set(OWN), f"{path}: ComfyUI imports the pack under another name"


def test_no_code_from_strings_and_no_prints():
    for path in SHIPPED:
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        called = {item.func.id for item in tree if isinstance(item, ast.Call) and isinstance(item.func, ast.Name)}
        assert not called & UNWANTED_CALLS, f"{path} calls {sorted(called & UNWANTED_CALLS)}"


def test_there_is_one_logger():
    for path in SHIPPED:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"getLogger\((.*?)\)", text) == ['"ebca"'] * text.count("getLogger("), path
        assert not re.search(r"\blogging\.(debug|info|warning|error|exception|basicConfig)\(", text), path


def test_one_line_is_said_at_the_start(pack, caplog):
    caplog.set_level(logging.INFO, logger="ebca")

    async def load():
        return await (await pack.comfy_entrypoint()).get_node_list()

    count = len(asyncio.run(load()))
    line = f"Energy-Based Cross Attention {pyproject()['project']['version']}: {count} nodes"
    assert messages(caplog) == [line]
    forms = [REPO / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "picture")]
    for path in (REPO / "README.md", *forms):
        assert line in path.read_text(encoding="utf-8"), path


@pytest.mark.slow
def test_nothing_is_imported_that_comfyui_has_not_already(comfyui_root):
    command = [sys.executable, REPO / "bench" / "import_time.py", "--comfyui", comfyui_root, "--once"]
    loaded = subprocess.run(command, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert json.loads(loaded.stdout.splitlines()[-1])["modules"] == []


def test_version_is_the_changelog_s_first():
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == pyproject()["project"]["version"]


def test_nothing_is_installed_besides_comfyui_s_own_requirements():
    assert pyproject()["project"]["dependencies"] == []
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("#") or not line.strip() for line in lines)


def test_comfyui_reads_the_registry_s_metadata():
    from comfy_config import config_parser

    config = config_parser.extract_node_configuration(str(REPO))
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", config.project.name)
    assert "comfyui" not in config.project.name
    assert config.tool_comfy.publisher_id
    assert config.tool_comfy.display_name
    assert all([config.project.urls.repository, config.project.urls.documentation, config.project.urls.issues])
    assert config.tool_comfy.icon
    assert config.project.supported_os == ["OS Independent"]
    assert config.project.supported_accelerators
    assert config.project.supported_comfyui_version == ">=0.16.0"
    assert (REPO / config.project.license.file).is_file()


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, bytes]:
    """The files of the registry's archive."""
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    with ZipFile(build(tmp_path_factory.mktemp("dist"))) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def test_archive_holds_what_users_need_and_nothing_else(archive, pack):
    assert {name.split("/")[0] for name in archive} <= IN_ARCHIVE
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "README.md", "CHANGELOG.md"} <= set(archive)
    assert {name for name in archive if name.endswith(".py")} == {p.relative_to(REPO).as_posix() for p in SHIPPED}
    for folder in ("workflows", "subgraphs", "web", "locales"):
        there = {p.relative_to(REPO).as_posix() for p in (REPO / folder).rglob("*") if p.is_file()}
        assert {name for name in archive if name.startswith(f"{folder}/")} == there


def test_archive_is_small(archive):
    assert sum(map(len, archive.values())) < 5_000_000
    weights_and_binaries = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".so", ".dll", ".exe")
    assert not [name for name in archive if name.endswith(weights_and_binaries)]


def test_archive_holds_nothing_that_the_registry_forbids(archive):
    """In the text of every file that runs; the imports and calls of Python's are looked at above."""
    found = [
        f"{name}: {match.group()}"
        for name, text in archive.items()
        if name.endswith((".py", ".js", ".mjs"))
        for match in FORBIDDEN.finditer(text.decode("utf-8"))
    ]
    assert not found


def test_icon_and_banner_are_of_the_registry_s_sizes():
    comfy = pyproject()["tool"]["comfy"]
    for key, width, height in (("Icon", 400, 400), ("Banner", 1260, 540)):
        drawing = ElementTree.parse(REPO / "docs" / comfy[key].rpartition("/")[2]).getroot()
        assert (drawing.get("width"), drawing.get("height")) == (str(width), str(height))
