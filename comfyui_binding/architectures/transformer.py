"""Transformers that read text through a cross-attention module in each block: Wan, Cosmos, LTX, PixArt and others.

For the length of a call every such module gets a forward pre-hook. It gives the module the updated context and sees
its attention: through an attention override in the options that the module is called with, or, where a module gets no
options, through hooks on its parts. Nothing of ComfyUI's models is copied; a family says in `Family` what its modules
look like (transformer_families.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as host
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor
from torch.nn import Module

from ..runtime import notices
from ..runtime.denoiser_call import DenoiserCall
from ..runtime.settings import Edit
from ..runtime.text_attention import EncodedText, hidden_tokens
from .host_attention import exchanged_attention, preferred_attention
from .key_norms import through_norm
from .key_projection import is_unpatched, project_to_context, together

#: Position of transformer_options among the arguments of BaseModel.apply_model.
TRANSFORMER_OPTIONS = 5
#: Arguments of networks that hold the attention mask of the text.
TEXT_MASKS = ("attention_mask",)
#: Options that networks themselves read.
PLAIN_OPTIONS = ("sample_sigmas", "sigmas", "rope_options")


@dataclass(frozen=True)
class Parts:
    """How a cross-attention module makes keys and values of a text [b, t, c]."""

    heads: int
    k: Module
    #: None: `k` makes keys and values in one product, keys first.
    v: Module | None
    #: Of the keys; per_head: it acts on each head instead of all of them together.
    k_norm: Module | None = None
    per_head: bool = True
    #: In modules that get no options: what makes the queries, and what takes the attention's output.
    q: Module | None = None
    out: Module | None = None
    #: The same: the queries [b, n, (h d)] from the output of `q` and the module's arguments.
    queries: Callable[[Tensor, tuple], Tensor] | None = None


@dataclass(frozen=True)
class Grid:
    """Frames, rows and columns of a network's image tokens; tokens before and after them belong to no image."""

    size: tuple[int, ...]
    before: int = 0


@dataclass(frozen=True)
class Family:
    """What one kind of transformer looks like."""

    #: Its class; subclasses are families of their own unless `subclasses` is set.
    network: type
    #: {name: cross-attention module}, in the order of a call.
    layers: Callable[[Module], Mapping[str, Module]]
    parts: Callable[[Module], Parts]
    #: The grid of a network for an input of shape [b, c, (frames,) height, width] and what else it is called with.
    grid: Callable[[Module, torch.Size, Mapping[str, Any]], Grid | None]
    #: Position and name of the text among the arguments of the modules.
    text: tuple[int, str] = (1, "context")
    #: Width of the text that encoders give, None where it is not checked.
    text_width: Callable[[Module], int | None] = lambda network: None
    #: Rows in front of the text that are none (image tokens), from a module and its keyword arguments.
    rows_before_text: Callable[[Module, Mapping[str, Any]], int] = lambda module, kwargs: 0
    #: Which of a module's attention calls reads the text.
    attention_call: Callable[[Module], int] = lambda module: 0
    #: Whether the text that layers read depends on the noise level.
    text_depends_on_sigma: bool = False
    #: Whether all texts of a batch come as one row of tokens, [1, (b t), c].
    packed_rows: bool = False
    #: Why the family is refused, None where it is not.
    refusal: str | None = None
    subclasses: bool = False

    def matches(self, network: Module) -> bool:
        return isinstance(network, self.network) if self.subclasses else type(network) is self.network


