"""How a latent was inverted: carried in the LATENT, saved with it, compared with the sampler that comes after it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import comfy.utils
import safetensors
import torch
from torch import Tensor

from . import graph
from .graph import Prompt
from .settings import KEY

#: Key of an inversion in a LATENT, and of its record in a file's metadata.
LATENT_KEY = f"{KEY}_inversion"

#: Samplers whose steps down undo the inversion's steps up; ComfyUI's ddim is euler.
RETRACING = ("euler", "ddim")


@dataclass(frozen=True)
class InversionRecord:
    """How a latent was inverted. What the graph does not tell is empty."""

    family: str  # class of the model in ComfyUI
    loaded: list[str]  # settings of the nodes that made the model, "CheckpointLoaderSimple.ckpt_name = x.safetensors"
    caption: str
    steps: int | None  # None and an empty scheduler where sigmas of unknown origin were wired in
    scheduler: str
    sigmas: list[float]  # falling, as the sampler walks
    regularisation: dict[str, float]
    fixed_point_iterations: int
    seed: int

    def described(self) -> str:
        """The record in lines."""
        made_by = f"{self.steps or 'an unknown number of'} steps of {self.scheduler or 'an unknown scheduler'}"
        lines = [
            f"model: {self.family}" + (f" ({'; '.join(self.loaded)})" if self.loaded else ""),
            f"caption: {self.caption or 'not known'}",
            f"{made_by}: {len(self.sigmas) - 1} steps from sigma {self.sigmas[0]:.4g} to {self.sigmas[-1]:.4g}",
            "regularisation: " + ", ".join(f"{name} {value:g}" for name, value in self.regularisation.items()),
            f"fixed-point iterations: {self.fixed_point_iterations}, seed: {self.seed}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Inversion:
    """An inverted latent [b, c, height, width], as a LATENT scales it, and how it was made."""

    samples: Tensor
    record: InversionRecord

    def as_latent(self) -> dict[str, Any]:
        """The LATENT that carries it."""
        return {"samples": self.samples, LATENT_KEY: self}


def inversion_of(latent: Mapping[str, Any]) -> Inversion:
    """The inversion that a LATENT carries. Raises ValueError for any other, and for one that was changed since."""
    inversion = latent.get(LATENT_KEY)
    if inversion is None or inversion.samples is not latent["samples"]:
        raise ValueError(
            "Expected the latent of EBCA Invert as it comes out of that node, but got "
            + ("one that another node has changed." if inversion else "one that was not inverted.")
            + " Wire EBCA Invert straight into this node; for other latents there is core's Save Latent."
        )
    return inversion


# --- files ---


def save(path: Path, inversion: Inversion, other_metadata: Mapping[str, str]) -> None:
    """Write a file that core's Load Latent can read too; the record is in its metadata."""
    tensors = {"latent_tensor": inversion.samples.contiguous(), "latent_format_version_0": torch.tensor([])}
    record = json.dumps(asdict(inversion.record))
    comfy.utils.save_torch_file(tensors, str(path), metadata={**other_metadata, LATENT_KEY: record})


def load(path: Path) -> Inversion:
    """Read what `save` wrote. Raises ValueError for any other file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {}).get(LATENT_KEY, "{}"))
            samples = file.get_tensor("latent_tensor") if values else None
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"Expected a file that EBCA Save Inversion wrote, but cannot read {path.name}: {error}."
        ) from None
    missing = [field.name for field in fields(InversionRecord) if field.name not in values]
    if samples is None or missing:
        raise ValueError(
            f"Expected a file that EBCA Save Inversion wrote, but {path.name} has no record of an inversion"
            + (f" (it lacks {', '.join(missing)})." if values else ".")
            + " Load other latents with core's Load Latent."
        )
    return Inversion(samples.float(), InversionRecord(**{f.name: values[f.name] for f in fields(InversionRecord)}))


# --- what the graph tells ---


def scheduled_by(prompt: Prompt, node_id: str | None) -> tuple[int | None, str]:
    """The steps and the scheduler behind a node's wired sigmas."""
    behind = _behind(prompt, node_id, "sigmas")
    return _first(prompt, behind, "steps"), _first(prompt, behind, "scheduler") or ""


def loaded_by(prompt: Prompt, node_id: str | None) -> list[str]:
    """The settings of the nodes, EBCA's left out, that made the model wired to a node."""
    return sorted(
        f"{prompt[source]['class_type']}.{name} = {value}"
        for source in _behind(prompt, node_id, "model")
        for name, value in graph.widgets(prompt, source).items()
        if not prompt[source]["class_type"].startswith("EBCA")
    )


