"""Runs scripts of research/ one after the other in a process of its own, in which ComfyUI is booted once.

    python command_process.py COMFYUI

Each line of its input is a script and its arguments, as in ["editing.py", "--images", "2"]; the script runs as on the
command line. Each line of its output answers one: what the script has printed, and how it failed or null. It is not the
process of the tests, as the scripts load the pack anew.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

RESEARCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(RESEARCH))


def main(comfyui: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ComfyUI or a library prints is no answer
    import comfy_host
    import small_model

    comfy_host.start(comfyui)
    for line in sys.stdin:
        booted = []
        small_model.boot = booted.append  # ComfyUI is there
        printed, failure = run(*json.loads(line))
        failure = failure or (None if booted else "It did not boot ComfyUI.")
        print(json.dumps([printed, failure]), file=answers, flush=True)


def run(script: str, *arguments: str) -> tuple[str, str | None]:
    """What a script prints, and how it failed, if it did."""
    printed, failure = io.StringIO(), None
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(printed):
        try:
            runpy.run_path(str(RESEARCH / script), run_name="__main__")
        except SystemExit as end:
            failure = f"It ended with {end.code}." if end.code else None
        except Exception:
            failure = traceback.format_exc()
    return printed.getvalue(), failure


if __name__ == "__main__":
    main(sys.argv[1])