class Transformer:
    """The architecture of one family."""

    wrappers: Mapping[str, Callable] = {}
    repeats_prompts = False

    def __init__(self, family: Family):
        self.family = family

    def layer_names(self, network: Module) -> tuple[str, ...]:
        return tuple(self.family.layers(network))

    def context_width(self, network: Module, model_config: Any) -> int | None:
        return self.family.text_width(network)

    def why_unsupported(self, network: Module, name: str) -> str | None:
        return self.family.refusal

    @contextmanager
    def intercept(self, call: DenoiserCall, model: Module, args: Sequence[Any], kwargs: Mapping[str, Any]):
        """Hooks on every text cross-attention module of a model's network, for one call of the model."""
        network = model.diffusion_model
        run = call.run
        if not self.family.matches(network):
            run.notices.bypassed(notices.network_replaced(type(network).__name__))
            yield
            return
        call.texts = {edit: self._encoded(run, model, edit, args, kwargs) for edit in call.edits}
        hooks = _CallHooks(self.family, call, network, args, kwargs)
        with hooks.installed():
            yield
        hooks.finish()

    def _encoded(self, run, model: Module, edit: Edit, args: Sequence[Any], kwargs: Mapping[str, Any]) -> EncodedText:
        """An edit's text as the layers read it."""
        key = ("edit text", edit, args[0].shape[-2:], args[0].device)
        read = partial(self.read_text, model, edit, args, kwargs)
        return read() if self.family.text_depends_on_sigma else run.cache.cached(key, read)

    def read_text(self, model: Module, edit: Edit, args: Sequence[Any], kwargs: Mapping[str, Any]) -> EncodedText:
        """Run the network on an edit's prompt up to its first cross-attention, and note what that is given."""
        x, timestep, concat, *_ = args
        batch, images = x.shape[0], edit.conditioning[0][0].shape[0]
        conds = {"edit": comfy.sampler_helpers.convert_cond(edit.conditioning)}
        (cond,) = comfy.samplers.process_conds(model, x, conds, x.device)["edit"]
        own = {
            name: _copied(one.process_cond(batch_size=images, area=None).cond, x.device)
            for name, one in cond["model_conds"].items()
            if name != "c_concat"
        }
        context = own.pop("c_crossattn")
        others = {name: _first_rows(value, batch, images) for name, value in kwargs.items()}
        others |= {name: None for name in TEXT_MASKS if name in others}  # of the prompt's text
        x, timestep, concat = (_first_rows(value, batch, images) for value in (x, timestep, concat))
        options = {name: args[TRANSFORMER_OPTIONS][name] for name in PLAIN_OPTIONS if name in args[TRANSFORMER_OPTIONS]}
        name, module = next(iter(self.family.layers(model.diffusion_model).items()))
        own_thread = threading.get_ident()

        def note(module: Module, args: tuple, kwargs: dict):
            if threading.get_ident() == own_thread:
                raise _TextRead(_text_of(self.family, module, args, kwargs, images))

        handle = module.register_forward_pre_hook(note, with_kwargs=True)
        try:
            model.apply_model(x, timestep, concat, context, None, options, **{**others, **own})
        except _TextRead as read:
            return read.text
        finally:
            handle.remove()
        raise RuntimeError(f"EBCA: the network did not reach its layer {name}. Please report the model.")


class _TextRead(Exception):
    """Ends a call of the network that was made to read a text."""

    def __init__(self, text: EncodedText):
        super().__init__()
        self.text = text


