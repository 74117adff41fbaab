"""Transformers that read text through a cross-attention module in each block: Wan, Cosmos, LTX, PixArt and others.

For the length of a call every such module gets a forward pre-hook. It gives the module the updated context and sees
its attention: through an attention override in the options that the module is called with, or, where a module gets no
options or computes several attentions, through hooks on its parts. Nothing of ComfyUI's models is copied; a family says
in `Family` what its modules look like (transformer_families.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from einops import rearrange
from torch import Tensor
from torch.nn import Module

from ..runtime import notices
from ..runtime.batch_layout import CallRows, Chunk, latent_shape
from ..runtime.denoiser_call import DenoiserCall
from ..runtime.notices import Notices
from ..runtime.sampling_run import Run
from ..runtime.settings import KEY, Edit
from ..runtime.text_attention import EncodedText, hidden_tokens
from ..runtime.torch_compile import uncompiled
from ..wrapped_arguments import TRANSFORMER_OPTIONS
from .edit_conds import conds_of
from .host_attention import (
    OVERRIDE,
    attend_to_edit,
    attention_without_ebca,
    exchanged_attention,
    preferred_attention,
)
from .key_norms import through_norm
from .key_projection import project_to_context, together
from .module_hooks import in_this_thread, is_unpatched
from .transformer_families import POOLED_TEXTS, TEXT_MASKS, Family, Grid, Parts

#: Position among the arguments of BaseModel.apply_model.
CONTEXT = 3
#: Options that networks themselves read.
PLAIN_OPTIONS = ("sample_sigmas", "sigmas", "rope_options")


class Transformer:
    """The architecture of one family."""

    wrappers: Mapping[str, Callable] = {}
    repeats_prompts = False
    has_joint_attention = False

    def __init__(self, family: Family):
        self.family = family
        self.text_depends_on_sigma = family.text_depends_on_sigma
        self.tokens_before_text = family.tokens_before_text

    def layer_names(self, network: Module) -> tuple[str, ...]:
        return tuple(self.family.layers(network))

    def context_width(self, network: Module, model_config: Any) -> int | None:
        return self.family.text_width(network)

    def why_unsupported(self, network: Module, name: str) -> str | None:
        return None

    def why_no_update(self, network: Module) -> str | None:
        return self.family.why_no_update(network)

    def why_no_trace(self, network: Module) -> str | None:
        return None

    def has_pooled_text(self, network: Module) -> bool:
        return False

    def unread_layers(self, network: Module) -> frozenset[str]:
        return unread_layers(self.family, self.layer_names(network))

    @contextmanager
    def intercept(self, call: DenoiserCall, model: Module, args: Sequence[Any], kwargs: Mapping[str, Any]):
        """Hooks on every text cross-attention module of a model's network, for one call of the model."""
        network = uncompiled(model.diffusion_model)
        run = call.run
        if not self.family.matches(network):
            run.notices.bypassed(notices.network_replaced(type(network).__name__))
            yield
            return
        rows = run.layout.rows(args[TRANSFORMER_OPTIONS], args[0].shape[0], call.latent_size)
        call.texts = {
            (edit, chunk.cond): self._encoded(run, model, edit, args, kwargs, chunk)
            for chunk in rows.chunks
            if chunk.entry.positive
            for edit in call.edits
        }
        hooks = _CallHooks(self.family, call, network, rows, args, kwargs)
        with hooks.installed():
            yield
        hooks.finish()

    def _encoded(
        self, run: Run, model: Module, edit: Edit, args: Sequence[Any], kwargs: Mapping[str, Any], chunk: Chunk
    ) -> Mapping[str, EncodedText]:
        """An edit's texts as the layers read them, by stream, beside the prompt of a chunk of the call."""
        key = ("edit text", edit, chunk.cond, args[0].shape[-2:], args[0].device)
        read = partial(self.read_text, model, edit, args, kwargs, chunk.rows.start)
        return read() if self.family.text_depends_on_sigma else run.cache.cached(key, read)

    def read_text(
        self, model: Module, edit: Edit, args: Sequence[Any], kwargs: Mapping[str, Any], row: int
    ) -> Mapping[str, EncodedText]:
        """Run the network on an edit's prompt up to its first cross-attention, and note what that is given.

        Everything else is that of a row of the call, the pooled text included.
        """
        x, timestep, concat, *_ = args
        batch, images = x.shape[0], edit.context.shape[0]
        own = {name: value for name, value in conds_of(model, edit, x).items() if name not in POOLED_TEXTS}
        context = own.pop("c_crossattn")
        of_row = partial(_copies_of_row, batch=batch, row=row, count=images)
        others = {name: of_row(value) for name, value in kwargs.items()}
        others |= {name: None for name in TEXT_MASKS if name in others}  # of the prompt's text
        kwargs = {**others, **own}
        x, timestep, concat = map(of_row, (x, timestep, concat))
        options = {name: args[TRANSFORMER_OPTIONS][name] for name in PLAIN_OPTIONS if name in args[TRANSFORMER_OPTIONS]}
        options["wrappers"] = {WrappersMP.DIFFUSION_MODEL: {KEY: [_without_prefetch]}}
        family, network = self.family, uncompiled(model.diffusion_model)
        name, module = next(iter(family.layers(network).items()))
        reader = module if family.blocks is None else family.blocks.around(network, name)
        grid = family.grid(network, latent_shape(x, kwargs), kwargs, family.stream(name))

        def note(module: Module, module_args: tuple, module_kwargs: dict):
            if _is_picture(family, module_args, grid):
                raise _TextRead(_texts_of(family, module, module_args, module_kwargs, images, kwargs, context))

        handle = reader.register_forward_pre_hook(in_this_thread(note), with_kwargs=True)
        try:
            model.apply_model(x, timestep, concat, context, None, options, **kwargs)
        except _TextRead as read:
            return read.texts
        finally:
            handle.remove()
        raise RuntimeError(f"EBCA: the network did not reach its layer {name}. Please report the model.")


