"""Transformers in which text and image attend to each other in one attention: Qwen-Image, Flux and others.

There the image's queries read the keys of the text and of the image itself, and the text is changed by every block. For
the composition each edit's text is a text of its own, beside the prompt's, which attends to itself and to the one
image; what the image reads with each of the texts is mixed by the weights of the edits, as in cross-attention.

For the length of a call of the model the edits' texts follow the prompt's as more text tokens, so that everything that
a network does token by token is right as it is. Hooks keep them apart where tokens meet: each joint attention becomes
one attention for each text, and each text has the positions that it has alone. Nothing of ComfyUI's models is copied;
a family says in `JointFamily` where its tokens lie (joint_families.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from ...ebca_core import mix_contexts
from ..runtime import notices
from ..runtime.batch_layout import Chunk, latent_shape
from ..runtime.denoiser_call import DenoiserCall, EditsRefused
from ..runtime.settings import Edit
from ..runtime.tensor_cache import rows_of_images
from ..runtime.text_attention import EncodedText
from ..runtime.torch_compile import uncompiled
from .edit_conds import conds_of
from .host_attention import attention_without_ebca
from .key_projection import is_unpatched
from .module_hooks import in_this_thread
from .transformer import TEXT_MASKS, TRANSFORMER_OPTIONS, Grid

NO_UPDATE = (
    "it attends to text and image in one softmax, where every block updates the text by the image already and the "
    "update of the context is not defined"
)
NO_TRACE = "its text is no context that layers share, and its attention to text is a part of that to the image"
#: Forward passes of a network that other packs replace.
FORWARDS = ("forward", "_forward", "forward_orig")


@dataclass(frozen=True)
class JointFamily:
    """Where one kind of network has its texts, in attention calls that hold the text's tokens before the image's."""

    #: Its class in comfy.ldm, by name; subclasses are families of their own.
    network: str
    #: {name: module whose first attention call is that of text and image}, in the order of a call.
    layers: Callable[[Module], Mapping[str, Module]]
    #: The grid of the picture's tokens, the first of the image's, from the network, the shape of its input and the
    #: keyword arguments of apply_model.
    grid: Callable[[Module, Sequence[int], Mapping[str, Any]], Grid]
    #: Width of the text that encoders give.
    text_width: Callable[[Module], int]
    #: The module whose input is the positions [b, t + n, axes] of the tokens.
    positions: Callable[[Module], Module]
    #: The text [b, t, c] among the arguments of a layer; None for a layer that gets text and image as one.
    text: Callable[[tuple, Mapping[str, Any]], Tensor | None]

    def matches(self, network: Module) -> bool:
        return f"{type(network).__module__}.{type(network).__qualname__}" == f"comfy.ldm.{self.network}"


class JointTransformer:
    """The architecture of one family."""

    wrappers: Mapping[str, Callable] = {}
    repeats_prompts = False
    text_depends_on_sigma = False

    def __init__(self, family: JointFamily):
        self.family = family

    def layer_names(self, network: Module) -> tuple[str, ...]:
        return tuple(self.family.layers(network))

    def context_width(self, network: Module, model_config: Any) -> int:
        return self.family.text_width(network)

    def why_unsupported(self, network: Module, name: str) -> str | None:
        return None

    def why_no_update(self, network: Module) -> str | None:
        return NO_UPDATE

    def why_no_trace(self, network: Module) -> str | None:
        return NO_TRACE

    def unread_layers(self, network: Module) -> frozenset[str]:
        return frozenset()

    @contextmanager
    def intercept(self, call: DenoiserCall, model: Module, args: Sequence[Any], kwargs: Mapping[str, Any]):
        """The edits' texts beside the prompt's, in calls that hold a positive prompt."""
        network, run = uncompiled(model.diffusion_model), call.run
        if not self.family.matches(network):
            raise EditsRefused(notices.network_replaced(type(network).__name__))
        modules = [network, *self.family.layers(network).values()]
        if not all(is_unpatched(module, name) for module in modules for name in FORWARDS if hasattr(module, name)):
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

    def _text_of(self, call: DenoiserCall, model: Module, edit: Edit, x: Tensor) -> EncodedText:
        """An edit's text as the network is given it."""

        def read() -> EncodedText:
            conds = conds_of(model, edit, x)
            return EncodedText(conds["c_crossattn"], next((conds[name] for name in TEXT_MASKS if name in conds), None))

        return call.run.cache.cached(("edit text", edit, x.device), read)


@dataclass(eq=False)
class _Image:
    """ImageTokens of a layer: the image's rows and columns of its output."""

    q: Tensor
    grid: tuple[int, ...]
    tokens_before_grid: int


