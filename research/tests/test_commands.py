"""The commands that count on the shapes model: they run, and print a row for each method."""

import importlib.util
from pathlib import Path

import pytest

RESEARCH = Path(__file__).resolve().parents[1]
REPO = RESEARCH.parent
KEPT = "kept.jsonl"  # in a folder of the test


def test_every_name_of_bench_has_its_script():
    spec = importlib.util.spec_from_file_location("run", REPO / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    assert all((REPO / script).is_file() for script in run.BENCHES.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("editing", ["--images", "2", "--steps", "2", "--method", "tuned", "--results", KEPT], 2),
        ("inpainting", ["--images", "2", "--steps", "2"], 4),
        ("round_trip", ["--images", "2", "--steps", "2", "--samplers", "0"], 5),
    ],
)
def test_command_prints_a_row_for_each_method(comfyui_root, run_command, tmp_path, name, options, rows):
    options = [tmp_path / KEPT if option == KEPT else option for option in options]
    printed = run_command(f"{name}.py", "--comfyui", comfyui_root, *options, "--threads", "1")
    lines = [line for line in printed.splitlines() if line.startswith("| ") and not line.startswith(("| m", "| i"))]
    assert len(lines) >= rows, printed
    assert all(any(character.isdigit() for character in line) for line in lines)