def text_of(prompt: Prompt, node_id: str | None, name: str) -> str:
    """The text behind a node's wired CONDITIONING: the strings of the nodes that the model does not depend on."""
    model = set(_behind(prompt, node_id, "model"))
    texts = [
        value
        for source in _behind(prompt, node_id, name)
        if source not in model
        for value in graph.widgets(prompt, source).values()
        if isinstance(value, str)
    ]
    return " | ".join(texts)


def without_names(record: InversionRecord) -> InversionRecord:
    """The record without what the graph told: file names and the caption."""
    return replace(record, loaded=[], caption="")


# --- does what follows fit? ---


def mismatches(record: InversionRecord, prompt: Prompt, node_id: str | None) -> list[str]:
    """What keeps the sampler behind a node from retracing the node's inversion, as far as the graph tells."""
    sampler = _sampler_after(prompt, node_id)
    if sampler is None:
        return []
    found = []

    def compare(what: str, was: Any, now: Any) -> None:
        if was and now and was != now:
            found.append(f"The inversion was made with {what} {was}, but the sampler after it has {now}.")

    compare("steps", record.steps, _nearest(prompt, sampler, "steps"))
    compare("scheduler", record.scheduler, _nearest(prompt, sampler, "scheduler"))
    prompted = next(
        (n for n in graph.upstream(prompt, sampler, _is_picture) if "positive" in prompt[n]["inputs"]), None
    )
    compare("the caption", record.caption, text_of(prompt, prompted, "positive"))
    name = _nearest(prompt, sampler, "sampler_name")
    if name and name not in RETRACING:
        found.append(
            f"The sampler is {name}, which does not go back the way of the inversion: use {' or '.join(RETRACING)}."
        )
    if _adds_noise(prompt, sampler, node_id):
        found.append(
            f"{prompt[sampler]['class_type']} adds noise to the inverted latent. Use KSampler (Advanced) with add_noise"
            " off, or SamplerCustomAdvanced with DisableNoise or this node's own noise."
        )
    return found


def model_mismatches(record: InversionRecord, family: str, loaded: list[str]) -> list[str]:
    """What differs between the model of the inversion and another."""
    if record.family != family:
        return [f"The inversion was made with a model of the family {record.family}, but this one is {family}."]
    if record.loaded and loaded and record.loaded != loaded:
        was, now = (sorted(set(a) - set(b)) for a, b in ((record.loaded, loaded), (loaded, record.loaded)))
        return [
            f"The model is another: it was made with {'; '.join(was) or 'less'}, now with {'; '.join(now) or 'less'}."
        ]
    return []


def _behind(prompt: Prompt, node_id: str | None, name: str) -> list[str]:
    """The nodes that a node's input depends on."""
    return list(graph.upstream(prompt, graph.link_of(prompt, node_id, name))) if node_id in prompt else []


def _is_picture(name: str) -> bool:
    """Whether an input of a sampler is the latent, behind which lies the inversion itself."""
    return name in ("latent_image", "latent", "samples")


def _sampler_after(prompt: Prompt, node_id: str | None) -> str | None:
    """The first node behind another that samples."""
    after = graph.downstream(prompt, node_id) if node_id in prompt else ()
    return next((n for n in after if {"sampler_name", "sampler"} & set(prompt[n]["inputs"])), None)


def _nearest(prompt: Prompt, sampler: str, name: str) -> Any:
    """The value of the first input `name` on the way up from a sampler."""
    return _first(prompt, graph.upstream(prompt, sampler, _is_picture), name)


def _first(prompt: Prompt, nodes: Iterable[str], name: str) -> Any:
    """The value of the first input `name` that one of the nodes has."""
    holder = next((n for n in nodes if name in prompt[n]["inputs"]), None)
    return None if holder is None else graph.value_of(prompt, holder, name)


def _adds_noise(prompt: Prompt, sampler: str, node_id: str) -> bool:
    inputs = prompt[sampler]["inputs"]
    if "noise" in inputs:
        source = graph.link_of(prompt, sampler, "noise")
        return source not in (None, node_id) and prompt[source]["class_type"] == "RandomNoise"
    return graph.value_of(prompt, sampler, "add_noise") not in ("disable", False) if "add_noise" in inputs else True
