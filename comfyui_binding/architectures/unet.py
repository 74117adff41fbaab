"""U-Nets that read text through cross-attention: SD 1.x, SD 2.x, SDXL and their relatives.

For the length of a call every such layer gets two of ComfyUI's patches. `attn2_patch`, last in its list, gives the
layer the updated context. `attn2_replace`, around any other pack's, sees the layer's queries and keys, and returns its
output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import comfy.ldm.modules.attention as host
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from torch import Tensor

from ..runtime import notices
from ..runtime.denoiser_call import DenoiserCall
from ..runtime.notices import Notices
from ..runtime.settings import CALL_KEY
from ..runtime.text_attention import EncodedText
from ..shared_on_deepcopy import SharedOnDeepcopy
from ..wrapped_arguments import TRANSFORMER_OPTIONS, UNET_FORWARD, by_position
from .host_attention import NOT_OF_A_TEXT, OVERRIDE, attend_to_edit, exchanged_attention, preferred_attention
from .key_projection import project_to_context, together
from .layer_selection import LayerName
from .module_hooks import is_unpatched

#: In messages.
NAMES = "SD 1.x, SD 2.x, SDXL (base and refiner), SSD-1B, Segmind Vega, KOALA"
#: U-Nets whose cross-attention does not read the user's text.
NO_TEXT = {
    "Stable_Zero123": "its cross-attention reads an image and a camera position, not text",
    "Lotus": "it estimates depth and always reads an empty prompt",
}
#: Letters of the parts of a U-Net in the names of layers, by ComfyUI's names for them.
LETTERS = {"input": "d", "middle": "m", "output": "u"}
#: Position among the arguments of UNetModel.forward.
CONTEXT = 2


class LayerKey(NamedTuple):
    """ComfyUI's name of one cross-attention layer: `block` and `block_index` of transformer_options."""

    side: str
    block: int
    depth: int


class UNet:
    """The architecture of UNetModel."""

    #: ComfyUI repeats prompts to a common length.
    repeats_prompts = True
    has_joint_attention = False
    tokens_before_text = 0
    text_depends_on_sigma = False

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

    def why_no_update(self, network: UNetModel) -> str | None:
        """Why contexts cannot be updated in a supported U-Net; None where they can."""
        return None

    def why_no_trace(self, network: UNetModel) -> str | None:
        return None

    def has_pooled_text(self, network: torch.nn.Module) -> bool:
        return False

    def unread_layers(self, network: UNetModel) -> frozenset[str]:
        """The layers whose update no other layer reads."""
        return frozenset(self.layer_names(network)[-1:])

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
    args, kwargs = by_position(UNET_FORWARD, args, kwargs)
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
    context = as_attention_reads(context, x.shape[0])
    if context.shape[0] != x.shape[0]:
        run.notices.bypassed(notices.context_rows_differ(context.shape[0], x.shape[0]))
        return executor(*args, **kwargs)
    run.cache.prefetch(context)
    patches = Attn2Patches(call, unet)
    names = patches.names
    call.begin(names, names[-1:], run.layout.rows(options, x.shape[0], call.latent_size), context)
    with replaced_entries(options, patches.entries(options)):
        out = executor(*args, **kwargs)
    call.finish()
    return out


def as_attention_reads(text: Tensor, rows: int) -> Tensor:
    """A text of any rank -> [rows, t, c], as ComfyUI's attention reads the keys that a layer makes of it.

    Some packs give layers texts [prompts, images, tokens, width]. A text that has no such reading stays as it is.
    """
    if text.ndim == 3 or text.ndim < 2 or text.numel() % (rows * text.shape[-1]):
        return text
    return text.reshape(rows, -1, text.shape[-1])


