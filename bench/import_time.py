"""How long ComfyUI takes to load the pack, beyond what it loads without it, each time in a new process.

    python run.py bench import_time

ComfyUI's own nodes are loaded first, as it does itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from devtools import inprocess  # noqa: E402


def load(comfyui: Path, base: Path) -> dict:
    """Seconds that the pack takes to load here, and the packages that it brings in besides itself.

    base: a folder for ComfyUI's models, inputs and outputs.
    """
    inprocess.boot(comfyui, base)
    import nodes

    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    before = {name.split(".")[0] for name in sys.modules}
    begun = time.perf_counter()
    if not asyncio.run(nodes.load_custom_node(str(REPO))):
        raise RuntimeError(f"ComfyUI could not load the pack in {REPO}; its log above says why.")
    seconds = time.perf_counter() - begun
    own = str(REPO).replace(".", "_x_")  # the name that ComfyUI gives it
    new = {name.split(".")[0] for name in sys.modules} - before - {own} - sys.stdlib_module_names
    return {"seconds": seconds, "modules": sorted(new)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI; run.py passes it")
    parser.add_argument("--runs", type=int, default=5, help="processes")
    parser.add_argument("--once", action="store_true", help="in this process; JSON")
    options = parser.parse_args(argv)
    if options.once:
        with tempfile.TemporaryDirectory(prefix="ebca_bench_", ignore_cleanup_errors=True) as base:
            print(json.dumps(load(options.comfyui.resolve(), Path(base))))
        return
    command = [sys.executable, __file__, "--comfyui", options.comfyui, "--once"]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(options.runs)]
    found = [json.loads(run.stdout.splitlines()[-1]) for run in runs]
    seconds = [one["seconds"] for one in found]
    print(f"{statistics.median(seconds):.2f} s (median of {len(found)}, {min(seconds):.2f} to {max(seconds):.2f} s)")
    print(f"further packages: {', '.join(found[0]['modules']) or 'none'}")


if __name__ == "__main__":
    main()
