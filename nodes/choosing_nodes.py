"""EBCA Rank and EBCA Reroll: the image in which each concept of the prompt has one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..comfyui_binding.model_patch import check_reroll, with_reroll
from ..comfyui_binding.node_messages import show_on_node
from ..comfyui_binding.runtime.settings import Reroll
from ..comfyui_binding.text.scored_concepts import ScoredConcepts, describe, scored_concepts, split_concepts
from ..comfyui_binding.text.tokenized_prompt import encode
from ..comfyui_binding.trace.object_maps import object_maps
from ..comfyui_binding.trace.trace_record import Trace, TraceRecord, fingerprint
from ..comfyui_binding.trace.word_positions import maps_of_prompt
from ..ebca_core import claims, one_place_score, peaks
from ..plots.rank_sheet import RankedPicture, rank_sheet
from .file_inputs import HIDDEN
from .input_validation import first_error
from .shared_inputs import (
    CLIP_TOOLTIP,
    LOOK,
    MODEL_TOOLTIP,
    PROMPT,
    SCORED_CONCEPTS_TOOLTIP,
    TraceType,
    concept_inputs,
    own_id,
)
from .trace_nodes import drawn, warn_of_other_text

NO_LATENTS = "EBCA Rank: no latent is connected, so it has none to give. Connect the sampler's latent to EBCA Rank."


class EBCARank(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCARank",
            display_name="EBCA Rank",
            category=LOOK,
            description="Sorts the images of a prompt with several concepts, best first: those come first in which the "
            "words of each concept were read in one place. Needs an EBCA Trace with attention_maps before the sampler.",
            search_aliases=["best of", "choose", "sort", "select", "score", "pick image", "cherry pick", "batch"],
            inputs=[
                TraceType.Input("trace", tooltip="From the EBCA Trace of the run, with attention_maps enabled."),
                io.Image.Input("image", tooltip="The decoded images of the traced run, one batch or a list."),
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                *concept_inputs(SCORED_CONCEPTS_TOOLTIP),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="The output of the sampler that ran with trace, to sort it too and to check that the trace "
                    "belongs to these images.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All images, best first."),
                io.Latent.Output(display_name="latents", tooltip="The latents in the same order."),
                io.Image.Output(display_name="best_image", tooltip="The first image alone."),
                io.Latent.Output(display_name="best_latent", tooltip="Its latent, for a second pass or an upscaler."),
                io.String.Output(display_name="scores", tooltip="The order with the scores, as a table."),
                io.Image.Output(
                    display_name="sheet",
                    tooltip="Each image with the maps of its concepts, their peaks marked by rings.",
                ),
            ],
            hidden=HIDDEN,
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, prompt=None, concepts=None):
        values = dict(prompt=_only(prompt), concepts=_only(concepts))
        return first_error(cls, values, (split_concepts, "prompt", "concepts"))

    @classmethod
    def execute(cls, trace, image, clip, prompt, concepts, latent=None) -> io.NodeOutput:
        images, latents = _images(image), None if latent is None else _latents(latent)
        records = _records(trace, len(images), None if latents is None else latents["samples"])
        text = _one(prompt, "prompt")
        scored = scored_concepts(clip[0], text, _one(concepts, "concepts"))
        for record in records:
            warn_of_other_text("EBCA Rank", record, clip[0], text)
        objects = torch.cat([_objects(record, scored) for record in records])
        scores = one_place_score(objects)
        order = scores.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
        best, places, values = order[:1], order.tolist(), scores.tolist()
        show_on_node(own_id(cls), _summary(places[0], values, scored))
        sheet = drawn(_sheet, images[order], places, values, claims(objects)[order], list(scored.places))
        missing = ExecutionBlocker(NO_LATENTS)
        return io.NodeOutput(
            images[order],
            missing if latents is None else _chosen(latents, order),
            images[best],
            missing if latents is None else _chosen(latents, best),
            _table(places, values, scored),
            sheet,
            ui=ui.PreviewImage(sheet, cls=cls),
        )


class EBCAReroll(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAReroll",
            display_name="EBCA Reroll",
            category=PROMPT,
            description="For prompts with several concepts. Tries several noises, drops a run half-way if the words of "
            "a concept are read in several places, and finishes the best one. The seed that was kept is shown on the "
            "node and saved with the image, which can be made again without the node.",
            search_aliases=["best of", "retry", "seed search", "seed selection", "reject", "restart", "choose seed"],
            inputs=[
                io.Model.Input("model", tooltip=f"{MODEL_TOOLTIP} Other EBCA nodes can come before or after this one."),
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                *concept_inputs(SCORED_CONCEPTS_TOOLTIP),
                io.Float.Input(
                    "at",
                    default=0.5,
                    min=0.05,
                    max=1.0,
                    step=0.01,
                    tooltip="When a run is judged: a share of the sampler's steps. Earlier costs less, later is surer.",
                ),
                io.Int.Input(
                    "tries",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="How many noises are tried: of the sampler's seed, of the seed after it, and so on. Each "
                    "of them costs the steps before at, for each image of a batch. 1 disables the node.",
                ),
                io.Combo.Input(
                    "policy",
                    options=["best", "threshold"],
                    default="best",
                    tooltip="best: all noises are tried, and the one with the highest score is kept. threshold: the "
                    "first whose score reaches threshold, or the best if none does.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Of the policy threshold. The node shows the scores after each run; 1 is the highest.",
                ),
                io.Int.Input(
                    "preview_steps",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    advanced=True,
                    tooltip="Judge the noises on runs of so few steps, and sample the best one in full. 0: on runs of "
                    "the sampler's own steps.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="Connect to the sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, prompt=None, concepts=None, at=None, tries=None, threshold=None, preview_steps=None
    ):
        values = dict(
            prompt=prompt, concepts=concepts, at=at, tries=tries, threshold=threshold, preview_steps=preview_steps
        )
        checks = [(split_concepts, "prompt", "concepts")] if tries != 1 else []
        return first_error(cls, values, *checks)

    @classmethod
    def execute(
        cls, model, clip, prompt, concepts, at, tries, policy, threshold=0.0, preview_steps=0
    ) -> io.NodeOutput:
        if tries == 1:
            show_on_node(own_id(cls), OFF)
            return io.NodeOutput(model)
        check_reroll(model)
        scored = scored_concepts(clip, prompt, concepts)
        show_on_node(own_id(cls), " · ".join([f"scored: {', '.join(scored.places)}", *_left_out(scored)]))
        text = encode(clip, prompt)[:1]
        reroll = Reroll(
            list(scored.places.values()),
            scored.prompt.length,
            text.shape[1],
            fingerprint(text),
            at,
            tries,
            threshold if policy == "threshold" else math.inf,
            preview_steps,
            " · ".join(_left_out(scored)),
            own_id(cls),
        )
        return io.NodeOutput(with_reroll(model, reroll))


#: What EBCA Reroll says where it does nothing.
OFF = "off: tries is 1"


def _left_out(scored: ScoredConcepts) -> list[str]:
    """What is not scored, as a part of a line."""
    return [f"not scored: {describe(scored.left_out)}"] if scored.left_out else []


def _only(values: Any) -> Any:
    """The value of a widget, which comes in a list of one where a node takes lists; None for several."""
    return values if not isinstance(values, list | tuple) else values[0] if len(values) == 1 else None


def _one(texts: Sequence[str], name: str) -> str:
    """The one text of all runs. Raises ValueError for several."""
    if len(set(texts)) > 1:
        raise ValueError(
            f"{len(set(texts))} different texts arrived for {name}, but the scores of different prompts cannot be "
            "compared. Rank the images of each prompt by themselves."
        )
    return texts[0]


def _images(batches: Sequence[Tensor]) -> Tensor:
    """All images [b, height, width, 3]. Raises ValueError unless they have one size."""
    _check_one_size("The images", {tuple(batch.shape[1:]) for batch in batches})
    images = torch.cat(list(batches))
    if images.ndim != 4 or images.shape[-1] < 3:
        raise ValueError(
            f"image has the shape {list(images.shape)} instead of [batch, height, width, 3]. Connect a VAE Decode."
        )
    return images


def _check_one_size(what: str, sizes: set[tuple[int, ...]]) -> None:
    if len(sizes) > 1:
        listed = ", ".join(" x ".join(map(str, size)) for size in sorted(sizes))
        raise ValueError(f"{what} have different sizes: {listed}. Rank those of one size by themselves.")


def _latents(latents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The latents of all runs as one; of several runs, without what says which of a batch each of them is."""
    if any(one["samples"].is_nested for one in latents):
        raise ValueError("latent holds video and sound in one, which cannot be ranked. Leave latent unconnected.")
    if len(latents) == 1:
        count = len(latents[0]["samples"])
        return {**latents[0], "batch_index": latents[0].get("batch_index") or list(range(count))}
    _check_one_size("The latents", {tuple(one["samples"].shape[1:]) for one in latents})
    kept = {key: value for key, value in latents[0].items() if key not in ("batch_index", "noise_mask")}
    joined = {**kept, "samples": torch.cat([one["samples"] for one in latents])}
    masks = [_rows(one["noise_mask"], len(one["samples"])) for one in latents if "noise_mask" in one]
    return {**joined, "noise_mask": torch.cat(masks)} if len(masks) == len(latents) else joined


