"""ComfyUI's own execution tests, with the pack installed.

    python run.py comfyui_tests                  in the newest ComfyUI; --host VERSION: in another
    python run.py comfyui_tests --without-pack   for comparison
    python run.py comfyui_tests -k test_jobs     what else pytest is told

They run in a copy of ComfyUI, which starts servers of its own. Needs the tools installed.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).absolute().parents[1]
PLUGINS = REPO / "devtools" / "plugins"
sys.path.append(str(REPO))

from devtools import subprocesses  # noqa: E402
from devtools.server import PACK, free_port, link_or_copy  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI, with its tests")
    parser.add_argument("--without-pack", action="store_true", help="leave the pack out")
    options, rest = parser.parse_known_args(argv)
    if not (options.comfyui / "tests" / "execution").is_dir():
        raise SystemExit(f"Expected tests/execution in {options.comfyui}, found none. Take a full checkout of ComfyUI.")
    with tempfile.TemporaryDirectory(prefix="ebca_comfyui_", ignore_cleanup_errors=True) as folder:
        comfyui = Path(folder) / "ComfyUI"
        shutil.copytree(options.comfyui, comfyui, ignore=shutil.ignore_patterns(".git"))
        if not options.without_pack:
            link_or_copy(REPO, comfyui / "custom_nodes" / PACK)
        tests = [
            sys.executable, "-m", "pytest", "tests/execution", "--skip-timing-checks", "--port", str(free_port()),
            "-p", "patient_clients",
        ]  # fmt: skip
        # They start `python main.py`, which is to be this Python.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        os.chdir(comfyui)
        try:
            return subprocesses.call([*tests, *rest], PATH=path, PYTHONPATH=PLUGINS, HF_HUB_OFFLINE="1")
        finally:
            os.chdir(REPO)


if __name__ == "__main__":
    subprocesses.exit_on_terminate()
    sys.exit(main())
