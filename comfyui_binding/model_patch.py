"""Stores updates, edits and traces on a clone of a MODEL: checks them against it and installs the wrappers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..ebca_core import smallest_denominator
from .architectures.registry import architecture_of, check_text_width, layer_names, network_of
from .runtime import notices
from .runtime.settings import KEY, ContextUpdate, Edit, Reroll, Settings
from .sampling_hooks import install
from .trace.trace_record import Trace

log = logging.getLogger("ebca")

#: Denominators of the composition below this make each layer's output many times its usual size.
SMALL_DENOMINATOR = 0.1


#: The authors' gamma_attn, and the number of cross-attention layers of the model that they chose it for (SD 1.5).
USUAL_GAMMA_ATTN, USUAL_LAYERS = 0.01, 16


def settings_of(model: ModelPatcher) -> Settings:
    """The settings stored on a model, empty ones if there are none."""
    return model.model_options["transformer_options"].get(KEY, Settings())


def with_update(model: ModelPatcher, update: ContextUpdate) -> ModelPatcher:
    """A clone of the model with one more context update; the model itself if the update is off.

    Raises ValueError for a model that EBCA cannot reach.
    """
    architecture, network = architecture_of(model), network_of(model)
    names = architecture.layer_names(network)
    if update.mask is not None and update.gamma_attn != 0:
        _warn_of_black_mask(update.mask, "the attention term of the context update")
        update = update.with_constant_mask_resolved()
    if update.is_off:
        return model
    _check_updates(model)
    if update.layers is not None and update.layers <= architecture.unread_layers(network):
        raise ValueError(
            "blocks: only the model's last layer is chosen, and no layer after it reads the updated context. Add an "
            "earlier layer, or leave blocks empty for all."
        )
    if update.gamma_attn == 0 and (update.token_weights is not None or update.mask is not None):
        log.warning("EBCA: token weights and mask have no effect: they act on the attention term, and gamma_attn is 0.")
        update = replace(update, token_weights=None, mask=None)
    count = len(names) // len(architecture.unread_layers(network))  # a text is updated in the layers of its stream
    usual = USUAL_GAMMA_ATTN * USUAL_LAYERS / count
    if update.layers is None and update.gamma_attn > 3 * usual:
        log.info(
            "EBCA: gamma_attn is %g. It acts once in each layer, and this model has %d layers instead of the %d of SD "
            "1.5: %.1g is a value to start from.",
            update.gamma_attn, count, USUAL_LAYERS, usual,
        )  # fmt: skip
    settings = settings_of(model)
    return _with_settings(model, replace(settings, updates=(*settings.updates, update)))


def with_edits(model: ModelPatcher, edits: list[Edit]) -> ModelPatcher:
    """A clone of the model with further edits; the model itself if all of them are off.

    Raises ValueError for an edit of another width than the model's context, and for weights that could sum to -1 or
    less (earlier edits of the model count), and for a model that EBCA cannot reach.
    """
    edits = _without_unknown_updates(model, edits)
    edits = [replace(edit) for edit in edits if not edit.is_off]  # copies: one edit wired twice is two
    if not edits:
        return model
    for edit in edits:
        if edit.mask is not None and edit.weight != 0:
            _warn_of_black_mask(edit.mask, "an edit")
    if any(edit.composition.shares_attention for edit in edits) and not architecture_of(model).has_joint_attention:
        log.info(notices.NO_JOINT_ATTENTION, type(model.model).__name__)
    settings = settings_of(model)
    edits = [*settings.edits, *edits]
    for edit in edits:
        check_text_width(model, edit.context, "The edit")
    _check_pooled_texts(model, edits)
    _check_denominator(edits, layer_names(model))
    return _with_settings(model, replace(settings, edits=tuple(edits)))


def with_trace(model: ModelPatcher, trace: Trace) -> ModelPatcher:
    """A clone of the model whose runs are recorded in a trace. Raises ValueError for one that EBCA cannot record."""
    _check_recordable(model, "EBCA Trace cannot record")
    settings = settings_of(model)
    return _with_settings(model, replace(settings, traces=(*settings.traces, trace)))


def with_reroll(model: ModelPatcher, reroll: Reroll) -> ModelPatcher:
    """A clone of the model whose runs are tried with several noises. Its hook is around those of all other nodes.

    Raises ValueError as `check_reroll` does.
    """
    check_reroll(model)
    settings = settings_of(model)
    clone = _with_settings(model, replace(settings, reroll=reroll))
    hooks = clone.wrappers[WrappersMP.OUTER_SAMPLE]
    clone.wrappers[WrappersMP.OUTER_SAMPLE] = {KEY: hooks[KEY], **hooks}
    return clone


def check_reroll(model: ModelPatcher) -> None:
    """Raises ValueError for a model whose attention EBCA cannot read, and for one that has a reroll."""
    _check_recordable(model, "EBCA Reroll cannot read the attention of")
    if settings_of(model).reroll is not None:
        raise ValueError(
            "The model has passed an EBCA Reroll already. Use one of them, with as many tries as are wanted."
        )


def _check_recordable(model: ModelPatcher, refusal: str) -> None:
    reason = architecture_of(model).why_no_trace(network_of(model))
    if reason is not None:
        raise ValueError(f"{refusal} {type(model.model).__name__}: {reason}. Remove the node.")


def _check_updates(model: ModelPatcher) -> None:
    """Raises ValueError for a model whose contexts cannot be updated."""
    reason = architecture_of(model).why_no_update(network_of(model))
    if reason is not None:
        raise ValueError(
            f"EBCA cannot update the context of {type(model.model).__name__}: {reason}. Set gamma_attn and gamma_norm "
            "to 0, and use EBCA Compose."
        )


def _without_unknown_updates(model: ModelPatcher, edits: list[Edit]) -> list[Edit]:
    """The edits, without gammas on a model whose contexts cannot be updated; a log line then.

    The gammas of EBCA Edit Context are not 0 unless the user sets them so: they are no reason to refuse its alpha.
    """
    reason = architecture_of(model).why_no_update(network_of(model))
    if reason is None:
        return edits
    if any(edit.is_updated for edit in edits):
        log.info(notices.NO_EDIT_UPDATE, type(model.model).__name__, reason)
    return [replace(edit, gamma_attn=0.0, gamma_norm=0.0) for edit in edits]


def _with_settings(model: ModelPatcher, settings: Settings) -> ModelPatcher:
    clone = model.clone()
    clone.model_options["transformer_options"][KEY] = replace(settings, architecture=architecture_of(model))
    install(clone)
    return clone


def _warn_of_black_mask(mask: Tensor, what: str) -> None:
    if not bool(mask.any()):
        log.warning(
            "EBCA: the mask of %s is black everywhere, so it has no effect. Paint the region white. Load Image gives a "
            "black mask for an image without transparency.",
            what,
        )


def _check_pooled_texts(model: ModelPatcher, edits: Sequence[Edit]) -> None:
    """Raises ValueError where pooled texts are to be mixed that the model does not read or edits do not have."""
    mixed = [edit for edit in edits if edit.composition.mixes_pooled]
    if mixed and not architecture_of(model).has_pooled_text(network_of(model)):
        raise ValueError(
            f"mix_pooled is on, but EBCA mixes no pooled text in {type(model.model).__name__}: only Flux 1, SD 3, SD "
            "3.5 and HiDream read one beside their text. Switch mix_pooled off."
        )
    if any(edit.conditioning[0][1].get("pooled_output") is None for edit in mixed):
        raise ValueError(
            "mix_pooled is on, but an edit has no pooled text. Encode it with the CLIP of the model, or switch "
            "mix_pooled off."
        )


def _smallest_denominator(edits: Sequence[Edit]) -> float:
    return smallest_denominator(
        [edit.weight for edit in edits],
        [edit.window for edit in edits],
        [edit.mask for edit in edits],
        [edit.alpha_schedule for edit in edits],
    )


def _check_denominator(edits: list[Edit], layers: Sequence[str]) -> None:
    """Raises ValueError where the weights in one layer, or in the pooled text, could sum to -1 or less."""
    weighted = [edit for edit in edits if edit.weight != 0]
    meeting = {tuple(edit for edit in weighted if edit.is_mixed_in(layer)) for layer in layers}
    meeting = {*meeting, tuple(edit for edit in weighted if edit.is_pooled_text_mixed)} - {()}
    if not meeting:
        return
    smallest, weighted = min(((_smallest_denominator(edits), edits) for edits in meeting), key=lambda item: item[0])
    smallest = round(smallest, 6)  # absorb float rounding
    weights = [edit.weight for edit in weighted]
    removed = " + ".join(f"{-weight:g}" for weight in weights if weight < 0)
    details = f"(signed alphas: {', '.join(f'{weight:+g}' for weight in weights)})."
    if len({edit.mask.shape for edit in weighted if edit.mask is not None}) > 1:
        details += " Masks of different sizes are assumed to overlap completely."
    if any(edit.alpha_schedule for edit in weighted):
        details += " Schedules multiply the alphas."
    if smallest <= 0:
        raise ValueError(
            f"Too much is removed: {removed} must stay below 1 + what is added at the same time and place. 1 + the sum "
            f"of the edits can reach {smallest:.4g} {details} Lower the alpha of the edits that remove, or add "
            "something in their place."
        )
    if smallest < SMALL_DENOMINATOR:
        log.warning(
            "EBCA: nearly everything is removed: 1 + the sum of the edits can fall to %.4g %s Below %g images tend to "
            "break up. Lower the alpha of the edits that remove.",
            smallest,
            details,
            SMALL_DENOMINATOR,
        )
