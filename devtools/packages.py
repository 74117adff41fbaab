"""Import one package of the repository by its folder.

The repository's root must stay off sys.path: its `nodes` folder would hide ComfyUI's own module of that name.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

REPO = Path(__file__).resolve().parents[1]


def import_package(name: str, root: Path = REPO) -> ModuleType:
    """Import `root`/`name` as the top-level package `name`; its modules then import as usual."""
    if name in sys.modules:
        return sys.modules[name]
    init = root / name / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
