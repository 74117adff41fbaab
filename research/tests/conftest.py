"""The tests of this folder have the ComfyUI and the fixtures of the pack's tests, from tests/conftest.py."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Pytest's own name for that file, which boots ComfyUI: where both folders are tested together, it must run once.
_NAME = "tests.conftest"


def _shared() -> ModuleType:
    if _NAME not in sys.modules:
        path = Path(__file__).resolve().parents[2] / "tests" / "conftest.py"
        spec = importlib.util.spec_from_file_location(_NAME, path)
        sys.modules[_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[_NAME])
    return sys.modules[_NAME]


# Fixtures alone: hooks and command line options belong to the other file.
globals().update({name: value for name, value in vars(_shared()).items() if not name.startswith(("_", "pytest_"))})


@pytest.fixture(scope="session")
def run_command(comfyui_root) -> Callable[..., str]:
    """A function that runs a command of research/ by its module and its arguments: what it has printed.

    All run in one process, as most of a command's time is that of importing ComfyUI. tests/test_choosing.py starts a
    command as run.py does.
    """
    call, pipe = [sys.executable, Path(__file__).with_name("command_process.py"), comfyui_root], subprocess.PIPE
    with subprocess.Popen(call, stdin=pipe, stdout=pipe, encoding="utf-8") as process:

        def run(name: str, *arguments: object) -> str:
            process.stdin.write(json.dumps([name, list(map(str, arguments))]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
            assert answer, f"{name} failed, see above"
            return json.loads(answer)

        yield run
        process.stdin.close()
