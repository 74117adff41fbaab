"""One call of the U-Net with EBCA on: what its cross-attention layers do in addition.

For the length of the call every such layer gets two of ComfyUI's patches: `attn2_patch`, last in its list, hands the
layer the context as updated so far; `attn2_replace`, around any other pack's, sees the layer's queries and keys, mixes
the edits in and computes the context of the next layer. Changes are kept apart from the contexts they belong to
(`context + change`), so that whatever other packs do to a context in between stays in force.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..architectures.unet import LayerKey, cross_attention_layers, layer_names
from ..shared_on_deepcopy import CopiedAsItself
from .edit_composition import EditComposition
from .layer import Layer, is_replaceable
from .prompt_update import PromptUpdate
from .unet_call import REGIONS, UNetCall


class LayerPatches(CopiedAsItself):
    """Some packs run the U-Net twice in one call: its first layer begins the call anew."""

    def __init__(self, call: UNetCall, unet: torch.nn.Module):
        self._call = call
        self._run = call.run
        self._attn2 = self._run.kept(("layers", unet), lambda: cross_attention_layers(unet))
        self._first, self._last = next(iter(self._attn2)), next(reversed(self._attn2))
        self._prompt_update = PromptUpdate(call)
        self._readings = call.readings(self._run.kept(("layer names", unet), lambda: layer_names(unet)))
        self._composition = EditComposition(call, self._prompt_update, self._readings)
        self._inputs: tuple[LayerKey, Tensor, Tensor] | None = None

    def patched(self, options: dict[str, Any]) -> dict[str, Any]:
        """The two entries of transformer_options that differ during the call."""
        patches = options.get("patches", {})
        replacements = options.get("patches_replace", {})
        others = replacements.get("attn2", {})
        ours = {
            key: partial(self._attend, key, others.get(key, others.get(key[:2])))
            for key in self._attn2
            if self._works_in(key) and self._may_replace(key)
        }
        return {
            "patches": {**patches, "attn2_patch": [*patches.get("attn2_patch", ()), self._hand_context]},
            "patches_replace": {**replacements, "attn2": {**others, **ours}},
        }

    def finish(self) -> None:
        self._composition.finish()
        if self._readings is not None:
            self._call.keep(self._readings)

    def _works_in(self, key: LayerKey) -> bool:
        is_read = self._readings is not None
        return is_read or self._composition.is_active or self._prompt_update.works_in(key)

    def _may_replace(self, key: LayerKey) -> bool:
        replaceable = is_replaceable(self._attn2[key])
        if not replaceable:
            self._run.excuse(
                "EBCA leaves out cross-attention layers whose forward pass another node has replaced. Remove that node "
                "to have EBCA there."
            )
        return replaceable

    def _hand_context(self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any], **kwargs):
        """attn2_patch: give the layer the updated context, and keep what it was before."""
        key = (*extra_options.get("block", ()), extra_options.get("block_index"))
        if key not in self._attn2:  # a transformer that another pack put into the U-Net
            return n, context, value
        if key == self._first:
            self._prompt_update.begin()
            self._composition.begin()
            if self._readings is not None:
                self._readings.begin()
        value = context if self._call.is_one_text(key, context, value) else value
        self._inputs = (key, context, value)
        updated = self._prompt_update.moved(context)
        return n, updated, updated if value is context else value

    def _attend(
        self, key: LayerKey, other: Callable | None, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, **kwargs
    ) -> Tensor:
        """attn2_replace: the layer's attention, other packs' included, with the edits mixed in; then the update."""
        if self._inputs is None or self._inputs[0] != key:
            raise RuntimeError(
                f"Expected the cross-attention layer {key} to ask for its text first, as ComfyUI's do, but it did not: "
                "another node has replaced the block around it. Remove that node or EBCA."
            )
        self._run.was_reached = True
        _, context, value = self._inputs
        layer = Layer(key, self._attn2[key], q, k, v, context, value, extra_options)
        out = layer.attend(q, k, v) if other is None else other(q, k, v, extra_options, **kwargs)
        if self._composition.is_active:
            out = self._composition.mix(layer, out, has_other_branches=other is not None)
        change = self._prompt_update.step(layer) if key != self._last else None  # no layer would read the last one's
        if self._readings is not None:
            self._read(layer, change)
        return out

    def _read(self, layer: Layer, change: Tensor | None) -> None:
        if not self._call.has_own_rows(layer):
            self._run.warn_once(f"EBCA Trace leaves out layers, for {REGIONS}. Remove that node to have them traced.")
            return
        self._readings.read_prompts(layer, self._call.repeats(layer), change, self._prompt_update.unit)
        if self._readings.wants_maps:
            obstacle = self._call.map_obstacle(layer)
            if obstacle is None:
                self._readings.read_maps(layer)
            else:
                self._run.warn_once(f"EBCA Trace leaves out maps, for {obstacle}. Remove that node to have them.")