class _JointCall:
    """The hooks of one call. Text 0 is the prompt's; those of the edits follow."""

    def __init__(
        self, family: JointFamily, call: DenoiserCall, chunks: Sequence[Chunk], texts: Mapping[Edit, EncodedText],
        grid: Grid,
    ):  # fmt: skip
        self._family = family
        self._call = call
        self._chunks = chunks
        self._texts = texts
        self._grid = grid
        #: Of each text: its number of tokens in the attention, and its mask [b, t] that is added to the scores.
        self._lengths: list[int] = []
        self._masks: list[Tensor | None] = []

    @contextmanager
    def hooks_on(self, network: Module) -> Iterator[None]:
        with ExitStack() as stack:

            def hook(module: Module, function: Callable) -> None:
                handle = module.register_forward_pre_hook(in_this_thread(function), with_kwargs=True)
                stack.callback(handle.remove)

            hook(network, self._append_texts)
            hook(self._family.positions(network), self._place_texts)
            for module in self._family.layers(network).values():
                visit = _Visit()
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
        edits = list(self._texts.values())
        texts = [prompt, *(self._rows(self._call.run.cache.cast(text.context, prompt)) for text in edits)]
        masks = [next((kwargs[name] for name in TEXT_MASKS if name in kwargs), None)]
        masks += [None if text.mask is None else self._rows(text.mask.to(prompt.device)) for text in edits]
        self._lengths = [text.shape[1] for text in texts]
        self._masks = [_added_to_scores(mask, prompt) for mask in masks]
        no_masks = {name: None for name in TEXT_MASKS if name in kwargs}
        return args, {**kwargs, **no_masks, "context": torch.cat(texts, dim=1)}

    def _rows(self, tensor: Tensor) -> Tensor:
        """A tensor of an edit for each row of the call; on negative prompts its text is read by nobody."""
        return torch.cat([rows_of_images(tensor, chunk) for chunk in self._chunks])

    def _place_texts(self, embedder: Module, args: tuple, kwargs: dict[str, Any]):
        """Pre-hook of the position embedder: each text where it is alone, the image where it is beside the prompt."""
        ids, *others = args
        texts = [ids[:, :length] for length in self._lengths]
        return (torch.cat([*texts, ids[:, sum(self._lengths) :]], dim=1), *others), kwargs

    # --- a layer ---

    def _enter(self, visit: _Visit, module: Module, args: tuple, kwargs: dict[str, Any]):
        """Pre-hook of a layer: it attends to each text apart."""
        text, options = self._family.text(args, kwargs), kwargs.get("transformer_options")
        if options is None or (text is not None and text.shape[1] != sum(self._lengths)):
            raise EditsRefused(notices.edits_skipped(notices.TOKENS))
        visit.calls = 0
        override = partial(self._attend, visit, options.get("optimized_attention_override"))
        return args, {**kwargs, "transformer_options": {**options, "optimized_attention_override": override}}

    def _attend(
        self, visit: _Visit, other: Callable | None, function: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int,
        mask: Tensor | None = None, **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Attention override of a layer: one attention for each text and the image, mixed on the image's tokens.

        q, k, v: [b, h, t + n, d] or [b, t + n, (h d)], t of all texts -> [b, t + n, (h d)]
        """
        own, visit.calls = attention_without_ebca(function, other, kwargs), visit.calls + 1
        if visit.calls > 1:
            return own(q, k, v, heads, mask=mask, **kwargs)
        tokens = 2 if kwargs.get("skip_reshape") else 1
        image = q.shape[tokens] - sum(self._lengths)
        if mask is not None or kwargs.get("skip_output_reshape") or image < 1:
            raise EditsRefused(notices.edits_skipped(notices.TOKENS))
        parts = [tensor.split([*self._lengths, image], dim=tokens) for tensor in (q, k, v)]

        def attend(text: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
            """The outputs of a text's tokens and of the image's, [b, t, (h d)] and [b, n, (h d)]."""
            joined = (torch.cat([part[text][rows], part[-1][rows]], dim=tokens) for part in parts)
            mask = self._masks[text]
            mask = None if mask is None else torch.nn.functional.pad(mask[rows], (0, image)).unsqueeze(1)
            return own(*joined, heads, mask=mask, **kwargs).split([self._lengths[text], image], dim=1)

        of_prompt, of_image = attend(0)
        out = of_image.new_zeros(len(of_image), q.shape[tokens], of_image.shape[2])
        *texts, mixed = out.split([*self._lengths, image], dim=1)
        texts[0].copy_(of_prompt)
        mixed.copy_(of_image)
        for chunk in self._chunks:
            if chunk.entry.positive:
                outs = []
                for text in range(1, len(texts)):
                    texts[text][chunk.rows], of_image = attend(text, chunk.rows)
                    outs.append(of_image)
                self._mix(mixed[chunk.rows], outs, chunk)
        return out

    def _mix(self, image: Tensor, outs: Sequence[Tensor], chunk: Chunk) -> None:
        """Mix what the image reads with the edits' texts into what it reads with the prompt's, [b, n, (h d)]."""
        tokens = _Image(image, self._grid.size, self._grid.before)
        fit = not self._call.has_edit_masks or self._call.masks_fit(tokens)
        image += mix_contexts(image, outs, [self._call.weight_of(edit, chunk, tokens, fit) for edit in self._texts])


@dataclass(eq=False)
class _Visit:
    """One run of a layer: how many attention calls it has made."""

    calls: int = 0

    def left(self, module: Module, args: tuple, out: Any) -> None:
        """Hook of a layer, which has run."""
        if self.calls == 0:
            raise EditsRefused(notices.edits_skipped(notices.FORWARD))


def _added_to_scores(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask [b, t] as ComfyUI adds it to the scores: of integers, 1 for tokens that are read; of floats, as it is."""
    if mask is None or mask.is_floating_point():
        return None if mask is None else mask.to(like.dtype)
    return (mask - 1).to(like.dtype) * torch.finfo(like.dtype).max
