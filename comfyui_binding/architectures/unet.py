"""U-Nets that read text through cross-attention: SD 1.x, SD 2.x, SDXL and their relatives.

For the length of a call every such layer gets two of ComfyUI's patches. `attn2_patch`, last in its list, gives the
layer the updated context. `attn2_replace`, around any other pack's, sees the layer's queries and keys, and returns its
output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import comfy.ldm.modules.attention as host
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..runtime import notices
from ..runtime.denoiser_call import DenoiserCall
from ..runtime.settings import CALL_KEY
from ..shared_on_deepcopy import SharedOnDeepcopy
from .key_projection import is_unpatched, project_to_context, together
from .layer_selection import LayerName

#: U-Nets whose cross-attention does not read the user's text.
NO_TEXT = {
    "Stable_Zero123": "its cross-attention reads an image and a camera position, not text",
    "Lotus": "it estimates depth and always reads an empty prompt",
}
#: Letters of the parts of a U-Net in the names of layers, by ComfyUI's names for them.
LETTERS = {"input": "d", "middle": "m", "output": "u"}
#: Positions among the arguments of UNetModel.forward.
CONTEXT, TRANSFORMER_OPTIONS = 2, 5


class LayerKey(NamedTuple):
    """ComfyUI's name of one cross-attention layer: `block` and `block_index` of transformer_options."""

    side: str
    block: int
    depth: int


class UNet:
    """The architecture of UNetModel."""

    #: ComfyUI repeats prompts to a common length.
    repeats_prompts = True

    def __init__(self):
        self.wrappers = {WrappersMP.DIFFUSION_MODEL: unet_forward}

    def layer_names(self, network: UNetModel) -> tuple[str, ...]:
        return tuple(names_of_layers(network).values())

    def context_width(self, network: UNetModel, model_config: Any) -> int:
        """Width c of the text context that the layers read."""
        to_k = next(iter(cross_attention_layers(network).values())).to_k
        return getattr(to_k, "in_features", None) or model_config.unet_config["context_dim"]

    def why_unsupported(self, network: UNetModel, name: str) -> str | None:
        """Why EBCA does not apply to a U-Net of the model class `name`; None if it does."""
        if name in NO_TEXT:
            return NO_TEXT[name]
        if any(isinstance(module, host.SpatialVideoTransformer) for module in network.modules()):
            return "it makes videos from an image, without text"
        blocks = (module for module in network.modules() if isinstance(module, host.BasicTransformerBlock))
        if any(block.disable_self_attn for block in blocks):
            return "its self-attention layers read the text too (as in the x4 upscaler), which EBCA does not cover"
        if not cross_attention_layers(network):
            return "it has no cross-attention layers"
        return None

    def intercept(self, call: DenoiserCall, model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]):
        """Nothing around the model's call: the wrapper of the network's forward pass does it all."""
        return nullcontext()


def cross_attention_layers(unet: UNetModel) -> dict[LayerKey, host.CrossAttention]:
    """Every text cross-attention layer, in the order of a call."""
    blocks = [("input", index, block) for index, block in enumerate(unet.input_blocks)]
    if unet.middle_block is not None:
        blocks.append(("middle", 0, unet.middle_block))
    blocks += [("output", index, block) for index, block in enumerate(unet.output_blocks)]
    return {
        LayerKey(side, index, depth): transformer_block.attn2
        for side, index, block in blocks
        for transformer in block
        if isinstance(transformer, host.SpatialTransformer)
        for depth, transformer_block in enumerate(transformer.transformer_blocks)
        if transformer_block.attn2 is not None
    }


def names_of_layers(unet: UNetModel) -> dict[LayerKey, str]:
    """ComfyUI's key -> d0.0, m0.0, u3.1: the n-th block with attention on its side, and the layer in it."""
    keys = list(cross_attention_layers(unet))
    blocks = {side: list(dict.fromkeys(key.block for key in keys if key.side == side)) for side in LETTERS}
    return {key: str(LayerName(LETTERS[key.side], blocks[key.side].index(key.block), key.depth)) for key in keys}


# --- a call of the U-Net ---


def unet_forward(executor: WrapperExecutor, *args, **kwargs):
    """DIFFUSION_MODEL wrapper: put EBCA into the cross-attention layers, for this call of the U-Net only."""
    options = args[TRANSFORMER_OPTIONS]
    call: DenoiserCall | None = options.get(CALL_KEY)
    if call is None:
        return executor(*args, **kwargs)
    run, unet, x, context = call.run, executor.class_obj, args[0], args[CONTEXT]
    if context is None:
        run.notices.accounted_for = True
        return executor(*args, **kwargs)
    if not isinstance(unet, UNetModel):
        run.notices.bypassed(notices.network_replaced(type(unet).__name__))
        return executor(*args, **kwargs)
    if context.shape[0] != x.shape[0]:
        run.notices.bypassed(notices.context_rows_differ(context.shape[0], x.shape[0]))
        return executor(*args, **kwargs)
    run.cache.prefetch(context)
    patches = Attn2Patches(call, unet)
    call.begin(patches.names, run.chunks(options, x.shape[0], call.latent_size), context)
    with replaced_entries(options, patches.entries(options)):
        out = executor(*args, **kwargs)
    call.finish()
    return out


