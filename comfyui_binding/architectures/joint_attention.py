"""Transformers in which text and image attend to each other in one attention: Qwen-Image, Flux and others.

There the image's queries read the keys of the text and of the image itself, and the text is changed by every block. For
the composition each edit's text is a text of its own, beside the prompt's, which attends to itself and to the one
image; what the image reads with each of the texts is mixed by the weights of the edits, as in cross-attention.

For the length of a call of the model the edits' texts follow the prompt's as more text tokens, so that everything that
a network does token by token is right as it is. Hooks compute a separate attention for each text in place of each joint
attention, and give each text the positions that it has alone. Nothing of ComfyUI's models is copied;
a family says in `JointFamily` where its tokens lie (joint_families.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import pad

from ...ebca_core import mix_contexts
from ..runtime import notices
from ..runtime.batch_layout import Chunk, latent_shape
from ..runtime.denoiser_call import DenoiserCall, EditsRefused
from ..runtime.settings import Edit
from ..runtime.tensor_cache import rows_of_images
from ..runtime.torch_compile import uncompiled
from ..wrapped_arguments import TRANSFORMER_OPTIONS
from .edit_conds import conds_of
from .host_attention import OVERRIDE, attend_to_edit, attention_without_ebca
from .joint_layer_call import IMAGE, LayerCall, SharedLayerCall, shared_form
from .module_hooks import in_this_thread, is_unpatched, replaced_in
from .transformer_families import TEXT_MASKS, Grid, is_of_class

NO_UPDATE = (
    "it attends to text and image in one softmax, where every block updates the text by the image already and the "
    "update of the context is not defined"
)
NO_TRACE = "its text is no context that layers share, and its attention to text is a part of that to the image"
#: The tokens among the arguments and results of a patch in place of a block.
BLOCK_TOKENS = ("img", "txt")
#: Forward passes of a network that other packs replace.
FORWARDS = ("forward", "_forward", "forward_orig", "forward_core_with_concat", "patchify_and_embed")

Rotation = Tensor | tuple[Tensor, ...]
"""Of tokens, [b or 1, t + n, ..]; before ComfyUI 0.30 several of these, of the cosines and of the sines."""


@dataclass(frozen=True)
class JointFamily:
    """Where one kind of network has its texts."""

    #: Its class in comfy.ldm, by name; subclasses are families of their own.
    network: str
    #: {name: module whose first attention call is that of text and image}, in the order of a call.
    layers: Callable[[Module], Mapping[str, Module]]
    #: The grid of the picture's tokens, the first of the image's, from the network, the shape of its input and the
    #: keyword arguments of apply_model.
    grid: Callable[[Module, Sequence[int], Mapping[str, Any]], Grid]
    #: Width of the text that encoders give as `context`.
    text_width: Callable[[Module], int]
    #: {keyword argument of the network that holds a text: the axis of its tokens}.
    texts: Mapping[str, int] = field(default_factory=lambda: {"context": 1})
    #: These texts as they follow each other in an attention call.
    sequence: Sequence[str] = ("context",)
    #: Whether they are before the image's tokens there, or behind them.
    is_text_first: bool = True
    #: The keyword argument of the network that counts the text's tokens, where there is one.
    token_count: str | None = None
    #: The module whose input is the positions [b, t + n, axes] of the tokens, where texts have positions.
    positions: Callable[[Module], Module | None] = lambda network: None
    #: Where texts have positions and no module embeds them: the place, among a layer's arguments, of the Rotation of
    #: its tokens. The text's first ones are any text's.
    rotation: int | None = None
    #: The text [b, t, c] among the arguments of a layer; None for a layer that gets text and image as one.
    text: Callable[[tuple, Mapping[str, Any]], Tensor | None] = lambda args, kwargs: None
    #: What apply_model's mask is of: the text's tokens [b, t], and it is added to the scores; the text's tokens, of
    #: which the network makes a mask [b or 1, 1, 1 or n, n] of all tokens itself; text and image of the prompt
    #: [b, t + n, t + n], which no edit has; or nothing that the network reads.
    masks: Literal["text", "text, by the network", "text and image", "nothing"] = "text"
    #: Modules with an attention of the text's tokens alone.
    text_layers: Callable[[Module], Sequence[Module]] = lambda network: ()
    #: How texts are padded before the attention; None where they are not.
    padding: Callable[[Module], Padding | None] = lambda network: None
    #: The axis of the positions on which the image stands right behind the text. Every text then ends where the prompt
    #: does, so that the image stands to it as in a run of its own.
    axis_behind_text: int | None = None
    #: Whether it reads a pooled text, its keyword argument `y` [b, c].
    has_pooled_text: Callable[[Module], bool] = lambda network: False
    #: Why no edits can be composed in on a network; None where they can.
    why_unsupported: Callable[[Module], str | None] = lambda network: None
    #: Why edits are refused in a call, from the network's keyword arguments and the call; None where they are not.
    why_refused: Callable[[Mapping[str, Any], DenoiserCall], str | None] = lambda kwargs, call: None

    def matches(self, network: Module) -> bool:
        return is_of_class(network, self.network)


@dataclass(frozen=True)
class Padding:
    """Texts are padded with a learned token [1, c] to a multiple of a length, behind a module that embeds them."""

    embedder: Module
    token: Tensor
    multiple: int


class JointTransformer:
    """The architecture of one family."""

    wrappers: Mapping[str, Callable] = {}
    repeats_prompts = False
    has_joint_attention = True
    text_depends_on_sigma = False
    tokens_before_text = 0

    def __init__(self, family: JointFamily):
        self.family = family

    def layer_names(self, network: Module) -> tuple[str, ...]:
        return tuple(self.family.layers(network))

    def context_width(self, network: Module, model_config: Any) -> int:
        return self.family.text_width(network)

    def why_unsupported(self, network: Module, name: str) -> str | None:
        return self.family.why_unsupported(network)

    def why_no_update(self, network: Module) -> str | None:
        return NO_UPDATE

    def why_no_trace(self, network: Module) -> str | None:
        return NO_TRACE

    def has_pooled_text(self, network: Module) -> bool:
        return self.family.has_pooled_text(network)

    def unread_layers(self, network: Module) -> frozenset[str]:
        return frozenset()

    @contextmanager
    def intercept(self, call: DenoiserCall, model: Module, args: Sequence[Any], kwargs: Mapping[str, Any]):
        """The edits' texts beside the prompt's, in calls that hold a positive prompt."""
        network, run = uncompiled(model.diffusion_model), call.run
        if not self.family.matches(network):
            raise EditsRefused(notices.network_replaced(type(network).__name__))
        modules = [network, *self.family.layers(network).values(), *self.family.text_layers(network)]
        for kind, name in {(type(module), name): None for module in modules for name in FORWARDS}:
            if by := replaced_in(kind, name):
                raise EditsRefused(notices.edits_skipped_for_pack(by))
        if not all(is_unpatched(module, name) for module in modules for name in FORWARDS if name in vars(module)):
            raise EditsRefused(notices.edits_skipped(notices.FORWARD))
        rows = run.layout.rows(args[TRANSFORMER_OPTIONS], args[0].shape[0], call.latent_size)
        if not rows.chunks:
            run.notices.bypassed(notices.edits_skipped(rows.reason))
        if not any(chunk.entry.positive for chunk in rows.chunks):
            yield
            return
        texts = {edit: self._text_of(call, model, edit, args[0]) for edit in call.edits}
        grid = self.family.grid(network, latent_shape(args[0], kwargs), kwargs)
        with _JointCall(self.family, call, rows.chunks, texts, grid).hooks_on(network):
            yield
        run.notices.accounted_for = True

    def _text_of(self, call: DenoiserCall, model: Module, edit: Edit, x: Tensor) -> _EditText:
        """An edit's text as the network is given it."""

        def read() -> _EditText:
            conds = conds_of(model, edit, x)
            texts = {name: conds.get("c_crossattn" if name == "context" else name) for name in self.family.texts}
            if None in texts.values():
                raise EditsRefused(notices.EDIT_WITHOUT_TEXT)
            mask = next((conds[name] for name in TEXT_MASKS if name in conds), None)
            return _EditText(texts, mask, conds.get("y"))

        return call.run.cache.cached(("edit text", edit, x.device), read)


