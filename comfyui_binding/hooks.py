"""The three ComfyUI hooks. None keeps anything: a run's state goes from one to the next in the options of its calls."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.torch_helpers.torch_compile import COMPILE_KEY

from .call import Call
from .denoiser_call import DenoiserCall
from .run import Run
from .settings import KEY, Settings

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

RUN_KEY = "ebca_run"
#: (run, sigma, height and width of the latent) of a model call in which something is on.
CALL_KEY = "ebca_call"
#: Among the arguments of BaseModel.apply_model and of UNetModel.forward alike.
TRANSFORMER_OPTIONS = 5
#: Among the arguments of UNetModel.forward.
CONTEXT = 2


def install(model: ModelPatcher) -> None:
    """Register the hooks on a model, once however many EBCA nodes it passes."""
    for kind, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, sampler_sample),
        (WrappersMP.APPLY_MODEL, apply_model),
        (WrappersMP.DIFFUSION_MODEL, diffusion_model),
    ):
        if not model.get_wrappers(kind, KEY):
            model.add_wrapper_with_key(kind, KEY, wrapper)


def sampler_sample(executor: WrapperExecutor, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
    """A sampling run: begin with a fresh state, which dies with the run's own options."""
    options = extra_args["model_options"]["transformer_options"]
    run = Run(options.get(KEY, Settings()), guider.inner_model.model_sampling, guider.conds, tuple(noise.shape[-2:]))
    options[RUN_KEY] = run
    samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    if not run.was_reached:
        run.warn_once(
            "EBCA had no effect: another node runs the model without ComfyUI's hooks, so the image is the one without "
            "EBCA. Remove the node that replaces the model's function or its forward pass."
        )
    return samples


def apply_model(executor: WrapperExecutor, *args, **kwargs):
    """A call of the model: decide whether anything is on, and keep compiled code from running without it."""
    options = args[TRANSFORMER_OPTIONS]
    run = options.get(RUN_KEY) or Run(options.get(KEY, Settings()), executor.class_obj.model_sampling)
    sigma = float(args[1].flatten()[0]) if run.needs_sigma else None
    if not run.is_active(sigma):
        run.was_reached = True
        return executor(*_with_options(args, _without_unet_hook(options)), **kwargs)
    args = _with_options(args, {**options, CALL_KEY: (run, sigma, tuple(args[0].shape[-2:]))})
    if not run.once(executor.class_obj, _has_compiled_parts) and not _is_compiled_by_core(options):
        return executor(*args, **kwargs)
    run.warn_once("torch.compile rests while EBCA is on: compiled code would leave the context update out.")
    with torch.compiler.set_stance("force_eager"):
        return executor(*args, **kwargs)


def diffusion_model(executor: WrapperExecutor, *args, **kwargs):
    """A call of the U-Net: put the update and the composition into its cross-attention layers, for this call only."""
    options = args[TRANSFORMER_OPTIONS]
    run, sigma, latent_size = options.get(CALL_KEY, (None, None, None))
    if run is None:
        return executor(*args, **kwargs)
    unet, x, context = executor.class_obj, args[0], args[CONTEXT]
    if context is None:
        run.was_reached = True
        return executor(*args, **kwargs)
    chunks = run.chunks(options, x.shape[0])
    obstacle = _obstacle(unet, x, context, chunks)
    if obstacle is not None:
        run.warn_once(f"EBCA is off for calls of the model in which {obstacle}.")
        return executor(*args, **kwargs)
    call = DenoiserCall(Call(run, sigma, latent_size, chunks, context), unet)
    with _replaced(options, call.patched(options)):
        out = executor(*args, **kwargs)
    call.finish()
    return out


def _obstacle(unet, x: torch.Tensor, context: torch.Tensor, chunks: list) -> str | None:
    if not isinstance(unet, UNetModel):
        return f"another node has put a {type(unet).__name__} in place of the U-Net"
    if context.shape[0] != x.shape[0]:
        return f"another node gives the U-Net {context.shape[0]} prompts for {x.shape[0]} images"
    if not chunks:
        return f"another node changed the batch to {x.shape[0]} images, which do not divide among the prompts"
    return None


def _with_options(args: tuple, options: dict[str, Any]) -> list:
    return [*args[:TRANSFORMER_OPTIONS], options, *args[TRANSFORMER_OPTIONS + 1 :]]


def _without_unet_hook(options: dict[str, Any]) -> dict[str, Any]:
    """So that compiled code is traced, and runs, as if EBCA were not there."""
    wrappers = options["wrappers"]
    others = {key: value for key, value in wrappers[WrappersMP.DIFFUSION_MODEL].items() if key != KEY}
    return {**options, "wrappers": {**wrappers, WrappersMP.DIFFUSION_MODEL: others}}


def _is_compiled_by_core(options: dict[str, Any]) -> bool:
    return COMPILE_KEY in options["wrappers"].get(WrappersMP.APPLY_MODEL, {})


def _has_compiled_parts(model: torch.nn.Module) -> bool:
    """Whether another pack left compiled modules in the model."""
    return any(module._compiled_call_impl or "_orig_mod" in module._modules for module in model.modules())


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