def rows_of_one_text(context: Tensor, value_context: Tensor) -> Tensor | None:
    """Which rows of two texts [b, t, c] are equal, [b, 1, 1]; None where the two cannot be compared.

    Found in every call, as another node may change the values from some step on; the host does not wait for it.
    """
    if context.shape != value_context.shape or context.dtype != value_context.dtype:
        return None
    return (context == value_context).flatten(1).all(dim=1).view(-1, 1, 1)


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
    values_follow: Tensor | None
    grid: tuple[int, int] | None
    has_attention_override: bool
    options: Mapping[str, Any]
    #: Another pack's replacement of the layer's attention, (q, k, v, options) -> [b, n, (h d)].
    replacement: Callable[..., Tensor] | None
    exchanged: Callable[..., Tensor]
    #: Keyword arguments of ComfyUI's attention functions that belong to the layer.
    attn_precision: torch.dtype | None
    preferred: Mapping[str, Any]
    notices: Notices
    stream: str = ""
    text_mask: Tensor | None = None
    words: Tensor | None = None
    normalises_keys: bool = False
    tokens_before_grid: int | None = None

    def words_of(self, text: EncodedText) -> Tensor | None:
        return None

    @property
    def others(self) -> list[Callable]:
        """What other packs have put in place of the layer's attention."""
        return [self.replacement, self.options.get(OVERRIDE)]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: int | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        options = self.options
        if position is not None:  # as they would be if the prompt at this position were alone in the call
            options = dict(options)
            for name in ("cond_or_uncond", "uuids"):
                if len(options.get(name) or ()) > position:
                    options[name] = [options[name][position]]
        own = partial(host.optimized_attention, q, k, v, self.heads, attn_precision=self.attn_precision)
        theirs = partial(own, transformer_options=options, **self.preferred)
        if self.replacement is not None:
            theirs = partial(self.replacement, q, k, v, options)
        if position is None or not self.has_attention_override:
            return theirs()
        without = {name: value for name, value in options.items() if name != OVERRIDE}
        plain = partial(own, transformer_options=without, **self.preferred)
        return attend_to_edit(theirs, plain, q.shape, self.notices)

    def attend_exchanged(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return self.exchanged(
            query, key, value, heads, attn_precision=self.attn_precision, low_precision_attention=False
        )

    def keys(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self.module.to_k, contexts)

    def values(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self.module.to_v, contexts)

    def pullback(
        self, steps: Sequence[Tensor], contexts: Sequence[Tensor | slice], words: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        return together(partial(project_to_context, to_k=self.module.to_k, width=self.context.shape[-1]), steps)


class Attn2Patches(SharedOnDeepcopy):
    """The patches of one call of the U-Net."""

    def __init__(self, call: DenoiserCall, unet: UNetModel):
        cached = call.run.cache.cached
        self._call = call
        self._modules = cached(("layers", unet), lambda: cross_attention_layers(unet))
        self._names = cached(("layer names", unet), lambda: names_of_layers(unet))
        self._exchanged = exchanged_attention()
        #: The layer that has been given its context last, its two inputs before EBCA's change, and which rows of these
        #: hold one text.
        self._inputs: tuple[LayerKey, Tensor, Tensor, Tensor | None] | None = None

    @property
    def names(self) -> list[str]:
        return list(self._names.values())

    def entries(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The two entries of transformer_options that differ during the call."""
        patches = options.get("patches", {})
        replacements = options.get("patches_replace", {})
        others = replacements.get("attn2", {})
        ours = {
            key: partial(self.attn2_replace, key, others.get(key, others.get(key[:2])), preferred_attention(module))
            for key, module in self._modules.items()
            if self._call.works_in(self._names[key]) and self._is_replaceable(module)
        }
        return {
            "patches": {**patches, "attn2_patch": [*patches.get("attn2_patch", ()), self.attn2_patch]},
            "patches_replace": {**replacements, "attn2": {**others, **ours}},
        }

    def _is_replaceable(self, module: torch.nn.Module) -> bool:
        """Whether the layer's forward pass is ComfyUI's own, so that no other pack's is dropped: ComfyUI calls
        attn2_replace in place of the forward pass."""
        is_own = type(module).forward is host.CrossAttention.forward and is_unpatched(module, "forward")
        if not is_own:
            self._call.run.notices.bypassed(notices.FORWARD_REPLACED)
        return is_own

    def attn2_patch(self, n: Tensor, context: Tensor, value: Tensor, extra_options: dict[str, Any], **kwargs):
        """Give the layer the updated context, and keep what it was before."""
        block = extra_options.get("block")
        if block is None:
            self._call.run.notices.bypassed(notices.LAYER_UNNAMED)
            return n, context, value
        key = (*block, extra_options.get("block_index", 0))
        name = self._names.get(key)
        if name is None:  # a transformer that another pack put into the U-Net
            return n, context, value
        if context.ndim != 3 or value is not context:
            return n, *self._with_own_values(key, name, n.shape[0], context, value)
        self._inputs = (key, context, context, None)
        updated = self._call.context(name, context)
        return n, updated, updated

    def _with_own_values(
        self, key: LayerKey, name: str, rows: int, context: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The two contexts of a layer whose keys and values get texts of their own, or one of another rank."""
        is_one = value is context
        context = as_attention_reads(context, rows)
        value = context if is_one else as_attention_reads(value, rows)
        if context.ndim != 3 or value.ndim != 3:  # ComfyUI's attention raises its own error
            return context, value
        follow = None if is_one else rows_of_one_text(context, value)
        self._inputs = (key, context, value, follow)
        updated = self._call.context(name, context)
        if is_one or follow is None:
            return updated, updated if is_one else value
        return updated, torch.where(follow, updated, value)

    def attn2_replace(
        self,
        key: LayerKey,
        other: Callable | None,
        preferred: Mapping[str, Any],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extra_options: dict[str, Any],
        **kwargs,
    ) -> Tensor:
        """The layer's attention, other packs' included, with EBCA's part."""
        module, inputs, size = self._modules[key], self._inputs, extra_options.get("activations_shape")
        has_patch_run = inputs is not None and inputs[0] == key
        _, context, value_context, follow = inputs if has_patch_run else (key, k, v, None)
        layer = UNetAttention(
            self._names[key],
            module,
            q,
            k,
            v,
            extra_options.get("n_heads") or module.heads,
            context,
            value_context,
            follow,
            grid_of(q.shape[1], self._call.latent_size) if size is None else tuple(size[-2:]),
            other is not None or OVERRIDE in extra_options,
            extra_options,
            partial(other, **kwargs) if kwargs and other is not None else other,
            self._exchanged,
            extra_options.get("attn_precision", module.attn_precision),
            preferred,
            self._call.run.notices,
        )
        if not has_patch_run:
            self._call.run.notices.bypassed(notices.BLOCK_REPLACED)
            return layer.attend(q, k, v)
        if not layer.has_attention_override:
            return self._call.output(layer, layer.attend(q, k, v))
        with_other_keys = self._output_for_other_keys(layer)
        out = layer.attend(q, k, v)
        if with_other_keys is not None:
            if torch.equal(with_other_keys, out):
                self._call.run.notices.bypassed(notices.KEYS_UNREAD)
                return out
            self._answers(layer)["reads keys"] = layer.others
        return self._call.output(layer, out)

    def _output_for_other_keys(self, layer: UNetAttention) -> Tensor | None:
        """What another pack's attention returns for other keys and values; None if it is known to read them.

        If it returns the same, whatever EBCA does to the text would be lost in the layer. The replacement is called
        once more per run and layer, and again in each call while the result is the same. The host waits for the result.
        """
        if self._answers(layer).get("reads keys") == layer.others:
            return None
        devices = [layer.q.device] if layer.q.device.type == "cuda" else []
        copy = replace(layer, options=dict(layer.options))
        try:
            with torch.random.fork_rng(devices):  # a pack may draw random numbers
                return copy.attend(layer.q.clone(), -layer.k, -layer.v)
        except NOT_OF_A_TEXT:
            raise
        except Exception:  # the layer's own call comes next
            return None

    def _answers(self, layer: UNetAttention) -> dict[str, Any]:
        """What is known of other packs' attention in a layer, for the rest of the run."""
        return self._call.run.cache.cached(("attention of others", layer.name), dict)


def grid_of(tokens: int, latent_size: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of a layer's image tokens, where they are not given: the latent's, halved until it fits."""
    rows, columns = latent_size
    while rows * columns > tokens and (rows, columns) != (1, 1):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return (rows, columns) if rows * columns == tokens else None


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
