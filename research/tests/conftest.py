"""The tests of this folder have the ComfyUI and the fixtures of the pack's tests, from tests/conftest.py."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

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
