"""Runs with several noises as far as some step, the best of which goes on to the end.

Which is best is read from the run's own attention maps (`ebca_core.one_place`): a run whose words each have one place.
Every try is a run of its own, which ends at the step by an exception where another is better. The images of a batch are
sampled one after another, so that each of them is bit for bit what ComfyUI makes of its noise, seed and prompt alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ...ebca_core import one_place_score
from ..node_messages import show_on_node
from ..runtime import notices
from ..runtime.settings import KEY, Reroll, Settings
from ..trace.object_maps import object_maps
from ..trace.recorder import MapWatch, errors_are_logged
from ..trace.trace_record import joined, matches_fingerprint
from .single_image import LAST_PLACE, conds_of_image, noise_at, not_single, places_in_batch

if TYPE_CHECKING:
    from comfy.patcher_extension import WrapperExecutor

log = logging.getLogger("ebca")

#: callback(step, x0, x, total_steps) of ComfyUI's sampling nodes.
Callback = Callable[[int, Tensor, Tensor, int], None]
#: Key of what was kept, in the metadata of saved images.
REROLL_KEY = f"{KEY}_reroll"
#: Seeds have 64 bits.
SEEDS = 2**64


class TryEnds(comfy.model_management.InterruptProcessingException):
    """Ends a run that is not kept. Code that lets an interrupt by the user pass lets this pass too."""


@dataclass(frozen=True)
class Kept:
    """What was kept of an image: the run with `seed`, at `batch_index` in its batch. scores: of the tries, in order."""

    seed: int
    batch_index: int
    scores: Sequence[float | None]

    def __str__(self) -> str:
        scores = ", ".join("unread" if score is None else f"{score:.2f}" for score in self.scores)
        return f"seed {self.seed}, scores {scores}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, which have no NaN."""
        scores = [None if score is None or math.isnan(score) else score for score in self.scores]
        return {"seed": self.seed, "batch_index": self.batch_index, "scores": scores}


@dataclass(frozen=True, eq=False)
class RunsOfImage:
    """The runs of one image of a batch, each with the noise of another seed. noise: one like it."""

    executor: WrapperExecutor
    conds: Mapping[str, Sequence[dict]]
    noise: Tensor
    batch_index: int
    seed: int
    latent: Tensor
    mask: Tensor | None
    sampler: Any
    disable_pbar: bool
    further: Mapping[str, Any]

    def seed_of(self, attempt: int) -> int:
        return (self.seed + attempt) % SEEDS

    def sample(self, attempt: int, sigmas: Tensor, callback: Callback) -> Tensor:
        """One run, as ComfyUI samples this image alone with the seed of this try."""
        seed = self.seed_of(attempt)
        self.executor.class_obj.conds = {role: list(map(dict, entries)) for role, entries in self.conds.items()}
        noise = noise_at(self.batch_index, seed, self.noise)
        return self.executor(
            noise, self.latent, self.sampler, sigmas, self.mask, callback, self.disable_pbar, seed, **self.further
        )


def sample_rerolled(
    executor: WrapperExecutor,
    settings: Settings,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Callback | None = None,
    disable_pbar: bool = False,
    seed: int | None = None,
    **further: Any,
) -> Tensor:
    """A guider's outer_sample with the best of several noises. Raises ValueError for runs that cannot be repeated."""
    reroll, guider, images = settings.reroll, executor.class_obj, len(noise)
    if not noise.any() or len(sigmas) < 2:
        log.info(notices.REROLL_WITHOUT_NOISE)
        return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed, **further)
    _check_run(guider, images, further)
    _check_prompt(reroll, guider.conds)
    places = _checked_places(noise, seed)
    conds = [conds_of_image(guider.conds, image, images) for image in range(images)]
    watch, progress = MapWatch(), Progress(reroll, sigmas, images, callback)
    options, samples, kept, records = guider.model_options["transformer_options"], [], [], []
    is_video = noise.ndim == 5 and noise.shape[2] > 1
    if "latent_shapes" in further:
        further["latent_shapes"] = [(1, *noise.shape[1:])]
    try:
        for image, place in enumerate(places):
            options[KEY] = settings.of_image(image, watch, is_video)
            one = slice(image, image + 1)
            mask = None if denoise_mask is None else denoise_mask[one]
            runs = RunsOfImage(
                executor, conds[image], noise, place, seed, latent_image[one], mask, sampler, disable_pbar, further
            )
            sample, attempt, scores = _best_of(reroll, runs, sigmas, watch, progress.of_image(image))
            samples.append(sample)
            kept.append(Kept(runs.seed_of(attempt), place, scores))
            records.append([trace.record for trace in settings.traces])
    finally:
        options[KEY] = settings
    progress.finish()
    _report(reroll, kept)
    for trace, of_images in zip(settings.traces, zip(*records, strict=True), strict=True):
        with errors_are_logged():
            trace.record = joined(of_images) if None not in of_images else None
    return torch.cat(samples)


