"""Runs of the workflow files on the server of the tests. The same run is made once, whichever tests look at it."""
from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from devtools.server import Server
from devtools.thumbnails import MASK, PHOTO, SCHEDULE, decoded, with_inputs
from devtools.twins import prompt_of, shown
from devtools.workflows import Prompt, Substitutions, node_ids

CELLS = "Cells"
#: The titles of what no node of a file shows by itself: what it edits and where, its schedule, the cells of its sweep.
ADDED = (PHOTO, MASK, SCHEDULE, CELLS)


class WorkflowRuns:
    """Call it with a workflow file and substitutions: {title: pictures}, with those of ADDED that the file has.

    Args:
        server, object_info: the server, and what it says of its nodes.
    """

    def __init__(self, server: Server, object_info: Mapping[str, Any]):
        self._server, self._object_info = server, object_info
        self._made: dict[str, dict[str, list[Image.Image]]] = {}

    def __call__(
        self, name: str, *tables: Substitutions, change: Callable[[Prompt], None] = lambda prompt: None
    ) -> dict[str, list[Image.Image]]:
        """change: rewires the prompt, in place."""
        prompt = copy.deepcopy(_with_cells(with_inputs(prompt_of(name, self._object_info, *tables))))
        change(prompt)
        key = json.dumps(prompt)
        if key not in self._made:
            files = shown(self._server, prompt)
            self._made[key] = {title: list(map(decoded, batch)) for title, batch in files.items()}
        return self._made[key]


def _with_cells(prompt: Prompt) -> Prompt:
    if not node_ids(prompt, "EBCASweepGrid"):
        return prompt
    (decoder,) = node_ids(prompt, "VAEDecode")
    inputs = {"images": [decoder, 0], "filename_prefix": CELLS}
    return prompt | {CELLS: {"class_type": "SaveImage", "inputs": inputs, "_meta": {"title": CELLS}}}


def unsampled(prompt: Prompt) -> None:
    """Decode what the samplers start from instead of what they make."""
    for node_id in node_ids(prompt, "VAEDecode"):
        sampler, _ = prompt[node_id]["inputs"]["samples"]
        prompt[node_id]["inputs"]["samples"] = prompt[sampler]["inputs"]["latent_image"]
