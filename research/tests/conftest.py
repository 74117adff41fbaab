"""The tests of this folder have the ComfyUI and the fixtures of the pack's tests, from tests/conftest.py."""

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

# Pytest's own name for that file, which boots ComfyUI: where both folders are tested together, it must run once.
_NAME = "tests.conftest"
LONGEST = 600  # seconds of a script


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
    """A function that runs a script of research/ with its arguments: what it has printed.

    All run in one process, as most of a script's time is that of importing ComfyUI. test_choosing.py starts one as
    run.py does.
    """
    call, pipe = [sys.executable, Path(__file__).with_name("command_process.py"), comfyui_root], subprocess.PIPE
    with subprocess.Popen(call, stdin=pipe, stdout=pipe, encoding="utf-8") as process:

        def run(script: str, *arguments: object) -> str:
            process.stdin.write(json.dumps([script, *map(str, arguments)]) + "\n")
            process.stdin.flush()
            limit = threading.Timer(LONGEST, process.kill)
            limit.start()
            answer = process.stdout.readline()
            limit.cancel()
            assert answer, f"The process of {script} is gone: it crashed, or was killed after {LONGEST} s."
            printed, failure = json.loads(answer)
            assert failure is None, failure
            return printed

        yield run