@dataclass(frozen=True, eq=False)
class _EditText:
    """An edit's texts, by the network's arguments; their mask [b, t] and its pooled text [b, c], where it has some."""

    texts: Mapping[str, Tensor]
    mask: Tensor | None
    pooled: Tensor | None


@dataclass(eq=False)
class _Image:
    """ImageTokens of a layer: the image's rows and columns of its output."""

    name: str
    q: Tensor
    grid: tuple[int, ...]
    tokens_before_grid: int


class _JointCall:
    """The hooks of one call. Text 0 is the prompt's; those of the edits follow."""

    def __init__(
        self, family: JointFamily, call: DenoiserCall, chunks: Sequence[Chunk], texts: Mapping[Edit, _EditText],
        grid: Grid,
    ):  # fmt: skip
        self._family = family
        self._call = call
        self._chunks = chunks
        self._texts = texts
        self._grid = grid
        #: Of the prompt and of each edit: the tokens in the attention, by the network's arguments, and the mask that
        #: is added to the scores (JointFamily.masks).
        self._lengths: dict[str, list[int]] = {}
        self._masks: list[Tensor | None] = []
        #: Whether the position embedder has met the texts.
        self._are_texts_placed = False
        #: How many layers have been entered.
        self._layer_runs = 0
        #: The rotation that the network has given to layers, and the one that they get.
        self._rotation: tuple[Rotation, Rotation] | None = None

    @contextmanager
    def hooks_on(self, network: Module) -> Iterator[None]:
        with ExitStack() as stack:

            def hook(module: Module, function: Callable) -> None:
                handle = module.register_forward_pre_hook(in_this_thread(function), with_kwargs=True)
                stack.callback(handle.remove)

            family, padding = self._family, self._family.padding(network)
            hook(network, self._append_texts)
            if family.positions(network) is not None:
                hook(family.positions(network), self._place_tokens)
            if padding is not None:
                pad_texts = in_this_thread(partial(self._pad_texts, padding))
                stack.callback(padding.embedder.register_forward_hook(pad_texts).remove)
            layers = [(module, partial(self._attend, name)) for name, module in family.layers(network).items()]
            layers += [(module, self._attend_to_texts) for module in family.text_layers(network)]
            for module, attend in layers:
                visit = _Visit(attend)
                hook(module, partial(self._enter, visit))
                left = in_this_thread(visit.left)
                stack.callback(module.register_forward_hook(left).remove)
            yield

    # --- the network ---

    def _append_texts(self, network: Module, args: tuple, kwargs: dict[str, Any]):
        """Pre-hook of the network: the edits' texts behind the prompt's. Their masks act in the attention alone."""
        prompt = kwargs.get("context")
        if prompt is None or len(prompt) != self._chunks[-1].rows.stop:
            raise EditsRefused(notices.edits_skipped(notices.ROWS))
        reason = self._family.why_refused(kwargs, self._call)
        if reason is not None:
            raise EditsRefused(reason)
        texts = {}
        for name, axis in self._family.texts.items():
            edits = [self._rows(self._call.run.cache.cast(edit.texts[name], prompt)) for edit in self._texts.values()]
            texts[name] = torch.cat([kwargs[name], *edits], dim=axis)
            self._lengths[name] = [text.shape[axis] for text in (kwargs[name], *edits)]
        mask = next((kwargs[name] for name in TEXT_MASKS if name in kwargs), None)
        self._masks = self._masks_of(prompt, mask)
        self._are_texts_placed = False
        given = {**kwargs, **texts, **self._network_masks(kwargs, mask), **self._pooled(kwargs)}
        given["transformer_options"] = self._watched(kwargs["transformer_options"])
        if self._family.token_count is not None:
            given[self._family.token_count] = self._text_tokens
        return args, given

    def _watched(self, options: dict[str, Any]) -> dict[str, Any]:
        """The network's options, in which what other packs have put in place of its blocks is checked (`_watch`)."""
        patches = options.get("patches_replace", {})
        watched = {place: partial(self._watch, patch) for place, patch in patches.get("dit", {}).items()}
        return {**options, "patches_replace": {**patches, "dit": watched}} if watched else options

    def _watch(self, patch: Callable, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        """A patch in place of a block: it may run the block's layers or leave them out.

        In an attention of its own all texts would attend to each other: one that changes tokens without the layers is
        refused.
        """
        tokens = {name: args.get(name) for name in BLOCK_TOKENS}
        before = {name: one.clone() for name, one in tokens.items() if torch.is_tensor(one)}  # blocks write into them
        runs = self._layer_runs
        out = patch(args, extra)
        if self._layer_runs == runs and not all(torch.equal(out[name], was) for name, was in before.items()):
            raise EditsRefused(notices.edits_skipped(notices.BLOCK))
        return out

    def _network_masks(self, kwargs: Mapping[str, Any], mask: Tensor | None) -> dict[str, Tensor | None]:
        """What the network gets as masks of all texts [b, t]: none unless it makes its own mask of it."""
        masks = [mask, *(None if text.mask is None else self._rows(text.mask) for text in self._texts.values())]
        if self._family.masks != "text, by the network" or not any(one is not None for one in masks):
            return {name: None for name in TEXT_MASKS if name in kwargs}
        like = kwargs["context"]
        ones = [like.new_ones(len(like), count, dtype=torch.long) for count in self._lengths["context"]]
        (name,) = TEXT_MASKS
        return {name: torch.cat([one if own is None else own.to(one) for own, one in zip(masks, ones, strict=True)], 1)}

    @property
    def _text_tokens(self) -> int:
        """How many tokens of texts an attention call holds."""
        return sum(sum(self._lengths[name]) for name in self._family.sequence)

    def _pooled(self, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The pooled text with those of the edits mixed in, where any are."""
        weights = self._call.pooled_weights
        if not weights:
            return {}
        if kwargs.get("y") is None:
            raise EditsRefused(notices.PROMPT_WITHOUT_POOLED)
        pooled = kwargs["y"].clone()
        for chunk in self._chunks:
            if chunk.entry.positive:
                rows = pooled[chunk.rows]
                edits = [rows_of_images(self._call.run.cache.cast(self._texts[edit].pooled, rows), chunk)
                         for edit in weights]  # fmt: skip
                rows += mix_contexts(rows, edits, list(weights.values()))
        return {"y": pooled}

    def _rows(self, tensor: Tensor) -> Tensor:
        """A tensor of an edit for each row of the call; on negative prompts no token attends to its text."""
        return torch.cat([rows_of_images(tensor, chunk) for chunk in self._chunks])

    def _masks_of(self, prompt: Tensor, mask: Tensor | None) -> list[Tensor | None]:
        """The masks of the prompt and of the edits that are added to the scores."""
        if self._family.masks == "text":
            of_edits = [text.mask for text in self._texts.values()]
            masks = [mask, *(None if one is None else self._rows(one.to(prompt.device)) for one in of_edits)]
            return [_added_to_scores(mask, prompt) for mask in masks]
        return [mask if self._family.masks == "text and image" else None, *(None for _ in self._texts)]

    def _pad_texts(self, padding: Padding, embedder: Module, args: tuple, out: Tensor) -> Tensor:
        """Hook of the text's embedder: each text padded by itself, [b, t, c]; what follows finds nothing to pad."""
        token, texts = padding.token.to(out), []
        for text in out.split(self._lengths["context"], dim=1):
            texts.append(torch.cat([text, token.expand(len(text), -text.shape[1] % padding.multiple, -1)], dim=1))
        self._lengths["context"] = [text.shape[1] for text in texts]
        return torch.cat(texts, dim=1)

    def _place_tokens(self, embedder: Module, args: tuple, kwargs: dict[str, Any]):
        """Pre-hook of the position embedder: the texts' positions in its first call of a pass, the image's in all."""
        ids, *others = args
        axis, total = self._family.axis_behind_text, self._text_tokens
        prompt, *_ = lengths = self._lengths["context"]
        texts, image = [], ids
        if not self._are_texts_placed:
            self._are_texts_placed = True
            sizes = [total, ids.shape[1] - total]
            if self._family.is_text_first:
                all_texts, image = ids.split(sizes, dim=1)
            else:
                image, all_texts = ids.split(sizes[::-1], dim=1)
            for length in lengths:
                text = all_texts[:, :length]
                texts.append(text if axis is None else _moved(text, axis, prompt - length))
        if axis is not None:
            is_behind = image[..., axis] >= total
            image = torch.where(is_behind[..., None], _moved(image, axis, prompt - total), image)
        placed = [*texts, image] if self._family.is_text_first else [image, *texts]
        return (torch.cat(placed, dim=1), *others), kwargs

    # --- a layer ---

    def _enter(self, visit: _Visit, module: Module, args: tuple, kwargs: dict[str, Any]):
        """Pre-hook of a layer: it attends to each text apart."""
        text, options = self._family.text(args, kwargs), kwargs.get("transformer_options")
        if options is None or (text is not None and text.shape[1] != self._text_tokens):
            raise EditsRefused(notices.edits_skipped(notices.TOKENS))
        self._layer_runs += 1
        visit.calls, place = 0, self._family.rotation
        if place is not None:
            args = (*args[:place], self._rotated(args[place]), *args[place + 1 :])
        override = partial(visit.attend, visit, options.get(OVERRIDE))
        return args, {**kwargs, "transformer_options": {**options, OVERRIDE: override}}

    def _rotated(self, rotation: Rotation) -> Rotation:
        """The rotation of a layer's tokens, in which each text has the first ones."""
        if self._rotation is None or self._rotation[0] is not rotation:
            is_whole = isinstance(rotation, Tensor)
            parts = tuple(map(self._with_first_ones, (rotation,) if is_whole else rotation))
            self._rotation = rotation, parts[0] if is_whole else parts
        return self._rotation[1]

    def _with_first_ones(self, part: Tensor) -> Tensor:
        """[b or 1, t + n, ..] of one text -> the same of all texts, of which each has the first ones."""
        texts = [part[:, :length] for length in self._lengths["context"]]
        return torch.cat([*texts, part[:, self._text_tokens :]], dim=1)

    def _pieces(self, image: int) -> list[tuple[int, int]]:
        """(text or IMAGE, number of tokens) of what follows each other in an attention call with an image."""
        texts = [piece for name in self._family.sequence for piece in enumerate(self._lengths[name])]
        return [*texts, (IMAGE, image)] if self._family.is_text_first else [(IMAGE, image), *texts]

    def _attend(
        self, name: str, visit: _Visit, other: Callable | None, function: Callable, q: Tensor, k: Tensor, v: Tensor,
        heads: int, mask: Tensor | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Attention override of a layer: one attention for each text and the image, mixed on the image's tokens.

        q, k, v: [b, h, t + n, d] or [b, t + n, (h d)], t of all texts -> [b, t + n, (h d)]
        """
        own, visit.calls = attention_without_ebca(function, other, kwargs), visit.calls + 1
        if visit.calls > 1:
            return own(q, k, v, heads, mask=mask, **kwargs)
        tokens = 2 if kwargs.get("skip_reshape") else 1
        image = q.shape[tokens] - self._text_tokens
        is_masked = mask is not None and self._family.masks != "text, by the network"
        if is_masked or kwargs.get("skip_output_reshape") or image < 1:
            raise EditsRefused(notices.edits_skipped(notices.TOKENS))
        owners, sizes = zip(*self._pieces(image), strict=True)
        text_masks = [self._with_image(text_mask, image) for text_mask in self._masks]
        plain = LayerCall(own, q, k, v, heads, tokens, owners, sizes, mask, text_masks, kwargs)
        if plain.surplus < 0 or (plain.surplus and plain.is_masked):  # masks say nothing of such keys
            raise EditsRefused(notices.edits_skipped(notices.TOKENS))
        shared = self._shared(name, plain)
        of_prompt: list[tuple[slice, LayerCall | SharedLayerCall]] = [(slice(None), plain)]
        if shared is not None:
            of_prompt = [(chunk.rows, shared if chunk.entry.positive else plain) for chunk in self._chunks]
        of_edits = shared or replace(plain, attention=self._attention_of_edits(own, function, other, kwargs))
        read = [(rows, place, piece) for rows, call in of_prompt for place, piece in call.attend(0, rows)]
        *_, piece = read[0]
        out = piece.new_zeros(len(q), q.shape[tokens], piece.shape[2])
        outs = out.split(sizes, dim=1)
        for rows, place, piece in read:
            outs[place][rows] = piece
        for chunk in self._chunks:
            if chunk.entry.positive:
                of_image = {}
                for text, edit in enumerate(self._texts, start=1):
                    query_owners = (text, IMAGE) if edit.is_mixed_in(name) else (text,)
                    for place, piece in of_edits.attend(text, chunk.rows, query_owners):
                        if owners[place] == IMAGE:
                            of_image[edit] = piece
                        else:
                            outs[place][chunk.rows] = piece
                self._mix(name, outs[owners.index(IMAGE)][chunk.rows], of_image, chunk)
        return out

    def _shared(self, layer: str, plain: LayerCall) -> SharedLayerCall | None:
        """The shared form of a layer's attention where edits ask for it and act, and where it can be had."""
        texts = [text for text, edit in enumerate(self._texts, start=1) if edit.is_mixed_in(layer)]
        if not self._call.shares_attention or not texts:
            return None
        run, shared = self._call.run, shared_form(plain)
        if shared is None:
            run.notices.inform_once(notices.NOT_SHARED)
            return None
        rows = next(chunk.rows for chunk in self._chunks if chunk.entry.positive)
        kind = ("shared attention agrees", plain.kind)
        if run.cache.cached(kind, lambda: shared.agrees([0, *texts], rows)):
            return shared
        run.notices.warn_once(notices.SHARED_DIFFERS)
        return None

    def _with_image(self, mask: Tensor | None, image: int) -> Tensor | None:
        """The mask of a text, of the text and the image: one that the network has left to the hooks."""
        return pad(mask, (0, image)).unsqueeze(1) if mask is not None and self._family.masks == "text" else mask

    def _attend_to_texts(
        self, visit: _Visit, other: Callable | None, function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int,
        mask: Tensor | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Attention override of a layer of the text's tokens alone: one attention for each text."""
        own, visit.calls = attention_without_ebca(function, other, kwargs), visit.calls + 1
        tokens = 2 if kwargs.get("skip_reshape") else 1
        are_texts = q.shape[tokens] == k.shape[tokens] == self._text_tokens
        if mask is not None or kwargs.get("skip_output_reshape") or not are_texts:
            raise EditsRefused(notices.edits_skipped(notices.TOKENS))
        texts = zip(*(tensor.split(self._lengths["context"], dim=tokens) for tensor in (q, k, v)), strict=True)
        of_edits = self._attention_of_edits(own, function, other, kwargs)
        attentions = [own, *(of_edits for _ in self._texts)]
        outs = [attention(*text, heads, mask=None, **kwargs) for attention, text in zip(attentions, texts, strict=True)]
        return torch.cat(outs, dim=1)

    def _attention_of_edits(
        self, own: Callable, function: Callable, other: Callable | None, kwargs: Mapping[str, Any]
    ) -> Callable[..., Tensor]:
        """The attention of a layer to edits' texts: its own, or ComfyUI's where another pack's does not take them."""
        if other is None:
            return own
        plain = attention_without_ebca(function, None, kwargs)
        tokens = 2 if kwargs.get("skip_reshape") else 1

        def attend(q: Tensor, *given: Any, **more: Any) -> Tensor:
            theirs, ours = (partial(attention, q, *given, **more) for attention in (own, plain))
            return attend_to_edit(theirs, ours, (len(q), q.shape[tokens]), self._call.run.notices)

        return attend

    def _mix(self, layer: str, image: Tensor, outs: Mapping[Edit, Tensor], chunk: Chunk) -> None:
        """Mix what the image reads with edits' texts into what it reads with the prompt's, all [b, n, (h d)]."""
        tokens = _Image(layer, image, self._grid.size, self._grid.before)
        fit = self._call.masks_fit(tokens)
        weights = [self._call.weight_of(edit, chunk, tokens, fit) for edit in outs]
        if outs and self._call.limits_norm:
            self._call.mix_within_norm(image, list(outs.values()), weights, layer)
        elif outs:
            image += mix_contexts(image, list(outs.values()), weights)


@dataclass(eq=False)
class _Visit:
    """One run of a layer: its attention override, and how many attention calls it has made."""

    attend: Callable[..., Tensor]
    calls: int = 0

    def left(self, module: Module, args: tuple, out: Any) -> None:
        """Hook of a layer, which has run."""
        if self.calls == 0:
            raise EditsRefused(notices.edits_skipped(notices.ATTENTION))


def _moved(positions: Tensor, axis: int, by: int) -> Tensor:
    """Positions [b, t, axes] moved along an axis."""
    moved = positions.clone()
    moved[..., axis] += by
    return moved


def _added_to_scores(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask [b, t] as ComfyUI adds it to the scores: of integers, 1 for tokens that are read; of floats, as it is."""
    if mask is None or mask.is_floating_point():
        return None if mask is None else mask.to(like.dtype)
    return (mask - 1).to(like.dtype) * torch.finfo(like.dtype).max
