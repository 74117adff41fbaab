"""The tiers of `python run.py test`: what is in which, and when the tests of the tools are left out."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

from devtools import environment, subprocesses, tiers
from devtools.environment import BETWEEN, NEWEST, OLDEST, REPO

_spec = importlib.util.spec_from_file_location("run", REPO / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


#: The files that have tests with the mark `server` in tier 1.
WITH_A_SERVER = {f"test_{name}.py" for name in (
    "blueprints", "front_end", "install", "locales", "thumbnails", "transformer_workflows", "workflows",
)}  # fmt: skip


#: The files that have tests with the mark `interface`.
WITH_AN_INTERFACE = {f"test_{name}.py" for name in (
    "batches", "composes_not", "composes_with", "families", "joint_runs", "projection", "reference", "reroll",
    "schemas", "transformer_runs", "transformer_update", "workflows",
)}  # fmt: skip


def marks(part: tiers.Part) -> str:
    """The expression that selects the part's tests."""
    arguments = list(part.arguments)
    return arguments[arguments.index("-m") + 1] if "-m" in arguments else ""


def files(part: tiers.Part) -> set[str]:
    return {Path(argument).name for argument in part.arguments if str(argument).startswith(str(REPO))}


def test_tier_0_needs_no_server():
    ((name, part),) = tiers.parts("tier 0").items()
    assert (name, part.version, marks(part)) == ("quick", NEWEST, "not server and not slow")
    assert {"test_core_update.py", "test_schemas.py", "test_packaging.py"} < files(part)


def test_tier_1_is_all_but_the_nightly_tests_on_the_newest_and_the_interfaces_of_the_oldest():
    parts = tiers.parts("tier 1")
    on_newest = [part for part in parts.values() if part.version == NEWEST]
    in_process, with_server = "not server and not nightly", "server and not nightly"
    assert [marks(part) for part in on_newest] == [in_process, with_server, "not nightly", in_process]
    (oldest,) = (part for part in parts.values() if part.version == OLDEST)
    assert marks(oldest) == "interface and not nightly"
    assert files(oldest) >= WITH_AN_INTERFACE


def test_the_nightly_tier_is_everything_at_both_ends_the_fast_tests_between_and_the_newest_front_end():
    parts = tiers.parts("nightly", tools=False).values()
    assert [part.version for part in parts] == [*[NEWEST] * 4, *[OLDEST] * 4, *BETWEEN, NEWEST]
    whole = ["not server", "server", "", "not server"]
    assert [marks(part) for part in parts] == [*whole * 2, *["not slow and not server"] * 3, ""]
    assert [part.arguments[-2:] for part in parts if "--cases" in part.arguments] == [
        ["--cases", "2000"], ["--cases", "480"],
    ]  # fmt: skip


def test_a_comfyui_of_the_users_own_is_the_only_one():
    for tier in tiers.TIERS.values():
        assert {part.version for part in tiers.parts(tier, newest=None).values()} == {None}


def test_each_file_of_tests_is_in_one_part_without_a_server():
    parts = tiers.parts("tier 1", newest=None)
    assert list(parts) == ["in process", "with a server", "tools", "transformers"]
    ignored = {name: {argument.removeprefix("--ignore=") for argument in part.arguments if "--ignore=" in argument}
               for name, part in parts.items()}  # fmt: skip
    named = {name: set(map(str, part.arguments)) for name, part in parts.items()}
    transformers = {path for path in named["transformers"] if path.endswith(".py")}
    tools = named["tools"] - {"-m", "not nightly"}
    assert {"test_demo.py", "test_devtools_tiers.py"} < files(parts["tools"])
    assert str(REPO / "research" / "tests") in tools
    assert "test_joint_runs.py" in files(parts["transformers"])
    assert not transformers & tools
    assert ignored["in process"] == transformers | tools
    assert files(parts["with a server"]) >= WITH_A_SERVER
    assert not named["with a server"] & tools
    assert "tools" not in tiers.parts("tier 1", newest=None, tools=False)