def unread_layers(family: Family, names: Iterable[str]) -> frozenset[str]:
    """The last layer of each stream, of all layers in the order of a call."""
    return frozenset({family.stream(name): name for name in names}.values())


class _TextRead(Exception):
    """Ends a call of the network that was made to read a text."""

    def __init__(self, texts: Mapping[str, EncodedText]):
        super().__init__()
        self.texts = texts


def _without_prefetch(executor: WrapperExecutor, *args, **kwargs):
    """DIFFUSION_MODEL wrapper of such a call: without prefetching, because the call ends early."""
    for options in (*args, kwargs.get("transformer_options")):
        if isinstance(options, dict) and "prefetch_dynamic_vbars" in options:
            options["prefetch_dynamic_vbars"] = False
    return executor(*args, **kwargs)


@dataclass(eq=False)
class TransformerAttention:
    """TextAttention of one cross-attention module. Keys that several heads share are there once for each of them."""

    name: str
    stream: str
    parts: Parts
    q: Tensor
    k: Tensor | None
    v: Tensor | None
    heads: int
    context: Tensor
    value_context: Tensor
    text_mask: Tensor | None
    words: Tensor | None
    grid: tuple[int, ...] | None
    tokens_before_grid: int | None
    #: The attention function of the call, (q, k, v, heads, mask=) -> [b, n, (h d)].
    attention: Callable[..., Tensor]
    #: ComfyUI's own, where that is another pack's.
    plain_attention: Callable[..., Tensor] | None
    notices: Notices
    attn_precision: torch.dtype | None
    #: The keys before their norm, of the context that the layer has read; None where it is not known.
    z: Tensor | None
    read_context: Tensor
    #: Scale and shift of the texts (Blocks), and what turns keys by their positions (Family).
    modulation: tuple[Tensor, Tensor] | None
    rotate: Callable[[Tensor, bool], Tensor] | None
    values_follow: Tensor | None = None

    @property
    def has_attention_override(self) -> bool:
        return self.plain_attention is not None

    @property
    def normalises_keys(self) -> bool:
        return self.parts.k_norm is not None

    def keys(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self._keys, list(map(self._modulated, contexts)))

    def values(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self._values, list(map(self._modulated, contexts)))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: int | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        attend = partial(self._attend, q, k, v, text_mask)
        if position is None or self.plain_attention is None:
            return attend(self.attention)
        theirs, plain = partial(attend, self.attention), partial(attend, self.plain_attention)
        return attend_to_edit(theirs, plain, q.shape[:2], self.notices)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, text_mask: Tensor | None, attention: Callable[..., Tensor]
    ) -> Tensor:
        if not self.parts.is_differential:
            return attention(q, k, v, self.heads, mask=text_mask)
        first, second = zip(q.chunk(2, dim=-1), k.chunk(2, dim=-1), strict=True)
        heads = self.heads // 2
        return attention(*first, v, heads, mask=text_mask) - attention(*second, v, heads, mask=text_mask)

    def attend_exchanged(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return exchanged_attention()(
            query, key, value, heads, attn_precision=self.attn_precision, low_precision_attention=False
        )

    def pullback(
        self, steps: Sequence[Tensor], contexts: Sequence[Tensor | slice], words: Sequence[Tensor | None]
    ) -> Sequence[Tensor]:
        before_norm = [self._before_norm(step, context) for step, context in zip(steps, contexts, strict=True)]
        changes = together(self._project, before_norm)
        if self.modulation is not None:
            changes = [change * self.modulation[0][: len(change)] for change in changes]
        read = [self.read_context[context] if isinstance(context, slice) else context for context in contexts]
        return [change * is_word(*text) for change, *text in zip(changes, read, words, strict=True)]

    def words_of(self, text: EncodedText) -> Tensor | None:
        return is_word(text.context, text.words).squeeze(-1) != 0

    def _modulated(self, context: Tensor) -> Tensor:
        """A text as the module reads it. The rows of a prompt are the images of the call, as its first ones are."""
        if self.modulation is None:
            return context
        scale, shift = (tensor[: len(context)] for tensor in self.modulation)
        return context * scale + shift

    def _keys(self, text: Tensor) -> Tensor:
        keys = self._raw_keys(text)
        if self.parts.k_norm is not None:
            keys = self.parts.k_norm(self._by_head(keys) if self.parts.per_head else keys).reshape(keys.shape)
        if self.rotate is not None:
            keys = self.rotate(self._by_head(keys), False).flatten(2)
        return self.for_all_heads(keys)

    def _values(self, text: Tensor) -> Tensor:
        parts = self.parts
        return self.for_all_heads(parts.v(text) if parts.v is not None else parts.k(text).chunk(parts.pieces, -1)[-1])

    def _raw_keys(self, text: Tensor) -> Tensor:
        """Keys before norm and rotation, [b, t, (key heads, d)]."""
        z = self.parts.k(text)
        return z if self.parts.v is not None else z[..., : z.shape[-1] // self.parts.pieces * (self.parts.pieces - 1)]

    @property
    def _key_heads(self) -> int:
        return self.parts.key_heads or self.heads

    def _by_head(self, keys: Tensor) -> Tensor:
        return keys.unflatten(-1, (self._key_heads, -1))

    def for_all_heads(self, tensor: Tensor) -> Tensor:
        """Keys or values [b, t, (key heads, d)], each head once for every head of the queries that reads it."""
        shared = self.heads // self._key_heads
        if shared == 1 or (self.k is not None and tensor.shape[-1] == self.q.shape[-1]):
            return tensor
        width = self.q.shape[-1] // self.heads
        return tensor.unflatten(-1, (-1, width)).repeat_interleave(shared, dim=-2).flatten(2)

    def _before_norm(self, step: Tensor, context: Tensor | slice) -> Tensor:
        """A step in the keys [b, t, (h d)] -> in what the module makes of the text, [b, t, (key heads, d)]."""
        if self._key_heads != self.heads:
            step = step.unflatten(-1, (self._key_heads, self.heads // self._key_heads, -1)).sum(dim=3).flatten(2)
        if self.rotate is not None:
            step = self.rotate(self._by_head(step), True).flatten(2)
        norm = self.parts.k_norm
        if norm is None:
            return step
        z = self._z_of(context)
        if not self.parts.per_head:
            return through_norm(norm, z, step).to(step.dtype)
        return through_norm(norm, self._by_head(z), self._by_head(step)).flatten(2).to(step.dtype)

    def _z_of(self, context: Tensor | slice) -> Tensor:
        if not isinstance(context, slice):
            return self._raw_keys(self._modulated(context))
        if self.z is None:
            return self._raw_keys(self._modulated(self.read_context)[context])
        return self.z[context]

    def _project(self, step: Tensor) -> Tensor:
        pieces = self.parts.pieces
        if self.parts.v is None:  # no step in the values
            step = torch.nn.functional.pad(step, (0, step.shape[-1] // (pieces - 1)))
        return project_to_context(step, self.parts.k, self.context.shape[-1])


def is_word(context: Tensor, words: Tensor | None) -> Tensor:
    """1 for the tokens of a text [b, t, c] that are words, 0 for its padding -> [b, t, 1]. words: EncodedText.words.

    Padding is all zero, or in a tail of two or more rows that are equal bit for bit. Unlike the padding of SD 1.x,
    which summarises the prompt, it receives attention but has no meaning, so it is not updated.
    """
    equal = (context == context[:, -1:]).all(dim=-1)
    places = torch.arange(context.shape[1], device=context.device)
    tail = places > torch.where(equal, -1, places).amax(dim=1, keepdim=True)
    is_padding = tail & (tail.sum(dim=1, keepdim=True) > 1) | (context == 0).all(dim=-1)
    known = (~is_padding).unsqueeze(-1).to(context.dtype)
    return known if words is None else known * words


def _words(context: Tensor, mask: Tensor | None, not_words: slice | Tensor | None) -> Tensor | None:
    """EncodedText.words of a text [b, t, c] with an attention mask [b, .., t], but for padding that shows in it."""
    if mask is None and not_words is None:
        return None
    words = context.new_ones(*context.shape[:2], 1)
    if mask is not None:
        words = words * ~hidden_tokens(mask).unsqueeze(-1)
    if not_words is not None:
        words[(slice(None), not_words) if isinstance(not_words, slice) else not_words] = 0
    return words


class _CallHooks:
    """The hooks of one call."""

    def __init__(
        self,
        family: Family,
        call: DenoiserCall,
        network: Module,
        rows: CallRows,
        args: Sequence[Any],
        conds: Mapping[str, Any],
    ):
        """rows: of the call; args, conds: positional and keyword arguments of apply_model."""
        self._family = family
        self._call = call
        self._network = network
        self._layers = dict(family.layers(network))
        self._unread = unread_layers(family, self._layers)
        self._rows = rows
        self._batch = args[0].shape[0]
        self._given_context = args[CONTEXT]
        self._grid = partial(family.grid, network, latent_shape(args[0], conds), conds)
        self._not_words = family.not_words and family.not_words(conds, args[CONTEXT])
        self._rotate = family.rotate and partial(family.rotate, network)
        self._first: str | None = None
        #: The keyword arguments of the block that runs (Blocks).
        self._block_kwargs: Mapping[str, Any] = {}
        #: The module that runs.
        self._visit: _Visit | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._layers.items():
                if not is_unpatched(module, "forward"):
                    self._call.run.notices.bypassed(notices.FORWARD_REPLACED)
                    continue
                if self._family.blocks is not None:
                    block = self._family.blocks.around(self._network, name)
                    note = in_this_thread(self._note_block)
                    stack.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
                enter = in_this_thread(partial(self._enter, name))
                stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                self._hook_parts(name, self._family.parts(module), stack)
            yield

    def finish(self) -> None:
        if self._first is not None:
            self._call.finish()

    def _hook_parts(self, name: str, parts: Parts, stack: ExitStack) -> None:
        if parts.k_norm is not None and not parts.heads_first:
            stack.callback(parts.k_norm.register_forward_pre_hook(in_this_thread(self._note_z)).remove)
        if parts.out is not None:
            stack.callback(parts.q.register_forward_hook(in_this_thread(self._note_q)).remove)
            replace = in_this_thread(partial(self._replace_output, name))
            stack.callback(parts.out.register_forward_pre_hook(replace).remove)

    # --- a module ---

    def _note_block(self, block: Module, args: tuple, kwargs: dict) -> None:
        """Pre-hook of a block: its texts, before it changes them."""
        self._block_kwargs = kwargs

    def _enter(self, name: str, module: Module, args: tuple, kwargs: dict):
        """Pre-hook of a module: give it the context as updated so far."""
        family, call = self._family, self._call
        stream = family.stream(name)
        if not _is_picture(family, args, self._grid(stream)):
            return None
        given = _given(family, args, kwargs)
        before = family.image_rows(module, kwargs)
        context, modulation = _unpacked(family, given, self._batch), None
        if family.blocks is not None:
            block = family.blocks.around(self._network, name)
            unmodulated = self._block_kwargs[family.blocks.texts[stream]]
            modulation = family.blocks.modulation(block, stream, unmodulated, self._block_kwargs)
            context = context if modulation is None else unmodulated
        text = context[:, before:]
        if self._first in (None, name):
            if self._first is not None:
                call.finish()  # the network runs again in the same call
            self._first = name
            call.begin(list(self._layers), self._unread, self._rows, text, stream, self._given_context)
        moved = call.context(name, text, stream)
        parts = family.parts(module)
        mask = _text_mask(kwargs)
        words = _words(text, mask, self._not_words)
        visit = _Visit(
            stream, parts, text, moved, mask, words, modulation, args, kwargs, family.attention_call(module),
            preferred_attention(module),
        )  # fmt: skip
        self._visit = visit
        if not call.works_in(name):
            visit.is_done = True
        if moved is not text:
            full = torch.cat([context[:, :before], moved], dim=1) if before else moved
            full = full if modulation is None else full * modulation[0] + modulation[1]
            args, kwargs = _with_text(family, args, kwargs, _packed(family, full))
        if parts.out is None:
            options = kwargs.get("transformer_options") or {}
            other = options.get(OVERRIDE)
            override = partial(self._override, name, visit, other)
            kwargs = {**kwargs, "transformer_options": {**options, OVERRIDE: override}}
        return args, kwargs

    def _note_z(self, norm: Module, args: tuple) -> None:
        """Pre-hook of a key norm: the keys before it."""
        visit = self._visit
        if visit is not None and visit.parts.k_norm is norm and not visit.is_done:
            visit.z = args[0]

    def _override(self, name: str, visit: _Visit, other: Callable | None, function: Callable, *args, **kwargs):
        """Attention override of a module: its attention, with EBCA's part."""
        own = attention_without_ebca(function, other, visit.preferred | kwargs)
        out = own(*args, **kwargs)
        call, visit.calls = visit.calls, visit.calls + 1
        if visit.is_done or call != visit.attention_call:
            return out
        visit.is_done = True
        q, k, v = (_flat(tensor, kwargs.get("skip_reshape", False)) for tensor in args[:3])
        if not k.shape[1] == v.shape[1] == visit.moved.shape[1]:
            self._call.run.notices.bypassed(notices.TEXT_REPLACED)
            return out
        heads = args[3] if len(args) > 3 else kwargs["heads"]
        flags = {key: value for key, value in kwargs.items() if key not in _SHAPE_FLAGS}
        attention, plain = partial(own, **flags), None
        if other is not None:
            plain = partial(attention_without_ebca(function, None, visit.preferred | kwargs), **flags)
        is_split = kwargs.get("skip_output_reshape", False)
        flat = _flat(out, True) if is_split else out
        layer = self._attention(name, visit, q, k, v, heads, attention, plain, kwargs.get("attn_precision"))
        result = self._call.output(layer, flat)
        if not is_split:
            return result
        return torch.empty_like(out).copy_(result.unflatten(-1, (heads, -1)).transpose(1, 2))  # in the host's layout

    # --- a module that gets no options ---

    def _note_q(self, module: Module, args: tuple, out: Tensor) -> None:
        visit = self._visit
        if visit is not None and visit.parts.q is module and not visit.is_done:
            visit.q = out

    def _replace_output(self, name: str, module: Module, args: tuple):
        """Pre-hook of the output projection: the attention's output [b, n, (h d)], with EBCA's part."""
        visit = self._visit
        if visit is None or visit.is_done or visit.parts.out is not module:
            return None
        visit.is_done = True
        q = visit.parts.queries(visit.q, visit.args)
        options = visit.kwargs.get("transformer_options") or {}
        attention, plain = partial(host.optimized_attention, transformer_options=options, **visit.preferred), None
        if OVERRIDE in options:
            others = {name: value for name, value in options.items() if name != OVERRIDE}
            plain = partial(host.optimized_attention, transformer_options=others, **visit.preferred)
        layer = self._attention(name, visit, q, None, None, visit.parts.heads, attention, plain, None)
        (layer.k,) = layer.keys([visit.moved])
        return (self._call.output(layer, args[0]), *args[1:])

    def _attention(self, name, visit, q, k, v, heads, attention, plain, attn_precision) -> TransformerAttention:
        z = visit.z
        if z is not None:
            z = z.reshape(*z.shape[:2], -1) if z.shape[:2] == visit.moved.shape[:2] else None
        grid = self._grid(visit.stream)
        layer = TransformerAttention(
            name, visit.stream, visit.parts, q, k, v, heads, visit.text, visit.text, visit.text_mask, visit.words,
            grid.size, grid.before, attention, plain, self._call.run.notices, attn_precision, z, visit.moved,
            visit.modulation, self._rotate,
        )  # fmt: skip
        if k is not None:
            layer.k, layer.v = layer.for_all_heads(k), layer.for_all_heads(v)
        return layer


@dataclass(eq=False)
class _Visit:
    """One run of a module: its text before and after EBCA's change, and what its parts have shown."""

    stream: str
    parts: Parts
    text: Tensor
    moved: Tensor
    text_mask: Tensor | None
    words: Tensor | None
    modulation: tuple[Tensor, Tensor] | None
    args: tuple
    kwargs: Mapping[str, Any]
    attention_call: int
    #: Keyword arguments with which the module asks for an attention of its own, in newer versions of ComfyUI.
    preferred: Mapping[str, Any]
    calls: int = 0
    is_done: bool = False
    z: Tensor | None = None
    q: Tensor | None = None


#: Keyword arguments of attention functions that say how q, k and v lie in memory, and the mask.
_SHAPE_FLAGS = ("skip_reshape", "skip_output_reshape", "mask", "heads", "enable_gqa")


def _texts_of(
    family: Family, module: Module, args: tuple, kwargs: Mapping[str, Any], batch: int, conds: Mapping[str, Any],
    context: Tensor,
) -> dict[str, EncodedText]:  # fmt: skip
    """The texts [b, t, c] among the arguments of a module, or of the block around it, by stream.

    conds, context: keyword arguments of apply_model, and its context [b, t, c].
    """
    not_words = family.not_words and family.not_words(conds, context)
    mask = _text_mask(kwargs)
    if family.blocks is None:
        text = _unpacked(family, _given(family, args, kwargs), batch)
        given = {"": text[:, family.image_rows(module, kwargs) :]}
    else:
        given = {stream: kwargs[keyword] for stream, keyword in family.blocks.texts.items()}
    return {
        stream: EncodedText(text.clone(), mask, _words(text, mask, not_words)) for stream, text in given.items()
    }


def _is_picture(family: Family, args: tuple, grid: Grid | None) -> bool:
    return grid is None or not args or family.is_picture(args[0], grid)


def _given(family: Family, args: tuple, kwargs: Mapping[str, Any]) -> Tensor:
    """The text among the arguments of a module, as it lies there."""
    position, keyword = family.text
    return kwargs[keyword] if keyword in kwargs else args[position]


def _with_text(family: Family, args: tuple, kwargs: dict[str, Any], text: Tensor) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a module with another text."""
    position, keyword = family.text
    if keyword in kwargs:
        return args, {**kwargs, keyword: text}
    return (*args[:position], text, *args[position + 1 :]), kwargs


def _text_mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    """The mask of the text among the arguments of a module, or of the block around it."""
    mask = kwargs.get("mask", kwargs.get("attention_mask"))
    return mask if torch.is_tensor(mask) else None


def _unpacked(family: Family, text: Tensor, batch: int) -> Tensor:
    """A text as it lies in the argument -> [b, t, c]."""
    return rearrange(text, f"{family.text_layout} -> b t c", b=batch)


def _packed(family: Family, text: Tensor) -> Tensor:
    """[b, t, c] -> as it lies in the argument."""
    return rearrange(text, f"b t c -> {family.text_layout}")


def _flat(tensor: Tensor, has_heads: bool) -> Tensor:
    """[b, h, n, d] or [b, n, (h d)] -> [b, n, (h d)]."""
    return tensor.transpose(1, 2).flatten(2) if has_heads else tensor


def _copies_of_row(value: Any, batch: int, row: int, count: int) -> Any:
    """One row of a tensor with a row for each latent of a call, `count` times; anything else as it is."""
    if torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == batch:
        return value[row : row + 1].expand(count, *value.shape[1:]).clone()
    return value