@dataclass(eq=False)
class TransformerAttention:
    """TextAttention of one cross-attention module."""

    name: str
    parts: Parts
    q: Tensor
    k: Tensor
    v: Tensor | None
    heads: int
    context: Tensor
    value_context: Tensor
    grid: tuple[int, ...] | None
    tokens_before_grid: int | None
    has_attention_override: bool
    text_mask: Tensor | None
    #: The attention function of the call, (q, k, v, heads, mask=) -> [b, n, (h d)].
    attention: Callable[..., Tensor]
    attn_precision: torch.dtype | None
    #: The keys before their norm, of the context that the layer has read; None where it is not known.
    z: Tensor | None
    read_context: Tensor
    values_follow: Tensor | None = None
    refused_edits: bool = False

    @property
    def normalises_keys(self) -> bool:
        return self.parts.k_norm is not None

    def keys(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        return together(self._keys, contexts)

    def values(self, contexts: Sequence[Tensor]) -> Sequence[Tensor]:
        parts = self.parts
        return together(parts.v if parts.v is not None else lambda c: parts.k(c).chunk(2, dim=-1)[1], contexts)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: int | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        return self.attention(q, k, v, self.heads, mask=text_mask)

    def attend_exchanged(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        return exchanged_attention()(
            query, key, value, heads, attn_precision=self.attn_precision, low_precision_attention=False
        )

    def pullback(
        self,
        steps: Sequence[Tensor],
        contexts: Sequence[Tensor | slice],
        text_masks: Sequence[Tensor | None],
    ) -> Sequence[Tensor]:
        before_norm = [
            step if self.parts.k_norm is None else self._before_norm(step, self._z_of(context))
            for step, context in zip(steps, contexts, strict=True)
        ]
        changes = together(self._project, before_norm)
        read = [self.read_context[c] if isinstance(c, slice) else c for c in contexts]
        return [
            change * is_word(context, mask) for change, context, mask in zip(changes, read, text_masks, strict=True)
        ]

    def _keys(self, context: Tensor) -> Tensor:
        z = self._raw_keys(context)
        if self.parts.k_norm is None:
            return z
        if not self.parts.per_head:
            return self.parts.k_norm(z)
        return self.parts.k_norm(z.unflatten(-1, (self.heads, -1))).flatten(-2)

    def _raw_keys(self, context: Tensor) -> Tensor:
        z = self.parts.k(context)
        return z if self.parts.v is not None else z.chunk(2, dim=-1)[0]

    def _z_of(self, context: Tensor | slice) -> Tensor:
        if isinstance(context, slice):
            return self._raw_keys(self.read_context[context]) if self.z is None else self.z[context]
        return self._raw_keys(context)

    def _before_norm(self, step: Tensor, z: Tensor) -> Tensor:
        if not self.parts.per_head:
            return through_norm(self.parts.k_norm, z, step).to(step.dtype)
        z, step = (tensor.unflatten(-1, (self.heads, -1)) for tensor in (z, step))
        return through_norm(self.parts.k_norm, z, step).flatten(-2).to(step.dtype)

    def _project(self, step: Tensor) -> Tensor:
        if self.parts.v is None:
            step = torch.cat([step, torch.zeros_like(step)], dim=-1)
        return project_to_context(step, self.parts.k, self.context.shape[-1])


def is_word(context: Tensor, text_mask: Tensor | None) -> Tensor:
    """1 for the tokens of a text [b, t, c] that are words, 0 for its padding -> [b, t, 1].

    Padding is what is masked, all zero, or in a tail of two or more rows that are equal bit for bit. Unlike the padding
    of SD 1.x, which summarises the prompt, it is a sink of attention and takes no step.
    """
    equal = (context == context[:, -1:]).all(dim=-1)
    places = torch.arange(context.shape[1], device=context.device)
    tail = places > torch.where(equal, -1, places).amax(dim=1, keepdim=True)
    is_padding = tail & (tail.sum(dim=1, keepdim=True) > 1) | (context == 0).all(dim=-1)
    if text_mask is not None:
        is_padding = is_padding | hidden_tokens(text_mask)
    return (~is_padding).unsqueeze(-1).to(context.dtype)


class _CallHooks:
    """The hooks of one call. Modules may be shared by threads: a hook acts in the thread that has installed it."""

    def __init__(
        self, family: Family, call: DenoiserCall, network: Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ):
        self._family = family
        self._call = call
        self._layers = dict(family.layers(network))
        self._options = args[TRANSFORMER_OPTIONS]
        self._batch = args[0].shape[0]
        self._grid = family.grid(network, args[0].shape, kwargs)
        self._thread = threading.get_ident()
        self._first: str | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._layers.items():
                if not is_unpatched(module, "forward"):
                    self._call.run.notices.bypassed(notices.FORWARD_REPLACED)
                    continue
                stack.callback(module.register_forward_pre_hook(partial(self._enter, name), with_kwargs=True).remove)
                self._hook_parts(name, self._family.parts(module), stack)
            yield

    def finish(self) -> None:
        if self._first is not None:
            self._call.finish()

    def _hook_parts(self, name: str, parts: Parts, stack: ExitStack) -> None:
        if parts.k_norm is not None:
            stack.callback(parts.k_norm.register_forward_pre_hook(partial(self._note_z, name)).remove)
        if parts.out is not None:
            stack.callback(parts.q.register_forward_hook(partial(self._note_q, name)).remove)
            stack.callback(parts.out.register_forward_pre_hook(partial(self._replace_output, name)).remove)

    def _is_own_thread(self) -> bool:
        return threading.get_ident() == self._thread

    # --- a module ---

    def _enter(self, name: str, module: Module, args: tuple, kwargs: dict):
        """Pre-hook of a module: give it the context as updated so far."""
        if not self._is_own_thread():
            return None
        family, call = self._family, self._call
        position, keyword = family.text
        given = kwargs[keyword] if keyword in kwargs else args[position]
        before = family.rows_before_text(module, kwargs)
        context = _unpacked(given, self._batch) if family.packed_rows else given
        text = context[:, before:]
        if self._first in (None, name):
            if self._first is not None:
                call.finish()  # the network runs again in the same call
            self._first = name
            rows = call.run.layout.rows(self._options, self._batch, call.latent_size)
            call.begin(list(self._layers), rows, text)
        moved = call.context(name, text)
        parts = family.parts(module)
        preferred = preferred_attention(module).get("preferred_attention")
        visit = _Visit(parts, text, moved, _text_mask(kwargs), args, family.attention_call(module), preferred)
        self._visit = visit
        if not call.works_in(name):
            visit.is_done = True
        if moved is not text:
            full = torch.cat([context[:, :before], moved], dim=1) if before else moved
            full = full.reshape(given.shape) if family.packed_rows else full
            if keyword in kwargs:
                kwargs = {**kwargs, keyword: full}
            else:
                args = (*args[:position], full, *args[position + 1 :])
        if parts.out is None:
            options = kwargs.get("transformer_options") or {}
            other = options.get("optimized_attention_override")
            override = partial(self._override, name, visit, other)
            kwargs = {**kwargs, "transformer_options": {**options, "optimized_attention_override": override}}
        return args, kwargs

    def _note_z(self, name: str, norm: Module, args: tuple) -> None:
        """Pre-hook of a key norm: the keys before it."""
        visit = getattr(self, "_visit", None)
        if self._is_own_thread() and visit is not None and visit.parts.k_norm is norm and not visit.is_done:
            visit.z = args[0]

    def _override(self, name: str, visit: _Visit, other: Callable | None, function: Callable, *args, **kwargs):
        """Attention override of a module: its attention, with EBCA's part."""
        chosen = getattr(kwargs.get("preferred_attention", visit.preferred), "function", None)
        own = chosen or function if other is None else partial(other, function)
        out = own(*args, **kwargs)
        call, visit.calls = visit.calls, visit.calls + 1
        if visit.is_done or call != visit.attention_call:
            return out
        visit.is_done = True
        q, k, v = (_flat(tensor, kwargs.get("skip_reshape", False)) for tensor in args[:3])
        heads = args[3] if len(args) > 3 else kwargs["heads"]
        flags = {key: value for key, value in kwargs.items() if key not in _SHAPE_FLAGS}
        attention = partial(own, **flags)
        is_split = kwargs.get("skip_output_reshape", False)
        flat = _flat(out, True) if is_split else out
        layer = self._attention(name, visit, q, k, v, heads, attention, kwargs.get("attn_precision"), other is not None)
        result = self._call.output(layer, flat)
        return result.unflatten(-1, (heads, -1)).transpose(1, 2) if is_split else result

    # --- a module that gets no options ---

    def _note_q(self, name: str, module: Module, args: tuple, out: Tensor) -> None:
        visit = getattr(self, "_visit", None)
        if self._is_own_thread() and visit is not None and visit.parts.q is module and not visit.is_done:
            visit.q = out

    def _replace_output(self, name: str, module: Module, args: tuple):
        """Pre-hook of the output projection: the attention's output [b, n, (h d)], with EBCA's part."""
        visit = getattr(self, "_visit", None)
        if not self._is_own_thread() or visit is None or visit.is_done or visit.parts.out is not module:
            return None
        visit.is_done = True
        q = visit.parts.queries(visit.q, visit.args)
        attention = partial(host.optimized_attention)
        layer = self._attention(name, visit, q, None, None, visit.parts.heads, attention, None, False)
        z = layer._raw_keys(visit.moved) if visit.z is None else visit.z
        layer.z = z if visit.parts.k_norm is not None else None
        layer.k = layer.keys([visit.moved])[0]
        layer.z = None if visit.z is None else visit.z.reshape(layer.k.shape)
        return (self._call.output(layer, args[0]), *args[1:])

    def _attention(self, name, visit, q, k, v, heads, attention, attn_precision, has_override) -> TransformerAttention:
        z = visit.z
        if z is not None:
            z = z.reshape(*z.shape[:2], -1) if z.shape[:2] == visit.moved.shape[:2] else None
        grid = self._grid
        return TransformerAttention(
            name, visit.parts, q, k, v, heads, visit.text, visit.text, grid and grid.size, grid.before if grid else 0,
            has_override, visit.text_mask, attention, attn_precision, z, visit.moved,
        )  # fmt: skip


@dataclass(eq=False)
class _Visit:
    """One run of a module: its text before and after EBCA's change, and what its parts have shown."""

    parts: Parts
    text: Tensor
    moved: Tensor
    text_mask: Tensor | None
    args: tuple
    attention_call: int
    #: The attention that the module itself prefers, in newer versions of ComfyUI.
    preferred: Any
    calls: int = 0
    is_done: bool = False
    z: Tensor | None = None
    q: Tensor | None = None


#: Keyword arguments of attention functions that say how q, k and v lie in memory, and the mask.
_SHAPE_FLAGS = ("skip_reshape", "skip_output_reshape", "mask", "heads")


def _text_of(
    family: Family, module: Module, args: tuple, kwargs: Mapping[str, Any], batch: int
) -> EncodedText:
    """The text [b, t, c] among the arguments of a module, and its mask."""
    position, keyword = family.text
    given = kwargs[keyword] if keyword in kwargs else args[position]
    context = _unpacked(given, batch) if family.packed_rows else given
    return EncodedText(context[:, family.rows_before_text(module, kwargs) :].clone(), _text_mask(kwargs))


def _text_mask(kwargs: Mapping[str, Any]) -> Tensor | None:
    mask = kwargs.get("mask")
    return mask if torch.is_tensor(mask) else None


def _unpacked(text: Tensor, batch: int) -> Tensor:
    """[1, (b t), c] -> [b, t, c]."""
    return text.reshape(batch, -1, text.shape[-1])


def _flat(tensor: Tensor, has_heads: bool) -> Tensor:
    """[b, h, n, d] or [b, n, (h d)] -> [b, n, (h d)]."""
    return tensor.transpose(1, 2).flatten(2) if has_heads else tensor


def _copied(value: Any, device: torch.device) -> Any:
    """A tensor's copy: some networks write into their inputs."""
    return value.to(device, copy=True) if torch.is_tensor(value) else value


def _first_rows(value: Any, batch: int, rows: int) -> Any:
    """The first row of a tensor with a row for each latent of a call, `rows` times; anything else as it is."""
    if torch.is_tensor(value) and value.ndim > 0 and value.shape[0] == batch:
        return value[:1].expand(rows, *value.shape[1:]).clone()
    return value