# --- when the tests of the tools are left out -------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A function that commits files to a repository, whose first commit is on main."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    def commit(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.read_text() + "more" if path.is_file() else "")
        git("add", "--all")
        git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-m", "a commit")

    git("init", "--initial-branch", "main")
    commit("README.md", "bench/speed.py")
    commit.git, commit.folder = git, tmp_path
    return commit


@pytest.mark.parametrize(("changed", "needed"), [
    ("README.md", False),
    ("tests/test_off.py", False),
    ("workflows/EBCA 11 Sweep (SDXL).json", False),
    ("bench/speed.py", True),
    ("tests/test_demo.py", True),
    ("run.py", True),
    ("ebca_core/update.py", True),
])  # fmt: skip
def test_the_tools_are_tested_where_what_they_test_changed(checkout, changed, needed):
    checkout(changed)
    found, why = tiers.need_tool_tests(checkout.folder)
    assert found == needed
    assert why.startswith(f"{changed} changed" if needed else "nothing that they test changed since ")


def test_all_commits_of_a_branch_count(checkout):
    checkout.git("checkout", "-b", "branch")
    checkout("bench/speed.py")
    checkout("README.md")
    assert tiers.need_tool_tests(checkout.folder) == (True, "bench/speed.py changed")


def test_on_main_the_last_commit_counts(checkout):
    checkout("bench/speed.py")
    checkout("README.md")
    assert tiers.need_tool_tests(checkout.folder)[0] is False


@pytest.mark.parametrize("name", ["bench/speed.py", "bench/new.py"])
def test_what_is_not_committed_counts(checkout, name):
    checkout("README.md")
    (checkout.folder / name).write_text("changed")
    assert tiers.need_tool_tests(checkout.folder) == (True, f"{name} changed")


def test_the_tools_are_tested_where_git_knows_no_earlier_commit(checkout, tmp_path_factory):
    said = (True, "git cannot say what changed")
    assert tiers.need_tool_tests(checkout.folder) == said
    assert tiers.need_tool_tests(tmp_path_factory.mktemp("no checkout")) == said


# --- run.py -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "tier"), [([], "tier 1"), (["--quick"], "tier 0"), (["--all"], "nightly")])
def test_run_py_runs_the_parts_and_ruff_and_prints_their_times(monkeypatch, capsys, option, tier):
    called = {}

    def call_together(commands, folder, at_once):
        called.update(commands)
        return [subprocesses.Result(name, int(name == "ruff"), 1.0, 2.0) for name in commands]

    monkeypatch.setattr(environment, "prepare", lambda version=None: environment.Host(
        Path("py"), Path(version or NEWEST), fetched=True))  # fmt: skip
    monkeypatch.setattr(tiers, "need_tool_tests", lambda: (False, "nothing changed"))
    monkeypatch.setattr(subprocesses, "call_together", call_together)
    assert run.main(["test", *option]) == 1
    parts = tiers.parts(tier, tools=False)
    assert list(called) == ["ruff", *parts]
    for name, part in parts.items():
        assert list(called[name].arguments)[-len(part.arguments) :] == list(part.arguments)
        if part.version == NEWEST:
            assert str(called[name].variables["COMFYUI_PATH"]) == NEWEST
        else:
            assert list(called[name].arguments)[1:5] == [REPO / "run.py", "--host", part.version, "test"]
    assert all(called[name].variables["OMP_NUM_THREADS"] == "1" for name in parts)
    printed = capsys.readouterr().out
    assert "FAILED  ruff (1 s, of the CPU 2 s)" in printed
    assert all(f"passed  {name} (1 s, of the CPU 2 s)" in printed for name in parts)
    assert f"{tier}: 0.0 minutes, of the CPU" in printed
    assert ("the tests of the tools are left out: nothing changed" in printed) == (tier == "tier 1")