def _rows(mask: Tensor, count: int) -> Tensor:
    """A noise mask for each of so many latents: fewer repeat."""
    return mask[torch.arange(count) % len(mask)]


def _chosen(latents: Mapping[str, Any], order: Tensor) -> dict[str, Any]:
    """Some latents of a batch in an order."""
    count = len(latents["samples"])
    chosen = {**latents, "samples": latents["samples"][order]}
    if "noise_mask" in latents:
        chosen["noise_mask"] = _rows(latents["noise_mask"], count)[order]
    if "batch_index" in latents:
        chosen["batch_index"] = [latents["batch_index"][place] for place in order.tolist()]
    return chosen


def _records(traces: Sequence[Trace], images: int, samples: Tensor | None) -> list[TraceRecord]:
    """The records of all runs, in the order of their images. Raises ValueError if they are of other runs."""
    records = [trace.recorded() for trace in traces]
    traced = [record.maps[0].images if record.maps else 0 for record in records]
    if len({id(trace) for trace in traces}) < len(traces) or (all(traced) and sum(traced) != images):
        raise ValueError(
            f"{images} images arrived, but the trace has {sum(traced)}: a trace holds the last run only, and ComfyUI "
            "runs a sampler once for each value of a list. Make the images in one run, as a batch (batch_size of the "
            "empty latent), or give every run an EBCA Trace of its own."
        )
    if samples is not None:
        if len(samples) != images:
            raise ValueError(
                f"latent has {len(samples)} latents, but {images} images arrived. Connect the sampler whose output "
                "VAE Decode has decoded."
            )
        for trace, part in zip(traces, samples.split(traced) if all(traced) else [samples]):
            trace.recorded_with(part)
    return records