def _best_of(
    reroll: Reroll, runs: RunsOfImage, sigmas: Tensor, watch: MapWatch, progress: Callable[..., Callback]
) -> tuple[Tensor, int, list[float | None]]:
    """The sample of the run that is kept, which try that was, and the scores of all that were judged."""
    judged_sigmas, scores = preview(sigmas, reroll.preview_steps), []
    for attempt in range(reroll.tries):
        judge = Judge(reroll, watch, scores, is_full=judged_sigmas is sigmas)
        watch.restart(is_open=judge.looks_next(-1, len(judged_sigmas) - 1))
        try:
            sample = runs.sample(attempt, judged_sigmas, progress(attempt, len(judged_sigmas) - 1, judge))
        except TryEnds:
            if judge.is_enough:
                break
            continue
        if judge.has_judged:
            return sample, attempt, scores
        log.warning(notices.REROLL_UNREAD)
        scores.append(None)
        if judge.is_full:
            return sample, attempt, scores
        break
    best = max(range(len(scores)), key=lambda attempt: _worth(scores[attempt]))
    watch.restart(is_open=False)
    return runs.sample(best, sigmas, progress(best, len(sigmas) - 1, None)), best, scores


def preview(sigmas: Tensor, steps: int) -> Tensor:
    """The sigmas of a run of fewer steps: some of those of the full run, from its first to its last."""
    if steps == 0 or steps >= len(sigmas) - 1:
        return sigmas
    return sigmas[torch.linspace(0, len(sigmas) - 1, steps + 1).round().long()]


