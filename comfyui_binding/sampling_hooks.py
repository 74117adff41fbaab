"""The ComfyUI wrappers: a sampling run, and a call of the model in it.

The wrappers are stateless; the `Run` and the `DenoiserCall` travel in `transformer_options`. The wrapper of the
network's forward pass belongs to the architecture.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY
from torch import Tensor

from .node_messages import show_on_node
from .runtime import notices
from .runtime.batch_layout import latent_shape, make_uuids_unique
from .runtime.denoiser_call import DenoiserCall, EditsRefused
from .runtime.notices import Notices
from .runtime.sampling_run import Run
from .runtime.settings import CALL_KEY, KEY, RUN_KEY, Settings
from .runtime.timeline import Timeline
from .runtime.torch_compile import force_eager
from .samplers.inversion_record import INVERSION_KEY, run_mismatches
from .samplers.reroll import sample_rerolled
from .trace.recorder import errors_are_logged, recording
from .wrapped_arguments import APPLY_MODEL, TRANSFORMER_OPTIONS, by_position

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger("ebca")

#: Pixels of an image in one position of its latent, where ComfyUI does not say.
PIXELS_OF_A_LATENT = 8


def install(model: ModelPatcher) -> None:
    """Register the wrappers on a model, once however many EBCA nodes it passes."""
    for kind, wrapper in _all_wrappers(model).items():
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)
    if not model.get_callbacks(CallbacksMP.ON_PRE_RUN, KEY):
        model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, warn_of_removed_wrappers)


def _all_wrappers(model: ModelPatcher) -> dict[str, Callable]:
    settings = model.model_options.get("transformer_options", {}).get(KEY)
    return {**WRAPPERS, **(settings.architecture.wrappers if settings is not None else {})}


def warn_of_removed_wrappers(model: ModelPatcher) -> None:
    """ON_PRE_RUN callback: some packs replace a model's wrappers, or its options, without keeping those of others.

    What is left then does nothing.
    """
    has_settings = KEY in model.model_options.get("transformer_options", {})
    if not has_settings or not all(model.get_wrappers(kind, KEY) for kind in _all_wrappers(model)):
        log.warning(notices.HOOKS_REMOVED)


def outer_sample(executor: WrapperExecutor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """A sampling run as its node asks for it: warn where it does not fit the inversion that it starts from.

    Its traces are given the latent that comes out.
    """
    settings = _settings(executor.class_obj.model_options)
    if settings is None:
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    for problem in run_mismatches(noise, latent_image, sampler, sigmas):
        log.warning(problem)
    if _continues_a_stage(settings, executor.class_obj.model_patcher, noise, latent_image, sigmas):
        log.info(notices.EDITS_CONTINUE)
    sample = executor if settings.reroll is None else partial(sample_rerolled, executor, settings)
    samples = sample(noise, latent_image, sampler, sigmas, *args, **kwargs)
    for trace in settings.traces:
        with errors_are_logged():
            trace.set_result(samples)
    return samples


def sampler_sample(
    executor: WrapperExecutor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
    *args, **kwargs,
):  # fmt: skip
    """A sampling run: start with fresh state, which is released with the run's own options."""
    options = extra_args["model_options"]["transformer_options"]
    settings = _settings(extra_args["model_options"])
    if settings is None:
        return executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    make_uuids_unique(guider.conds)
    entry = next((entry for entries in guider.conds.values() for entry in entries), {})
    shape = latent_shape(noise, {name: one.cond for name, one in entry.get("model_conds", {}).items()})
    _inform_of_resized_masks(settings, guider.inner_model, shape)
    if denoise_mask is not None and settings.needs_noise_mask:
        settings = settings.with_noise_mask(_picture_mask(denoise_mask, shape).clamp(0, 1))
    warned = None if settings.watch is None else settings.watch.warned
    run = Run(settings, guider.inner_model.model_sampling, guider.conds, shape, warned)
    if settings.needs_noise_mask:
        run.notices.warn_once(notices.NO_NOISE_MASK)
    options[RUN_KEY] = run
    with recording(run, sigmas.tolist()):
        # with a patch of another node the layers' contexts may have other lengths
        run.match_token_weights(lengths_known="attn2_patch" not in options.get("patches", {}))
        samples = executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    run.notices.settle()
    is_idle = not (settings.updates or settings.edits)  # there is a trace alone, or the noise mask is black
    is_installed = _has_wrappers(options, settings)  # else there was a warning before the run
    if is_installed and run.silently_bypassed and len(sigmas) > 1 and (settings.traces or not is_idle):
        run.notices.warn_once(notices.NO_EFFECT)
    if is_installed and run.was_never_on and not is_idle:
        run.notices.inform_once(notices.NEVER_ON)  # no warning: of a run in two stages, one may well lie outside
    _show_summary(run)
    return samples


def _settings(model_options: dict[str, Any]) -> Settings | None:
    """EBCA's settings; None where another node has replaced the options that they were in."""
    return model_options.get("transformer_options", {}).get(KEY)


def _has_wrappers(options: dict[str, Any], settings: Settings) -> bool:
    """Whether EBCA's wrappers are among a run's."""
    found = options.get("wrappers", {})
    return all(KEY in found.get(kind, {}) for kind in (WrappersMP.APPLY_MODEL, *settings.architecture.wrappers))


def _inform_of_resized_masks(settings: Settings, model: torch.nn.Module, latent: Sequence[int]) -> None:
    """Say, once a MODEL, which masks have another size than the image: it may be a tile of the one they are for."""
    pixels = getattr(getattr(model, "latent_format", None), "spacial_downscale_ratio", PIXELS_OF_A_LATENT)
    height, width = latent[-2:]
    for mask in settings.masks if len(latent) > 3 else ():
        size, image = tuple(mask.shape[-2:]), (height * pixels, width * pixels)
        if size != (height, width) and not is_mask_of(size, image):
            Notices(settings.logged).inform_once(notices.mask_resized(size, image))


