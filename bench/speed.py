"""Speed and memory of a denoiser call with EBCA, as ratios to the plain model.

    python run.py bench [--setting TEXT] [--case TEXT] [--rounds N] [--threads N] [--out FILE]

Random weights of genuine size; the plain model and EBCA take turns, in one process. README.md says what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from devtools import inprocess  # noqa: E402
from settings import SETTINGS, Setting  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    """Measure and print; 1 if a limit was not held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI; run.py passes it")
    parser.add_argument("--setting", default="", help="only settings with this text in their name")
    parser.add_argument("--case", default="", help="only cases with this text in their name")
    parser.add_argument("--rounds", type=int, help="how often each case is measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch on the CPU")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = options.setting.lower()
    settings = [
        s
        for s in SETTINGS
        if s.device == device and wanted in s.name.lower() and (not s.is_long or wanted == s.name.lower())
    ]
    if not settings:
        known = ", ".join(s.name for s in SETTINGS if s.device == device)
        parser.error(f"no setting for {device} has '{options.setting}' in its name; there are {known}")
    with tempfile.TemporaryDirectory(prefix="ebca_bench_", ignore_cleanup_errors=True) as base:
        inprocess.boot(options.comfyui, Path(base), inprocess.CPU_FLAGS if device == "cpu" else "")
        torch.set_num_threads(options.threads)
        results = _measure_all(settings, options)
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["held"] for result in results["settings"] for row in result["rows"]) else 1


def _measure_all(settings: Sequence[Setting], options: argparse.Namespace) -> dict[str, Any]:
    from comparison import compare
    from denoiser_calls import CASES

    if not any(options.case in case.name for case in CASES):
        known = ", ".join(case.name for case in CASES)
        raise SystemExit(f"no case has '{options.case}' in its name; there are {known}")
    nodes = _load_pack()
    machine = _machine(options)
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    results = []
    for setting in settings:
        print(f"\n{setting.name}", flush=True)
        rows = compare(setting, nodes, options.rounds or setting.rounds, options.case)
        results.append({"setting": setting.name, "rows": [asdict(row) | {"held": row.held} for row in rows]})
    return {"machine": machine, "settings": results}


def _load_pack() -> dict[str, type]:
    """The pack's nodes, loaded as ComfyUI loads them."""
    import nodes

    if not asyncio.run(nodes.load_custom_node(str(REPO))):
        raise RuntimeError(f"ComfyUI could not load the pack in {REPO}; its log above says why.")
    return nodes.NODE_CLASS_MAPPINGS


def _machine(options: argparse.Namespace) -> dict[str, str]:
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()} CPU, {options.threads} thread(s)",
        "torch": torch.__version__,
        "ComfyUI": options.comfyui.name,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
