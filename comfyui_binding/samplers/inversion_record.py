"""How a latent was inverted: carried in the LATENT, saved with it, compared with the sampler that comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import comfy.utils
import safetensors
import torch
from torch import Tensor

from ..runtime.settings import KEY
from . import workflow_graph as graph
from .workflow_graph import WorkflowPrompt

#: Key of an inversion in a LATENT, of its record in a file's metadata, and of that on a tensor that starts a run.
INVERSION_KEY = f"{KEY}_inversion"

#: Samplers whose steps down undo the inversion's steps up. ComfyUI's ddim is euler, but for the noise that it puts
#: outside a noise mask.
RETRACING = ("euler", "ddim")

#: What is said of a sampler that does not start from the noise of a flow-matching model's inversion.
STARTS_ELSEWHERE = (
    "does not start from the inverted noise: a run of a flow-matching model from sigma 1 does not read its latent. "
    "Wire the noise output of the inversion into SamplerCustomAdvanced."
)


@dataclass(frozen=True)
class InversionRecord:
    """How a latent was inverted. What the graph does not tell is empty."""

    family: str  # ComfyUI's name for it: SD15, SDXL, ...
    loaded: list[str]  # settings of the nodes that made the model, "CheckpointLoaderSimple.ckpt_name = x.safetensors"
    caption: str
    steps: int | None  # None and an empty scheduler where sigmas of unknown origin were wired in
    scheduler: str
    sigmas: list[float]  # falling, in the sampler's order
    regularisation: dict[str, float]
    fixed_point_iterations: int
    seed: int
    holds_noise: bool = False  # the samples are noise, as a flow-matching model's run from sigma 1 needs it

    def summary(self) -> str:
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
    """An inverted latent [b, c, (frames,) height, width], as a LATENT scales it, and how it was made.

    With `record.holds_noise`, the noise that starts a run there on an empty latent.
    """

    samples: Tensor
    record: InversionRecord

    def as_latent(self) -> dict[str, Any]:
        """The LATENT that carries it."""
        return {"samples": marked(self.samples, self.record), INVERSION_KEY: self}


def marked(tensor: Tensor, record: InversionRecord) -> Tensor:
    """The tensor, with its record for the run that it starts: of a LATENT or NOISE the sampler hands on no more."""
    setattr(tensor, INVERSION_KEY, record)
    return tensor


def inversion_of(latent: Mapping[str, Any]) -> Inversion:
    """The inversion that a LATENT carries. Raises ValueError for any other, and for one that was changed since."""
    inversion = latent.get(INVERSION_KEY)
    if inversion is None or inversion.samples is not latent["samples"]:
        raise ValueError(
            "The latent is not the output of EBCA Invert: "
            + ("another node has changed it." if inversion else "it was not inverted.")
            + " Connect EBCA Invert directly to this node; for other latents use core's Save Latent."
        )
    return inversion


# --- files ---


def save(path: Path, inversion: Inversion, other_metadata: Mapping[str, str]) -> None:
    """Write a file that core's Load Latent can read too; the record is in its metadata."""
    tensors = {"latent_tensor": inversion.samples.contiguous(), "latent_format_version_0": torch.tensor([])}
    record = json.dumps(asdict(inversion.record))
    comfy.utils.save_torch_file(tensors, str(path), metadata={**other_metadata, INVERSION_KEY: record})


def load(path: Path) -> Inversion:
    """Read what `save` wrote. Raises ValueError for any other file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            values = json.loads((file.metadata() or {}).get(INVERSION_KEY, "{}"))
            samples = file.get_tensor("latent_tensor") if values else None
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path.name} is not a file of EBCA Save Inversion and cannot be read: {error}. Choose another file."
        ) from None
    missing = [f.name for f in fields(InversionRecord) if f.name not in values and f.default is MISSING]
    if samples is None or missing:
        raise ValueError(
            f"{path.name} is not a file of EBCA Save Inversion: it has no record of an inversion"
            + (f" ({', '.join(missing)} missing)." if values else ".")
            + " Load other latents with core's Load Latent."
        )
    known = {f.name: values[f.name] for f in fields(InversionRecord) if f.name in values}
    return Inversion(samples.float(), InversionRecord(**known))


# --- what the graph tells ---


def loaded_by(prompt: WorkflowPrompt, node_id: str | None) -> list[str]:
    """The settings of the nodes that made the model wired to a node; EBCA's own, and what feeds these, are left out."""

    def follows(source: str, name: str) -> bool:
        return name == "model" or not _is_ours(prompt, source)

    return sorted(
        f"{prompt[source]['class_type']}.{name} = {value}"
        for source in _behind(prompt, node_id, "model", follows)
        for name, value in graph.widgets(prompt, source).items()
        if not _is_ours(prompt, source)
    )


def text_of(prompt: WorkflowPrompt, node_id: str | None, name: str) -> str:
    """All that is written in text inputs behind a node's wired CONDITIONING."""
    return " | ".join(text for source in _behind(prompt, node_id, name) for text in graph.texts(prompt, source))


def scheduled_by(prompt: WorkflowPrompt, node_id: str | None) -> tuple[int | None, str]:
    """The steps and the scheduler behind a node's wired sigmas."""
    behind = list(_behind(prompt, node_id, "sigmas"))
    steps, scheduler = _first(prompt, behind, "steps"), _first(prompt, behind, "scheduler")
    return steps if isinstance(steps, int) else None, scheduler if isinstance(scheduler, str) else ""


def without_names(record: InversionRecord) -> InversionRecord:
    """The record without what was read from the graph: file names and the caption."""
    return replace(record, loaded=[], caption="")


# --- do the nodes after it fit? ---


def model_mismatches(record: InversionRecord, family: str, loaded: list[str]) -> list[str]:
    """What differs between the model of the inversion and another."""
    if record.family != family:
        return [f"The inversion was made with a model of the family {record.family}, but this one is {family}."]
    if record.loaded and loaded and record.loaded != loaded:
        was, now = (sorted(set(a) - set(b)) for a, b in ((record.loaded, loaded), (loaded, record.loaded)))
        return [
            f"The model differs: it was made with {'; '.join(was) or 'nothing else'}, now with "
            f"{'; '.join(now) or 'nothing else'}."
        ]
    return []


def mismatches(record: InversionRecord, prompt: WorkflowPrompt, node_id: str | None) -> list[str]:
    """What keeps the samplers behind a node from retracing the node's inversion, as far as the graph tells."""
    samplers = graph.first_downstream(prompt, node_id, lambda node: _samples(prompt, node)) if node_id in prompt else ()
    found = [problem for sampler in samplers for problem in _sampler_mismatches(record, prompt, sampler, node_id)]
    return list(dict.fromkeys(found))


def run_mismatches(noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor) -> list[str]:
    """What keeps a run from retracing the inversion that it starts from; nothing for any other run.

    ComfyUI does not run a node again for a change behind it, so EBCA Invert misses what is changed later.
    """
    inverted = getattr(latent_image, INVERSION_KEY, None)
    record = inverted or getattr(noise, INVERSION_KEY, None)
    if record is None:
        return []
    found = []
    walked, steps = torch.tensor(record.sigmas), len(sigmas) - 1  # fewer steps: the first stage of a run in two
    if steps >= len(walked) or not torch.allclose(sigmas[:-1].cpu().float(), walked[:steps], rtol=1e-3, atol=1e-4):
        found.append(
            f"The inversion has {len(walked) - 1} steps up to sigma {walked[0]:.4g}, but the sampler has {steps} "
            f"steps from {float(sigmas[0]):.4g}, with other sigmas. Use the same steps and scheduler, from the start."
        )
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
    if name != "sample_euler":
        name = name.removeprefix("sample_")
        found.append(f"The sampler {name} does not reverse the inversion: use {' or '.join(RETRACING)}.")
    if record.holds_noise and not hasattr(noise, INVERSION_KEY):
        found.append(f"The sampler {STARTS_ELSEWHERE}")
    elif not record.holds_noise and inverted and noise.count_nonzero():
        found.append("The sampler adds noise to the inverted latent: switch add_noise off.")
    return found