def _objects(record: TraceRecord, scored: ScoredConcepts) -> Tensor:
    """The maps of the scored concepts in one run, [b, i, rows, columns]."""
    return object_maps(maps_of_prompt(record, scored.prompt), list(scored.places.values()))


def _table(order: Sequence[int], scores: Sequence[float], scored: ScoredConcepts) -> str:
    rows = [f"{place:<7}{number + 1:<7}{scores[number]:.3f}" for place, number in enumerate(order, 1)]
    return "\n".join(["place  image  score", *rows, f"scored: {', '.join(scored.places)}", *_left_out(scored)])


def _summary(best: int, scores: Sequence[float], scored: ScoredConcepts) -> str:
    return " · ".join([f"best: image {best + 1} of {len(scores)}, score {scores[best]:.2f}", *_left_out(scored)])


def _sheet(images: Tensor, order: Sequence[int], scores: Sequence[float], maps: Tensor, names: Sequence[str]) -> Tensor:
    """images [b, height, width, 3] and maps [b, i, rows, columns], best first."""
    ranked = [
        RankedPicture(f"{place}: image {number + 1}, {scores[number]:.2f}", *parts)
        for place, (number, *parts) in enumerate(zip(order, images, maps, peaks(maps).tolist(), strict=True), 1)
    ]
    return rank_sheet(ranked, names)


NODES = [EBCARank, EBCAReroll]