def _worth(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score


@dataclass(eq=False)
class Judge:
    """Ends a run after its step at `at`, unless it is the one to keep.

    scores: of the tries so far, to which it adds this one's. is_full: whether the run could go on to its end.
    """

    reroll: Reroll
    watch: MapWatch
    scores: list[float | None]
    is_full: bool
    is_enough: bool = False
    has_judged: bool = field(default=False, init=False)

    def looks_next(self, step: int, total_steps: int) -> bool:
        """Whether the step after `step` is the one whose maps are read."""
        return not self.has_judged and step + 2 >= judged_steps(self.reroll, total_steps)

    def after_step(self, step: int, total_steps: int) -> None:
        """Raises TryEnds if the run is to end here."""
        if self.has_judged or step + 1 < judged_steps(self.reroll, total_steps):
            self.watch.is_open = self.looks_next(step, total_steps)
            return
        self.has_judged, self.watch.is_open = True, False
        score, earlier = self._score(), list(map(_worth, self.scores))
        self.scores.append(score)
        is_last = len(self.scores) == self.reroll.tries and _worth(score) >= max(earlier, default=-math.inf)
        self.is_enough = not self.scores[:-1] if score is None else score >= self.reroll.threshold
        if not (self.is_full and (self.is_enough or is_last)):
            raise TryEnds

    def _score(self) -> float | None:
        """The score of the maps; None, which is logged, where there are none."""
        with errors_are_logged(notices.REROLL_FAILED):
            maps = self.watch.maps()
            if maps is not None and maps.tokens >= self.reroll.tokens:
                return float(one_place_score(object_maps(maps, self.reroll.objects))[0])
        log.warning(notices.REROLL_UNREAD)
        return None


def judged_steps(reroll: Reroll, total_steps: int) -> int:
    """How many steps of a run come before it is judged."""
    return max(1, math.floor(reroll.at * total_steps + 0.5))


class Progress:
    """Shows all runs of all images as one: each image has its tries as far as they are judged, and one full run."""

    def __init__(self, reroll: Reroll, sigmas: Tensor, images: int, callback: Callback | None):
        self._callback = callback
        self._images = images
        self._tries = reroll.tries
        self._judged = judged_steps(reroll, len(preview(sigmas, reroll.preview_steps)) - 1)
        self._of_an_image = self._tries * self._judged + len(sigmas) - 1
        #: The last x0 and x of each image.
        self._last: dict[int, tuple[Tensor, Tensor]] = {}

    def of_image(self, image: int) -> Callable[..., Callback]:
        """A function that gives the callback of a run of this image: of(try, steps, judge)."""

        def callback_of(attempt: int, steps: int, judge: Judge | None) -> Callback:
            def callback(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
                self._last[image] = (x0, x)
                if self._callback is not None:
                    goes_on = judge is None or judge.has_judged
                    before = image * self._of_an_image + (self._tries if goes_on else attempt) * self._judged
                    done = step * steps // max(total_steps, 1)  # some samplers count calls of the model
                    self._callback(before + done, x0, x, self._images * self._of_an_image)
                if judge is not None:
                    judge.after_step(step, total_steps)

            return callback

        return callback_of

    def finish(self) -> None:
        """Hand on what the images of a batch have come to, as if they had been sampled together."""
        if self._callback is not None and self._images > 1 and len(self._last) == self._images:
            x0, x = (torch.cat(parts) for parts in zip(*self._last.values(), strict=True))
            total = self._images * self._of_an_image
            self._callback(total - 1, x0, x, total)


# --- which runs can be repeated ---


def _check_prompt(reroll: Reroll, conds: Mapping[str, Sequence[dict]]) -> None:
    """Raises ValueError unless a run has one positive prompt, of as many tokens as the node's."""
    positive = conds.get("positive", ())
    if len(positive) != 1 or "area" in positive[0]:
        what = "a positive prompt with an area" if len(positive) == 1 else f"{len(positive)} positive prompts"
        raise ValueError(
            f"EBCA Reroll reads the attention to one positive prompt of the whole image, but this run has {what}. "
            "Use one prompt without Conditioning Combine, areas and timestep ranges, or remove EBCA Reroll."
        )
    text = positive[0].get("cross_attn")
    if text is None or text.shape[1] != reroll.encoded_tokens:
        raise ValueError(
            f"The prompt of EBCA Reroll has {reroll.encoded_tokens} tokens, but the positive prompt of the sampler has "
            f"{'none' if text is None else text.shape[1]}. Connect one text to both."
        )
    if not matches_fingerprint(reroll.prompt, text[:1]):
        log.warning(notices.REROLL_OTHER_TEXT)


def _check_run(guider: Any, images: int, further: Mapping[str, Any]) -> None:
    """Raises ValueError for a run whose images cannot be sampled one by one."""
    if len(further.get("latent_shapes") or ()) > 1:
        raise ValueError("EBCA Reroll does not work with latents of a video and its sound. Remove EBCA Reroll.")
    if images > 1 and guider.model_options.get("context_handler") is not None:
        raise not_single("context windows let them depend on each other")


def _checked_places(noise: Tensor, seed: int | None) -> list[int]:
    """Where in the batch of the seed each image's noise is from. Raises ValueError for any other noise."""
    places = None if seed is None else places_in_batch(noise, seed)
    if places is None:
        raise ValueError(
            "EBCA Reroll draws fresh noise from the seeds after the sampler's, but this run's noise is not that of its "
            f"seed: another node has made or changed it, or its batch_index is {LAST_PLACE} or more. Use the noise of "
            "KSampler or RandomNoise, or remove EBCA Reroll."
        )
    return places


# --- the report ---


def _report(reroll: Reroll, kept: Sequence[Kept]) -> None:
    """Say on the node, in the log and in the metadata of saved images what was kept."""
    lines = [str(one) if len(kept) == 1 else f"image {image}: {one}" for image, one in enumerate(kept, 1)]
    text = " · ".join([f"kept {' · '.join(lines)}", *([reroll.remark] if reroll.remark else [])])
    log.info("EBCA Reroll: %s", text)
    with errors_are_logged(notices.REROLL_UNTOLD):
        show_on_node(reroll.node_id, text)
        _add_to_metadata(reroll.node_id, kept)


def _add_to_metadata(node_id: str | None, kept: Sequence[Kept]) -> None:
    """Add what was kept, and by which sampler, to the node in the graph that ComfyUI saves with images as `prompt`.

    The graph is that of the present run: the node itself may be of an earlier one, whose result ComfyUI reuses.
    """
    node, context = get_progress_state().dynprompt.get_original_prompt().get(node_id), get_executing_context()
    if node is not None:
        about, run = node.setdefault("_meta", {}), context and context.prompt_id
        # A graph that was read from an image, and sent again, has the entries of that run.
        earlier = [entry for entry in about.get(REROLL_KEY, []) if entry.get("prompt_id") == run]
        of_run = {"prompt_id": run, "sampler": context and context.node_id}
        about[REROLL_KEY] = [*earlier, *(of_run | one.to_dict() for one in kept)]
