"""The ComfyUI hooks. None keeps anything: a run's state goes from one to the next in the options of its calls."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from .runtime.batch_layout import tell_apart
from .runtime.layer_patches import LayerPatches
from .runtime.sampling_run import Run
from .runtime.settings import KEY
from .runtime.torch_compile import eager
from .runtime.unet_call import ModelCall, UNetCall
from .samplers.inversion_record import run_mismatches
from .trace.recorder import recording

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

log = logging.getLogger("ebca")

RUN_KEY = "ebca_run"
#: The ModelCall, where something is on.
CALL_KEY = "ebca_call"
#: Among the arguments of BaseModel.apply_model and of UNetModel.forward alike.
TRANSFORMER_OPTIONS = 5
#: Among the arguments of UNetModel.forward.
CONTEXT = 2


def install(model: ModelPatcher) -> None:
    """Register the hooks on a model, once however many EBCA nodes it passes."""
    for kind, wrapper in (
        (WrappersMP.OUTER_SAMPLE, outer_sample),
        (WrappersMP.SAMPLER_SAMPLE, sampler_sample),
        (WrappersMP.APPLY_MODEL, apply_model),
        (WrappersMP.DIFFUSION_MODEL, diffusion_model),
    ):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)


def outer_sample(executor: WrapperExecutor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """A sampling run as its node asks for it: say where it does not fit the inversion that it starts from.

    Its traces get to know the latent that comes out.
    """
    for problem in run_mismatches(noise, latent_image, sampler, sigmas):
        log.warning(problem)
    samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    for trace in executor.class_obj.model_options["transformer_options"][KEY].traces:
        trace.know_result(samples)
    return samples


def sampler_sample(
    executor: WrapperExecutor, guider, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None,
    *args, **kwargs,
):  # fmt: skip
    """A sampling run: begin with a fresh state, which dies with the run's own options."""
    options = extra_args["model_options"]["transformer_options"]
    tell_apart(guider.conds)
    settings = options[KEY]
    if denoise_mask is not None and settings.wants_noise_mask:
        settings = settings.with_noise_mask(denoise_mask[:, 0])
    run = Run(settings, guider.inner_model.model_sampling, guider.conds, noise.shape)
    if settings.wants_noise_mask:
        run.warn_once(
            "use_noise_mask is on, but the latent has no noise mask: the whole picture speaks in the context update. "
            "Put a Set Latent Noise Mask before the sampler, or switch use_noise_mask off."
        )
    options[RUN_KEY] = run
    with recording(run, sigmas.tolist()) if settings.traces else nullcontext():
        if "attn2_patch" not in options.get("patches", {}):  # else the layers' texts may have other lengths, and say so
            run.check_token_weights()
        samples = executor(guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask, *args, **kwargs)
    is_idle = not (settings.updates or settings.edits)  # there is a trace alone, or the noise mask is black
    if run.had_no_effect and len(sigmas) > 1 and (settings.traces or not is_idle):
        run.warn_once(
            "EBCA had no effect: another node runs the model without ComfyUI's hooks, so the image is the one without "
            "EBCA. Remove the node that replaces the model's function or its forward pass."
        )
    if run.was_never_on and not is_idle:
        log.info(  # no warning: of a run in two stages, one may well lie outside
            "EBCA was off in this run: none of its steps lies between a start_percent and its end_percent. Widen them, "
            "or sample more of the schedule."
        )
    return samples


def apply_model(executor: WrapperExecutor, *args, **kwargs):
    """A call of the model: decide whether anything is on, and keep compiled code from running without it."""
    options = args[TRANSFORMER_OPTIONS]
    run = options.get(RUN_KEY)
    if run is None:
        run = Run(options[KEY], executor.class_obj.model_sampling, said=options[KEY].said_without_run)
        if run.settings.wants_noise_mask:
            run.warn_once(
                "use_noise_mask does nothing here, for another node calls the model without the run's options: the "
                "whole picture speaks in the context update. Wire a mask, or sample with one of ComfyUI's own sampling "
                "nodes."
            )
        if run.settings.edits:
            run.warn_once(
                "EBCA's edits begin afresh at each step, for another node calls the model without the run's options. "
                "Sample with one of ComfyUI's own sampling nodes to have them carried."
            )
        if run.settings.traces:
            run.warn_once(
                "EBCA Trace records nothing here, for another node calls the model without the run's options. Sample "
                "with one of ComfyUI's own sampling nodes to have the run traced."
            )
    run.calls += 1
    if args[0].shape[0] == 0:  # a latent without images, of which ComfyUI says what it thinks
        return executor(*_with_options(args, _without_unet_hook(options)), **kwargs)
    sigma = float(args[1].flatten()[0]) if run.needs_sigma else None
    is_active = run.is_active(sigma)
    if not is_active and run.readings is None:
        return executor(*_with_options(args, _without_unet_hook(options)), **kwargs)
    run.active_calls += is_active
    call = ModelCall(run, sigma, args[1].flatten()[:1], tuple(args[0].shape[-2:]))
    with _resting(run) if _is_compiled(executor.class_obj, options, run) else nullcontext():
        out = executor(*_with_options(args, {**options, CALL_KEY: call}), **kwargs)
    run.commit(call.changes, sigma)
    return out


def diffusion_model(executor: WrapperExecutor, *args, **kwargs):
    """A call of the U-Net: put the update and the composition into its cross-attention layers, for this call only."""
    options = args[TRANSFORMER_OPTIONS]
    model_call = options.get(CALL_KEY)
    if model_call is None:
        return executor(*args, **kwargs)
    run = model_call.run
    unet, x, context = executor.class_obj, args[0], args[CONTEXT]
    if context is None:
        run.was_reached = True
        return executor(*args, **kwargs)
    obstacle = _obstacle(unet, x, context)
    if obstacle is not None:
        run.excuse(f"EBCA is off for calls of the model in which {obstacle}. Remove that node to have EBCA there.")
        return executor(*args, **kwargs)
    run.fetch(context)
    call = UNetCall(model_call, run.chunks(options, x.shape[0], model_call.latent_size), context)
    layers = LayerPatches(call, unet)
    with _replaced(options, layers.patched(options)):
        out = executor(*args, **kwargs)
    layers.finish()
    return out


def _obstacle(unet, x: torch.Tensor, context: torch.Tensor) -> str | None:
    if not isinstance(unet, UNetModel):
        return f"another node has put a {type(unet).__name__} in place of the U-Net"
    if context.shape[0] != x.shape[0]:
        return f"another node gives the U-Net {context.shape[0]} prompts for {x.shape[0]} images"
    return None


def _with_options(args: tuple, options: dict[str, Any]) -> list:
    return [*args[:TRANSFORMER_OPTIONS], options, *args[TRANSFORMER_OPTIONS + 1 :]]


def _without_unet_hook(options: dict[str, Any]) -> dict[str, Any]:
    """So that compiled code is traced, and runs, as if EBCA were not there."""
    wrappers = options["wrappers"]
    others = {key: value for key, value in wrappers[WrappersMP.DIFFUSION_MODEL].items() if key != KEY}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: others}}


def _resting(run: Run):
    run.warn_once("torch.compile rests while EBCA is on: compiled code would leave it out.")
    return eager


def _is_compiled(model: torch.nn.Module, options: dict[str, Any], run: Run) -> bool:
    """Whether core compiles the U-Net when it is called, or another pack has left compiled modules in it."""
    if COMPILE_KEY in options["wrappers"].get(WrappersMP.APPLY_MODEL, {}):
        return True
    return run.kept(("compiled parts", model), lambda: _has_compiled_parts(model))


def _has_compiled_parts(model: torch.nn.Module) -> bool:
    return any(
        module._compiled_call_impl
        or "_orig_mod" in module._modules
        or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")
        for module in model.modules()
    )


@contextmanager
def _replaced(options: dict[str, Any], entries: dict[str, Any]):
    """Entries of the call's own options, swapped for its duration: the dict itself is the one other hooks hold."""
    before = {key: options[key] for key in entries if key in options}
    options.update(entries)
    try:
        yield
    finally:
        for key in entries:
            options.pop(key, None)
        options.update(before)
