"""Settings on their way to a MODEL: checked against it, and stored on a clone with the hooks that obey them."""

from __future__ import annotations

import logging
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..ebca_core import smallest_denominator
from .architectures.unet import context_width, last_layer, unet_of
from .runtime.settings import KEY, ContextUpdate, Edit, Settings
from .sampling_hooks import install
from .trace.trace_record import Trace

log = logging.getLogger("ebca")

#: Denominators of the composition below this make each layer's output many times its usual size.
SMALL_DENOMINATOR = 0.1


def settings_of(model: ModelPatcher) -> Settings:
    """The settings stored on a model, empty ones if there are none."""
    return model.model_options["transformer_options"].get(KEY, Settings())


def with_update(model: ModelPatcher, update: ContextUpdate) -> ModelPatcher:
    """A clone of the model with one more context update; the model itself if the update is off.

    Raises ValueError for a model that EBCA cannot reach.
    """
    unet = unet_of(model)
    if update.mask is not None and update.gamma_attn != 0:
        _warn_of_black_mask(update.mask, "the attention term of the context update")
        update = update.with_plain_mask_resolved()
    if update.is_off:
        return model
    if update.layers is not None and update.layers <= {last_layer(unet)}:
        raise ValueError(
            "Expected blocks with at least one layer before the model's last, but got only the last: no layer after it "
            "could read the updated context. Leave blocks empty for all layers."
        )
    if update.gamma_attn == 0 and (update.token_weights is not None or update.mask is not None):
        log.warning("Token weights and mask act on the attention term alone, and gamma_attn is 0: they have no effect.")
        update = replace(update, token_weights=None, mask=None)
    settings = settings_of(model)
    return _with_settings(model, replace(settings, updates=(*settings.updates, update)))


def with_edits(model: ModelPatcher, edits: list[Edit]) -> ModelPatcher:
    """A clone of the model with further edits; the model itself if all of them are off.

    Raises ValueError for an edit of another width than the model's context, and for weights that could sum to -1 or
    less (earlier edits of the model count), and for a model that EBCA cannot reach.
    """
    unet_of(model)
    edits = [replace(edit) for edit in edits if not edit.is_off]  # copies: one edit wired twice is two
    if not edits:
        return model
    for edit in edits:
        if edit.mask is not None and edit.weight != 0:
            _warn_of_black_mask(edit.mask, "an edit")
    settings = settings_of(model)
    edits = [*settings.edits, *edits]
    _check_widths(model, edits)
    _check_denominator(edits)
    return _with_settings(model, replace(settings, edits=tuple(edits)))


def with_trace(model: ModelPatcher, trace: Trace) -> ModelPatcher:
    """A clone of the model whose runs are recorded in a trace. Raises ValueError for a model that EBCA cannot reach."""
    unet_of(model)
    settings = settings_of(model)
    return _with_settings(model, replace(settings, traces=(*settings.traces, trace)))


def _with_settings(model: ModelPatcher, settings: Settings) -> ModelPatcher:
    clone = model.clone()
    clone.model_options["transformer_options"][KEY] = settings
    install(clone)
    return clone


def _warn_of_black_mask(mask: Tensor, what: str) -> None:
    if not bool(mask.any()):
        log.warning(
            "The mask of %s is black everywhere, so it does nothing. Paint the region white: Load Image gives a black "
            "mask for a picture without transparency.",
            what,
        )


def _check_widths(model: ModelPatcher, edits: list[Edit]) -> None:
    width = context_width(model)
    for edit in edits:
        if edit.context.shape[-1] != width:
            raise ValueError(
                f"Expected edits of width {width}, as {type(model.model).__name__} reads them, but got one of width "
                f"{edit.context.shape[-1]}. Encode the edit with the CLIP of the checkpoint that the model comes from."
            )


def _check_denominator(edits: list[Edit]) -> None:
    weighted = [edit for edit in edits if edit.weight != 0]
    if not weighted:
        return
    weights = [edit.weight for edit in weighted]
    smallest = smallest_denominator(
        weights,
        [edit.window for edit in weighted],
        [edit.mask for edit in weighted],
        [edit.alpha_schedule for edit in weighted],
    )
    smallest = round(smallest, 6)  # tenths do not add up exactly
    listed = ", ".join(f"{weight:+g}" for weight in weights)
    if len({edit.mask.shape for edit in weighted if edit.mask is not None}) > 1:
        listed += "; masks of different sizes are taken to overlap at their worst"
    if any(edit.alpha_schedule for edit in weighted):
        listed += "; their schedules multiply them"
    if smallest <= 0:
        raise ValueError(
            f"Expected 1 + the sum of the edits' signed alphas to stay above 0, but it can reach {smallest:.4g} "
            f"(signed alphas: {listed}). Lower the alpha of the edits that remove, or add something in their place."
        )
    if smallest < SMALL_DENOMINATOR:
        log.warning(
            "1 + the sum of the edits' signed alphas can fall to %.4g (signed alphas: %s): below %g images tend to "
            "break up. Lower the alpha of the edits that remove.",
            smallest,
            listed,
            SMALL_DENOMINATOR,
        )
