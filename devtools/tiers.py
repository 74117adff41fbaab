"""Which tests `python run.py test` runs: three tiers, made of parts that run side by side. Standard library only.

Tier 0 is for the moment before a commit, tier 1 for every push, the nightly tier for every night and before a release.
A test that is marked `nightly` runs in that tier alone. What users never get has tests of its own, which tier 1 leaves
out where git says that nothing changed that they test.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from .environment import BETWEEN, FRONT_END_VARIABLE, NEWEST, NEWEST_FRONT_END, OLDEST, REPO

TIERS = {"--quick": "tier 0", "": "tier 1", "--all": "nightly"}  # by the option of `run.py test`

#: Tests of what users never get: measurements, the demo with its model, and the programs behind run.py.
_TOOL_TESTS = ("tests/test_bench_*.py", "tests/test_demo.py", "tests/test_devtools_*.py", "tests/test_shapes_*.py")
_TOOL_FOLDERS = ("bench/", "demo/", "devtools/", "research/")
#: What these tests test besides: the command line, and the code of the product.
_USED_BY_TOOLS = ("run.py", "ebca_core/", "comfyui_binding/", "nodes/", "plots/")
#: Tests of models that are no U-Nets: a part of their own, as all tests without a server would be the longest by far.
_TRANSFORMERS = ("transformer_*", "joint_*")
#: Tests without a server, of which the whole takes less than a minute.
_QUICK = ("core_*", "schemas", "locales", "help", "packaging", "global_state")
#: The mark of what tier 1 runs on the oldest ComfyUI: tests of what may differ there, which is what ComfyUI calls, is
#: given or hands over. Each model family, each node or pack of others, each way in which ComfyUI batches prompts or
#: stores weights, and all that EBCA Reroll reads from a run has one test with this mark, in the setting that uses most
#: of ComfyUI and with EBCA's nodes before those of others. The method itself does not depend on the version: its
#: settings are tested on the newest.
_INTERFACE = "interface"
#: How many random prompts the nightly tier tries (tier 1: the default of tests/test_bad_input.py).
_CASES = {NEWEST: 2000, OLDEST: 480}


@dataclass(frozen=True)
class Part:
    """Tests that one pytest runs, one after the other.

    Attributes:
        version: of ComfyUI; None for the user's own.
        arguments: pytest's.
        variables: of its environment.
    """

    version: str | None
    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)


def parts(tier: str, newest: str | None = NEWEST, tools: bool = True, repo: Path = REPO) -> dict[str, Part]:
    """The parts of a tier by their names.

    Args:
        tier: one of TIERS' values.
        newest: the ComfyUI of most parts; None for the user's own, which then is the only one.
        tools: whether tier 1 includes the tests of the tools; the nightly tier always does.
    """
    if tier == TIERS["--quick"]:
        return {"quick": Part(newest, [*_files(repo, _QUICK), "-m", "not server and not slow"])}
    if tier == TIERS[""]:
        made = _whole(newest, repo, marks=" and not nightly")
        if newest:
            marks = f"{_INTERFACE} and not nightly"
            made[f"interfaces on {OLDEST}"] = Part(OLDEST, [*_with_mark(repo, _INTERFACE), "-m", marks])
        return {name: part for name, part in made.items() if tools or name != _name("tools", newest)}
    made = _whole(newest, repo, cases=_CASES[NEWEST])
    if newest:
        made |= _whole(OLDEST, repo, cases=_CASES[OLDEST])
        # Without the files in which no code of ComfyUI takes part.
        fast = [*_product(repo, but=_files(repo, ["core_*"])), "-m", "not slow and not server"]
        made |= {_name("fast tests", version): Part(version, fast) for version in BETWEEN}
        browser = [str(repo / "tests" / "test_front_end.py")]
        made[f"front end {NEWEST_FRONT_END}"] = Part(newest, browser, {FRONT_END_VARIABLE: NEWEST_FRONT_END})
    return made


def _whole(version: str | None, repo: Path, marks: str = "", cases: int | None = None) -> dict[str, Part]:
    """All tests that have these marks: in the process of the tests, with a server, and of the tools. The longest come
    first, so that both processes end at about the same time. Each part imports ComfyUI, and those with tests on a
    server start one: more and shorter parts would take longer."""
    more = ["--cases", str(cases)] if cases else []
    of_tools = ["-m", marks.removeprefix(" and ")] if marks else []
    transformers = _files(repo, _TRANSFORMERS)
    selected = {
        "in process": [*_product(repo, but=transformers), "-m", f"not server{marks}", *more],
        "with a server": [*_with_mark(repo, "server"), "-m", f"server{marks}"],
        "tools": [*_tool_tests(repo), *of_tools],
        "transformers": [*transformers, "-m", f"not server{marks}"],
    }
    return {_name(name, version): Part(version, arguments) for name, arguments in selected.items()}


def _name(name: str, version: str | None) -> str:
    return f"{name} on {version}" if version else name


def _product(repo: Path, but: Sequence[str] = ()) -> list[str]:
    """All tests but some and those of the tools."""
    return [str(repo / "tests"), *(f"--ignore={path}" for path in [*_tool_tests(repo), *but])]


def _with_mark(repo: Path, mark: str) -> list[str]:
    """The files of the product's tests that have a test with a mark: importing the others takes seconds."""
    tools = _tool_tests(repo)
    files = [path for path in _files(repo, ["*"]) if path not in tools]
    return [path for path in files if f"mark.{mark}" in Path(path).read_text(encoding="utf-8")]


def _tool_tests(repo: Path) -> list[str]:
    files = [str(path) for pattern in _TOOL_TESTS for path in sorted(repo.glob(pattern))]
    folders = [repo / folder / "tests" for folder in _TOOL_FOLDERS]
    return files + [str(folder) for folder in folders if folder.is_dir()]


def _files(repo: Path, names: Sequence[str]) -> list[str]:
    """tests/test_<name>.py of each name, which may be a pattern."""
    return [str(path) for name in names for path in sorted(repo.glob(f"tests/test_{name}.py"))]


def need_tool_tests(repo: Path = REPO) -> tuple[bool, str]:
    """Whether something changed that the tests of the tools test, and what, or why that is not known.

    Compared with the commit at which the branch left main; on main, with the commit before. Files that are not
    committed count as changed.
    """
    try:
        base = _base(repo)
        changed = _git(repo, "diff", "--name-only", base) + _git(repo, "ls-files", "--others", "--exclude-standard")
    except (OSError, subprocess.CalledProcessError):
        return True, "git cannot say what changed"
    patterns = [*_TOOL_TESTS, *(f"{path}*" for path in _TOOL_FOLDERS + _USED_BY_TOOLS)]
    found = next((name for name in changed if any(fnmatch(name, pattern) for pattern in patterns)), None)
    return found is not None, f"{found} changed" if found else f"nothing that they test changed since {base[:9]}"


def _base(repo: Path) -> str:
    (head,) = _git(repo, "rev-parse", "HEAD")
    for main in ("origin/main", "main"):
        try:
            (base,) = _git(repo, "merge-base", "HEAD", main)
        except subprocess.CalledProcessError:
            continue
        if base != head:
            return base
    (parent,) = _git(repo, "rev-parse", "HEAD^")
    return parent


def _git(repo: Path, *arguments: str) -> list[str]:
    """The lines that git prints."""
    git = subprocess.run(["git", "-C", repo, *arguments], check=True, capture_output=True, text=True)
    return git.stdout.splitlines()