def _sampler_mismatches(record: InversionRecord, prompt: WorkflowPrompt, sampler: str, node_id: str) -> Iterator[str]:
    here = f"{prompt[sampler]['class_type']} (node {sampler})"
    guided = list(graph.upstream(prompt, sampler, _leads_to_settings))
    nearest = partial(_first, prompt, guided)
    caption = _prompt_of(prompt, guided, "positive", "conditioning")
    now = {"steps": nearest("steps"), "scheduler": nearest("scheduler"), "the caption": caption}
    for what, was in {"steps": record.steps, "scheduler": record.scheduler, "the caption": record.caption}.items():
        if was and now[what] and was != now[what]:
            yield f"The inversion was made with {what} {was}, but {here} has {now[what]}."
    if _is_edited(prompt, sampler) and nearest("cfg") not in (None, 1, 1.0):
        negative = _prompt_of(prompt, guided, "negative")
        if record.caption and negative is not None and negative != record.caption:
            yield (
                f"The negative prompt of {here} is '{negative}'. Connect the caption of the inversion to it too. "
                "Otherwise guidance works against the image, and edits fail."
            )
    if (nearest("start_at_step") or 0) > 0 or nearest("denoise") not in (None, 1, 1.0):
        yield f"{here} starts in the middle of the run, but the inversion covers all of it. Start at step 0, denoise 1."
    name = nearest("sampler_name") or _sampler_class(prompt, sampler)
    if name and name not in RETRACING:
        yield (
            f"{here} has the sampler {name}, which does not reverse the inversion: use "
            f"{' or '.join(RETRACING)}."
        )
    if record.holds_noise:
        if graph.link_of(prompt, sampler, "noise") != node_id:
            yield f"{here} {STARTS_ELSEWHERE}"
    elif _adds_noise(prompt, sampler, node_id):
        yield (
            f"{here} adds noise to the inverted latent. Use KSampler (Advanced) with add_noise off, or "
            "SamplerCustomAdvanced with DisableNoise or this node's own noise."
        )


def _is_ours(prompt: WorkflowPrompt, node_id: str) -> bool:
    return prompt[node_id]["class_type"].startswith("EBCA")


def _behind(
    prompt: WorkflowPrompt,
    node_id: str | None,
    name: str,
    follows: Callable[[str, str], bool] = lambda node, name: True,
) -> Iterator[str]:
    """The nodes that a node's input depends on."""
    return graph.upstream(prompt, graph.link_of(prompt, node_id, name), follows) if node_id in prompt else iter(())


def _first(prompt: WorkflowPrompt, nodes: Iterable[str], name: str) -> Any:
    """The value of the first input `name` that one of the nodes has."""
    holder = next((node for node in nodes if name in graph.inputs_of(prompt, node)), None)
    return None if holder is None else graph.value_of(prompt, holder, name)


def _samples(prompt: WorkflowPrompt, node_id: str) -> bool:
    return bool({"sampler_name", "sampler"} & set(graph.inputs_of(prompt, node_id)))


def _leads_to_settings(node_id: str, name: str) -> bool:
    """Not to the latent and the noise, behind which lies the inversion itself, with settings of its own."""
    return name not in ("latent_image", "latent", "samples", "noise", "model")


def _prompt_of(prompt: WorkflowPrompt, nodes: Iterable[str], *names: str) -> str | None:
    """The text behind the first input of these names that one of the nodes has, None where there is none."""
    named = ((node, name) for node in nodes for name in names if name in graph.inputs_of(prompt, node))
    return next((text_of(prompt, node, name) for node, name in named), None)


def _is_edited(prompt: WorkflowPrompt, sampler: str) -> bool:
    """Whether the model that a sampler or its guider runs has passed EBCA Compose."""
    passed = graph.upstream(prompt, sampler, lambda node, name: name in ("guider", "model"))
    return any(prompt[node]["class_type"] == "EBCACompose" for node in passed)


def _sampler_class(prompt: WorkflowPrompt, sampler: str) -> str | None:
    """The class of the node that makes a SAMPLER which has no name."""
    source = graph.link_of(prompt, sampler, "sampler")
    return prompt[source]["class_type"] if source and "sampler_name" not in graph.inputs_of(prompt, source) else None


def _adds_noise(prompt: WorkflowPrompt, sampler: str, node_id: str) -> bool:
    inputs = graph.inputs_of(prompt, sampler)
    if "noise" in inputs:
        source = graph.link_of(prompt, sampler, "noise")
        return source not in (None, node_id) and prompt[source]["class_type"] == "RandomNoise"
    if "add_noise" in inputs:
        return graph.value_of(prompt, sampler, "add_noise") in ("enable", True)
    return prompt[sampler]["class_type"] == "KSampler"
