"""Runs commands of research/ one after the other in a process of its own, in which ComfyUI is booted once.

    python command_process.py COMFYUI

Each line of its input is a command, ["editing", ["--images", "2"]]: a module of research/ and the arguments of its
`main`. Each line that it prints last of a command is what the command has printed, as JSON. Not the process of the
tests: the commands load the pack anew.
"""

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path

RESEARCH = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(RESEARCH))


def main(comfyui: str) -> None:
    import comfy_host

    comfy_host.start(comfyui)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        command = importlib.import_module(name)
        command.boot = lambda options: None  # ComfyUI is there
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            command.main(arguments)
        print(json.dumps(printed.getvalue()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
