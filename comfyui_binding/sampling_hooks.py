"""The ComfyUI wrappers: a sampling run, and a call of the model in it.

The wrappers are stateless; the `Run` and the `DenoiserCall` travel in `transformer_options`. The wrapper of the
network's forward pass belongs to the architecture.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from .runtime import notices
from .runtime.batch_layout import make_uuids_unique
from .runtime.denoiser_call import DenoiserCall
from .runtime.sampling_run import Run
from .runtime.settings import CALL_KEY, KEY, RUN_KEY
from .runtime.torch_compile import force_eager
from .samplers.inversion_record import run_mismatches
from .trace.recorder import recording

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger("ebca")

#: Position among the arguments of BaseModel.apply_model.
TRANSFORMER_OPTIONS = 5


def install(model: ModelPatcher) -> None:
    """Register the wrappers on a model, once however many EBCA nodes it passes."""
    architecture = model.model_options["transformer_options"][KEY].architecture
    for kind, wrapper in {**WRAPPERS, **architecture.wrappers}.items():
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)


def outer_sample(executor: WrapperExecutor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """A sampling run as its node asks for it: warn where it does not fit the inversion that it starts from.

    Its traces are given the latent that comes out.
    """
    for problem in run_mismatches(noise, latent_image, sampler, sigmas):
        log.warning(problem)
    samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    for trace in executor.class_obj.model_options["transformer_options"][KEY].traces:
        trace.set_result(samples)
    return samples


def sampler_sample(
    executor: WrapperExecutor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
    *args, **kwargs,
):  # fmt: skip
    """A sampling run: start with fresh state, which is released with the run's own options."""
    options = extra_args["model_options"]["transformer_options"]
    make_uuids_unique(guider.conds)
    settings = options[KEY]
    if denoise_mask is not None and settings.needs_noise_mask:
        settings = settings.with_noise_mask(denoise_mask[:, 0])
    run = Run(settings, guider.inner_model.model_sampling, guider.conds, noise.shape)
    if settings.needs_noise_mask:
        run.notices.warn_once(notices.NO_NOISE_MASK)
    options[RUN_KEY] = run
    with recording(run, sigmas.tolist()) if settings.traces else nullcontext():
        if "attn2_patch" not in options.get("patches", {}):  # with one, the layers' contexts may have other lengths
            run.check_token_weights()
        samples = executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    is_idle = not (settings.updates or settings.edits)  # there is a trace alone, or the noise mask is black
    if run.silently_bypassed and len(sigmas) > 1 and (settings.traces or not is_idle):
        run.notices.warn_once(notices.NO_EFFECT)
    if run.was_never_on and not is_idle:
        log.info(notices.NEVER_ON)  # no warning: of a run in two stages, one may well lie outside
    return samples


def apply_model(executor: WrapperExecutor, *args, **kwargs):
    """A call of the model: decide whether anything is on, and keep compiled code from running without EBCA."""
    options = args[TRANSFORMER_OPTIONS]
    run = options.get(RUN_KEY) or _run_of_a_call(executor.class_obj, options)
    run.calls += 1
    if args[0].shape[0] == 0:  # empty batch: ComfyUI raises its own error
        return executor(*_with_options(args, _without_network_wrapper(options)), **kwargs)
    sigma = float(args[1].flatten()[0]) if run.timeline.needs_sigma else None
    call = DenoiserCall(run, sigma, args[1].flatten()[:1], tuple(args[0].shape[-2:]))
    if not call.is_active and run.recorder is None:
        return executor(*_with_options(args, _without_network_wrapper(options)), **kwargs)
    run.active_calls += call.is_active
    architecture, model = run.settings.architecture, executor.class_obj
    with _eager(run, model, options), architecture.intercept(call, model, args, kwargs):
        out = executor(*_with_options(args, {**options, CALL_KEY: call}), **kwargs)
    call.commit()
    return out


WRAPPERS = {
    WrappersMP.OUTER_SAMPLE: outer_sample,
    WrappersMP.SAMPLER_SAMPLE: sampler_sample,
    WrappersMP.APPLY_MODEL: apply_model,
}


def _run_of_a_call(model: torch.nn.Module, options: dict[str, Any]) -> Run:
    """A run for a single call: another node calls the model without the options of the run."""
    settings = options[KEY]
    run = Run(settings, model.model_sampling, warned=settings.warned_without_run)
    if settings.needs_noise_mask:
        run.notices.warn_once(notices.CALL_WITHOUT_RUN_MASK)
    if settings.edits:
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
    return run.cache.cached(("compiled parts", model), lambda: _has_compiled_parts(model))


def _has_compiled_parts(model: torch.nn.Module) -> bool:
    return any(
        module._compiled_call_impl
        or "_orig_mod" in module._modules
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )
