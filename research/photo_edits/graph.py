"""The workflow file that edits a photograph by EBCA, with the ways without EBCA beside it."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from typing import Any

from devtools import workflows
from devtools.twins import pictures
from photo_edits.edits import PhotoEdit
from photo_edits.photos import PhotoTask
from server_runs import api_prompt

PHOTO, RECONSTRUCTION, SWAPPED, WITH = "Photo", "Reconstruction", "Prompt swapped", "With EBCA"
#: The ways to treat a photo.
WAYS = (RECONSTRUCTION, SWAPPED, WITH)

#: What the workflow file has one of.
ONE_EACH = (
    "LoadImage", "VAEEncode", "CLIPTextEncode", "EBCAInvert", "EBCACompose", "CFGGuider", "SamplerCustomAdvanced",
    "VAEDecode",
)  # fmt: skip


class PhotoGraph:
    """The prompt of a photograph: see `server_runs.Graph`. All ways start from the noise of one EBCA Invert."""

    texts: Mapping[str, str] = {}

    def __init__(self, options: argparse.Namespace, edit: PhotoEdit):
        self._api = api_prompt(options)
        found = {kind: workflows.node_ids(self._api, kind) for kind in ONE_EACH}
        shown = pictures(self._api)
        if WITH not in shown or any(len(nodes) != 1 for nodes in found.values()):
            one_each = ", ".join(ONE_EACH)
            raise SystemExit(f"Expected a picture '{WITH}' and one each of {one_each} in {options.workflow}.")
        self._node = {kind: nodes[0] for kind, nodes in found.items()}
        self._set(edit)
        if options.empty_negative:
            empty = self._copy("Empty prompt", "CLIPTextEncode", text="")
            self._inputs("CFGGuider")["negative"] = [empty, 0]
        self._new_caption = self._copy(SWAPPED, "CLIPTextEncode")
        self.pictures = {
            PHOTO: self._preview(PHOTO, self._inputs("VAEEncode")["pixels"]),
            # At cfg 1 only the positive prompt counts, which is the caption.
            RECONSTRUCTION: self._way(RECONSTRUCTION, cfg=1.0),
            SWAPPED: self._way(SWAPPED, positive=[self._new_caption, 0]),
            WITH: shown[WITH],
        }

    def of(self, task: PhotoTask) -> workflows.Prompt:
        return self._with(task.uploaded, task.caption, task.new_caption)

    def settings(self) -> workflows.Prompt:
        return self._with("", "", "")

    def _with(self, image: str, caption: str, new_caption: str) -> workflows.Prompt:
        api = copy.deepcopy(self._api)
        api[self._node["LoadImage"]]["inputs"]["image"] = image
        api[self._node["CLIPTextEncode"]]["inputs"]["text"] = caption
        api[self._new_caption]["inputs"]["text"] = new_caption
        return api

    def _set(self, edit: PhotoEdit) -> None:
        contexts = [self._api[node]["inputs"] for node in workflows.node_ids(self._api, "EBCAEditContext")]
        if sorted(context["direction"] for context in contexts) != ["add", "remove"]:
            raise SystemExit("Expected two EBCAEditContext in the workflow file, one that adds and one that removes.")
        strengths = edit.strengths
        for context in contexts:
            i = ("add", "remove").index(context["direction"])
            context |= {"text": edit.texts[i], "alpha": strengths.alphas[i]}
            context |= dict.fromkeys(("gamma_attn", "gamma_norm"), strengths.gammas[i])
            context |= dict.fromkeys(("start_percent", "gamma_start_percent"), strengths.start)

    def _way(self, title: str, **guidance: Any) -> str:
        """Sample from the same noise without EBCA: the node that shows the picture."""
        guider = self._copy(title, "CFGGuider", model=self._inputs("EBCACompose")["model"], **guidance)
        samples = self._copy(title, "SamplerCustomAdvanced", guider=[guider, 0])
        return self._preview(title, [self._copy(title, "VAEDecode", samples=[samples, 0]), 0])

    def _inputs(self, kind: str) -> dict[str, Any]:
        return self._api[self._node[kind]]["inputs"]

    def _copy(self, title: str, kind: str, **changes: Any) -> str:
        """One of the file's nodes once more, with other inputs."""
        name = f"{title}-{kind}"
        self._api[name] = {"class_type": kind, "inputs": self._inputs(kind) | changes}
        return name

    def _preview(self, title: str, images: list) -> str:
        self._api[title] = {"class_type": "PreviewImage", "inputs": {"images": images}}
        return title