@dataclass(eq=False)
class UNetAttention:
    """TextAttention of one attn2 module, as a replaced attention of ComfyUI sees it."""

    name: str
    module: torch.nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    context: Tensor
    value_context: Tensor
    grid: tuple[int, int]
    has_attention_override: bool
    options: Mapping[str, Any]
    text_mask: Tensor | None = None
    normalises_keys: bool = False
    tokens_before_grid: int | None = None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: int | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        options = self.options
        if position is not None:  # as they would be if the prompt at this position were alone in the call
            options = dict(options)
            for name in ("cond_or_uncond", "uuids"):
                if options.get(name):
                    options[name] = [options[name][position]]
        return host.optimized_attention(
            q, k, v, self.heads, attn_precision=self.options["attn_precision"], transformer_options=options
        )

    def attend_exchanged(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return host.optimized_attention(
            query, key, value, heads, attn_precision=self.options["attn_precision"], low_precision_attention=False
        )

    def keys(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self.module.to_k, contexts)

    def values(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self.module.to_v, contexts)

    def pullback(
        self, steps: Sequence[Tensor], contexts: Sequence[Tensor | slice], text_masks: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        return together(partial(project_to_context, to_k=self.module.to_k, width=self.context.shape[-1]), steps)


class Attn2Patches(SharedOnDeepcopy):
    """The patches of one call of the U-Net."""

    def __init__(self, call: DenoiserCall, unet: UNetModel):
        cached = call.run.cache.cached
        self._call = call
        self._modules = cached(("layers", unet), lambda: cross_attention_layers(unet))
        self._names = cached(("layer names", unet), lambda: names_of_layers(unet))
        #: The layer that has been given its context last, and its two inputs before EBCA's change.
        self._inputs: tuple[LayerKey, Tensor, Tensor] | None = None

    @property
    def names(self) -> list[str]:
        return list(self._names.values())

    def entries(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The two entries of transformer_options that differ during the call."""
        patches = options.get("patches", {})
        replacements = options.get("patches_replace", {})
        others = replacements.get("attn2", {})
        ours = {
            key: partial(self.attn2_replace, key, others.get(key, others.get(key[:2])))
            for key, module in self._modules.items()
            if self._call.works_in(self._names[key]) and self._is_replaceable(module)
        }
        return {
            "patches": {**patches, "attn2_patch": [*patches.get("attn2_patch", ()), self.attn2_patch]},
            "patches_replace": {**replacements, "attn2": {**others, **ours}},
        }

    def _is_replaceable(self, module: torch.nn.Module) -> bool:
        """Whether the layer's forward pass is ComfyUI's own, so that replacing its attention drops nobody else's."""
        is_own = type(module).forward is host.CrossAttention.forward and is_unpatched(module, "forward")
        if not is_own:
            self._call.run.notices.bypassed(notices.FORWARD_REPLACED)
        return is_own

    def attn2_patch(self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any], **kwargs):
        """Give the layer the updated context, and keep what it was before."""
        key = (*extra_options.get("block", ()), extra_options.get("block_index"))
        name = self._names.get(key)
        if name is None:  # a transformer that another pack put into the U-Net
            return n, context, value
        updated = self._call.context(name, context)
        if value is not context and self._call.shares_context(name, context, value):
            value = context
        self._inputs = (key, context, value)
        return n, updated, updated if value is context else value

    def attn2_replace(
        self, key: LayerKey, other: Callable | None, q: Tensor, k: Tensor, v: Tensor, extra_options: dict, **kwargs
    ) -> Tensor:
        """The layer's attention, other packs' included, with EBCA's part."""
        if self._inputs is None or self._inputs[0] != key:
            raise RuntimeError(
                f"The cross-attention layer {self._names[key]} did not ask for its context, because another node has "
                "replaced the block around it. Remove that node or EBCA."
            )
        _, context, value_context = self._inputs
        layer = UNetAttention(
            self._names[key],
            self._modules[key],
            q,
            k,
            v,
            extra_options["n_heads"],
            context,
            value_context,
            tuple(extra_options["activations_shape"][-2:]),
            "optimized_attention_override" in extra_options,
            extra_options,
        )
        out = layer.attend(q, k, v) if other is None else other(q, k, v, extra_options, **kwargs)
        return self._call.output(layer, out, has_other_branches=other is not None)


@contextmanager
def replaced_entries(options: dict[str, Any], entries: Mapping[str, Any]):
    """Entries of the call's own options, replaced while this lasts. Other hooks hold the same dict."""
    before = {key: options[key] for key in entries if key in options}
    options.update(entries)
    try:
        yield
    finally:
        for key in entries:
            options.pop(key, None)
        options.update(before)
