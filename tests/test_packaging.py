"""What users install: which files, what these import, and what they never do."""

import ast
import re
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import tomllib

REPO = Path(__file__).resolve().parents[1]
OWN = ("nodes", "comfyui_binding", "ebca_core", "plots")
SHIPPED = [REPO / "__init__.py", *(path for name in OWN for path in sorted((REPO / name).rglob("*.py")))]
IN_ARCHIVE = {
    "__init__.py", *OWN, "workflows", "web", "locales",
    "pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE",
}  # fmt: skip

# ComfyUI's own modules that a pack may import, and the packages that ComfyUI itself requires.
HOST = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "latent_preview", "node_helpers"}
PACKAGES = {"torch", "einops", "safetensors", "PIL", "numpy"}
# Of the standard library, what the registry's scanner asks about: other programs, the network, code from data.
UNWANTED = {"subprocess", "socket", "http", "urllib", "ftplib", "smtplib", "ssl", "ctypes", "pickle", "marshal", "code"}
UNWANTED_CALLS = {"eval", "exec", "compile", "__import__", "print", "breakpoint"}

shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.relative_to(REPO).as_posix())


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


def test_there_is_something_to_ship():
    assert set(OWN) <= {p.parent.name for p in SHIPPED}


@shipped
def test_only_what_comfyui_has_is_imported(path):
    allowed = HOST | PACKAGES | (set(sys.stdlib_module_names) - UNWANTED)
    assert imports(path) <= allowed, f"{path} imports {sorted(imports(path) - allowed)}"


@pytest.mark.parametrize("path", sorted((REPO / "ebca_core").rglob("*.py")), ids=lambda p: p.name)
def test_the_method_knows_no_host(path):
    assert imports(path) <= {"torch", "einops"} | (set(sys.stdlib_module_names) - UNWANTED)


@pytest.mark.parametrize("path", sorted((REPO / "plots").rglob("*.py")), ids=lambda p: p.name)
def test_plots_know_no_host(path):
    assert imports(path) <= {"torch", "numpy", "PIL"} | (set(sys.stdlib_module_names) - UNWANTED)


@shipped
def test_own_packages_are_imported_relatively(path):
    assert not imports(path) & set(OWN), "ComfyUI imports the pack under another name"


@shipped
def test_no_code_from_strings_and_no_prints(path):
    calls = (item.func for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(item, ast.Call))
    named = {function.id for function in calls if isinstance(function, ast.Name)}
    assert not named & UNWANTED_CALLS


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
    assert config.project.urls.repository
    assert config.project.supported_os == ["OS Independent"]
    assert config.project.supported_accelerators
    assert config.project.supported_comfyui_version == ">=0.16.0"
    assert (REPO / config.project.license.file).is_file()


def test_archive_holds_what_users_need(tmp_path, monkeypatch):
    from comfy_cli.file_utils import list_git_tracked_files, zip_files

    if not list_git_tracked_files(REPO):
        pytest.skip("not a git checkout")
    monkeypatch.chdir(REPO)
    zip_files(str(tmp_path / "pack.zip"))
    names = ZipFile(tmp_path / "pack.zip").namelist()
    assert {name.split("/")[0] for name in names} <= IN_ARCHIVE
    assert {"pyproject.toml", "requirements.txt", "LICENSE", "locales/zh/nodeDefs.json"} <= set(names)