def _continues_a_stage(settings: Settings, model: ModelPatcher, noise: Tensor, latent_image: Tensor, sigmas) -> bool:
    """Whether a run goes on with an image whose edits have moved their contexts in an earlier run."""
    if not any(edit.is_updated for edit in settings.edits) or hasattr(latent_image, INVERSION_KEY):
        return False
    timeline = Timeline(settings, model.get_model_object("model_sampling").percent_to_sigma)
    return timeline.is_on_before(float(sigmas[0])) and not noise.any() and bool(latent_image.any())


def is_mask_of(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Whether a mask's size [height, width] is that of an image or, in proportion, a smaller one."""
    (rows, columns), (height, width) = mask, image
    return rows <= height and columns <= width and abs(rows * width - columns * height) <= max(height, width)


def apply_model(executor: WrapperExecutor, *args, **kwargs):
    """A call of the model: decide whether anything is on, and keep compiled code from running without EBCA."""
    args, kwargs = by_position(APPLY_MODEL, args, kwargs)
    options = args[TRANSFORMER_OPTIONS]
    if KEY not in options:  # another node calls the model with options of its own
        return executor(*args, **kwargs)
    run = options.get(RUN_KEY) or _run_of_a_call(executor.class_obj, options)
    run.calls += 1
    if args[0].shape[0] == 0:  # empty batch: ComfyUI raises its own error
        return executor(*_with_options(args, _without_network_wrapper(options)), **kwargs)
    sigma = float(args[1].flatten()[0]) if run.timeline.needs_sigma else None
    call = DenoiserCall(run, sigma, args[1].flatten()[:1], latent_shape(args[0], kwargs)[-2:])
    if run.is_refused or not (call.is_active or run.is_recording):
        return executor(*_with_options(args, _without_network_wrapper(options)), **kwargs)
    run.active_calls += call.is_active
    run.note_on(call.updates)
    architecture, model = run.settings.architecture, executor.class_obj
    try:
        with _eager(run, model, options), architecture.intercept(call, model, args, kwargs):
            out = executor(*_with_options(args, {**options, CALL_KEY: call}), **kwargs)
    except EditsRefused as refusal:
        run.is_refused = True
        run.notices.bypassed(str(refusal))
        return executor(*_with_options(args, _without_network_wrapper(options)), **kwargs)
    call.commit()
    return out


WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.SAMPLER_SAMPLE: sampler_sample,
    WrappersMP.APPLY_MODEL: apply_model,
}


def _picture_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """The noise mask of a latent of this shape -> [b, height, width]; of a video, [frames, height, width] of the first.

    mask: of the latent's shape, or packed in one row of values, [b, 1, n], as a picture with its sound is.
    """
    if mask.ndim != len(shape):
        mask = mask[..., : math.prod(shape[1:])].reshape(-1, *shape[1:])
    if mask.ndim < 5:
        return mask[:, 0] if mask.ndim == 4 else mask[:, :1]  # of sound alone, time is its width
    return mask[:, 0, 0] if mask.shape[2] == 1 else mask[0, 0]


def _show_summary(run: Run) -> None:
    """Show on the nodes of the context updates what they did. An error here must not stop the run."""
    nodes = {update.node_id for update in run.settings.updates if update.node_id is not None}
    if not nodes:
        return
    try:
        for node_id in nodes:
            show_on_node(node_id, run.summary(node_id))
    except Exception:
        log.exception("EBCA could not show on its node what the context update did; the image is not affected.")


def _run_of_a_call(model: torch.nn.Module, options: dict[str, Any]) -> Run:
    """A run for a single call: another node calls the model without the options of the run."""
    settings = options[KEY]
    run = Run(settings, model.model_sampling, warned=settings.logged)
    if settings.needs_noise_mask:
        run.notices.warn_once(notices.CALL_WITHOUT_RUN_MASK)
    if any(edit.is_updated for edit in settings.edits):
        run.notices.warn_once(notices.CALL_WITHOUT_RUN_EDITS)
    if settings.traces:
        run.notices.warn_once(notices.CALL_WITHOUT_RUN_TRACE)
    return run


def _with_options(args: tuple, options: dict[str, Any]) -> list:
    return [*args[:TRANSFORMER_OPTIONS], options, *args[TRANSFORMER_OPTIONS + 1 :]]


def _without_network_wrapper(options: dict[str, Any]) -> dict[str, Any]:
    """So that compiled code is traced, and runs, as if EBCA were not there."""
    wrappers = options["wrappers"]
    others = {key: value for key, value in wrappers.get(WrappersMP.DIFFUSION_MODEL, {}).items() if key != KEY}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: others}}


def _eager(run: Run, model: torch.nn.Module, options: dict[str, Any]):
    """force_eager for a compiled model, else nothing."""
    if not _is_compiled(model, options, run):
        return nullcontext()
    run.notices.warn_once(notices.TORCH_COMPILE)
    return force_eager


def _is_compiled(model: torch.nn.Module, options: dict[str, Any], run: Run) -> bool:
    """Whether core compiles the network when it is called, or another pack has left compiled modules in it."""
    if COMPILE_KEY in options["wrappers"].get(WrappersMP.APPLY_MODEL, {}):
        return True
    call = min(run.calls, 2)  # a pack may compile when it is called first
    return run.cache.cached(("compiled parts", model, call), lambda: _has_compiled_parts(model))


def _has_compiled_parts(model: torch.nn.Module) -> bool:
    return any(
        module._compiled_call_impl
        or "_orig_mod" in module._modules
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )
