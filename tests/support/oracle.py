"""EBCA made by hand: the method's formulas in float64, with explicit softmax matrices, row by row. Needs a booted host.

Nothing of the pack and none of ComfyUI's attention patches takes part. For the length of a `with oracle.applied(...)`
the forward pass of each attn2 module is replaced, on the module itself; everything around it (samplers, guiders, other
nodes) stays ComfyUI's. What another pack does in cross-attention is told as a formula: `Neighbour`.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.modules.attention import SpatialTransformer
from torch import Tensor
from torch.nn.functional import interpolate

Key = tuple[str, int, int]
WHOLE_RUN = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Update:
    """A context update; token_weights [t] for positive prompts, mask [1, height, width] in latent positions."""

    gamma_attn: float
    gamma_norm: float
    token_weights: Tensor | None = None
    mask: Tensor | None = None
    window: tuple[float, float] = WHOLE_RUN


@dataclass(frozen=True, eq=False)
class Edit:
    """A further prompt with its signed weight: a text [t, c], or a CONDITIONING (transformer_oracle.py)."""

    text: Tensor | list
    weight: float
    gamma_attn: float = 0.0
    gamma_norm: float = 0.0
    window: tuple[float, float] = WHOLE_RUN
    gamma_window: tuple[float, float] = WHOLE_RUN
    #: The layers that mix it in, as each hand-made computation names them; None for all.
    layers: Collection[Any] | None = None

    def is_mixed_in(self, layer: Any) -> bool:
        return self.layers is None or layer in self.layers


@dataclass(frozen=True, eq=False)
class Prompt:
    """A text [t, c] that rows of a call may hold, as often as it is repeated, and its role."""

    text: Tensor
    positive: bool


@dataclass(eq=False)
class Region:
    """What a row attends to: keys [t, c], which are updated; values [t, c] (None: the keys' text); share [n, 1]."""

    keys: Tensor
    values: Tensor | None = None
    share: Tensor | float = 1.0
    moved: Tensor | float = 0.0

    def key_text(self) -> Tensor:
        return self.keys + self.moved

    def value_text(self) -> Tensor:
        return self.key_text() if self.values is None else self.values


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of q [n, (h d)], k and v [t, (h d)], one head after the other."""
    outs = [
        torch.softmax(qh @ kh.T / qh.shape[-1] ** 0.5, dim=-1) @ vh
        for qh, kh, vh in zip(*(x.chunk(heads, dim=-1) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(outs, dim=-1)


def step(
    k: Tensor, q: Tensor, heads: int, gamma_attn: float, gamma_norm: float, weights: Tensor | float = 1.0,
    mask: Tensor | float = 1.0,
) -> Tensor:
    """G_t = gamma_attn w_t sum_n softmax_n(beta k_t . q_n) m_n q_n - gamma_norm softmax_t(||k_t||^2) k_t."""
    pull = torch.cat([
        torch.softmax(kh @ qh.T / kh.shape[-1] ** 0.5, dim=-1) @ (qh * mask)
        for kh, qh in zip(k.chunk(heads, dim=-1), q.chunk(heads, dim=-1), strict=True)
    ], dim=-1)
    return gamma_attn * weights * pull - gamma_norm * torch.softmax((k * k).sum(dim=-1, keepdim=True), dim=0) * k


def within(mixed: Tensor, main: Tensor, limit: float | None) -> Tensor:
    """mixed [n, c], where each row's sum of magnitudes is at most `limit` times that in main."""
    rows = []
    for row, own in zip(mixed, main, strict=True):
        size, most = float(row.abs().sum()), math.inf if limit is None else limit * float(own.abs().sum())
        rows.append(row if size <= most else row * most / size)
    return torch.stack(rows)


def _whole_prompt(prompt: Prompt, grid: tuple[int, int]) -> list[Region]:
    return [Region(prompt.text)]


@dataclass(frozen=True, eq=False)
class Neighbour:
    """What another pack does in cross-attention, as formulas.

    read: prompt, grid -> the regions its rows attend to. attend: its attention. branch: key, q [n, (h d)], prompt ->
    what it adds to a layer's text attention.
    """

    read: Callable[[Prompt, tuple[int, int]], list[Region]] = _whole_prompt
    attend: Callable[[Tensor, Tensor, Tensor, int], Tensor] = attention
    branch: Callable[[Key, Tensor, Prompt], Tensor | float] = lambda key, q, prompt: 0.0


@dataclass(eq=False)
class _Row:
    prompt: Prompt
    cond: Any
    image: int
    regions: list[Region] = field(default_factory=list)


class Ebca:
    """One sampling run: calls of the model, with passes of the U-Net in them, of which the last counts.

    untouched: layers that read the updated context and otherwise are as without EBCA.
    """

    def __init__(
        self, model_sampling, prompts: Sequence[Prompt], updates: Sequence[Update] = (), edits: Sequence[Edit] = (),
        neighbour: Neighbour | None = None, untouched: Sequence[Key] = (), norm_limit: float | None = None,
    ):
        self.sampling, self.neighbour, self.untouched = model_sampling, neighbour or Neighbour(), untouched
        self.prompts = [Prompt(prompt.text.double(), prompt.positive) for prompt in prompts]
        self.updates, self.edits, self.norm_limit = updates, edits, norm_limit
        self.sigma: float | None = None
        #: All that calls have left of a context: (sigma, window of images, change).
        self.carried: dict[tuple, list[tuple[float, tuple[int, ...], Tensor]]] = {}

    # --- calls and passes ---

    def call_begins(self) -> None:
        self.pass_begins()

    def pass_begins(self) -> None:
        self.changes, self.rows = {}, None

    def call_ends(self) -> None:
        for key, change in self.changes.items():
            self.carried.setdefault(key, []).append((self.sigma, self.window, change))

    def change(self, key: tuple) -> Tensor | float:
        return self.changes[key] if key in self.changes else self.read(key)

    def read(self, key: tuple) -> Tensor | float:
        """What the call starts from: what calls of its own window have left at its sigma, or else earlier sigmas.

        Of several calls at one sigma the first counts.
        """
        left = self.carried.get(key, [])
        own = [change for sigma, window, change in left if (sigma, window) == (self.sigma, self.window)]
        before = [(sigma, change) for sigma, _, change in left if sigma != self.sigma]
        firsts = [change for sigma, change in before if sigma == before[-1][0]]
        return next(iter([*own, *firsts]), 0.0)

    def on(self, window: tuple[float, float]) -> bool:
        start, end = (self.sampling.percent_to_sigma(percent) for percent in window)
        return end < self.sigma <= start

    # --- a layer ---

    def layer(self, key: Key, attn2, x: Tensor, context: Tensor, options: dict) -> Tensor:
        """x [b, n, c_x], context [b, t, c] as the U-Net got it -> the layer's output [b, n, c_x]."""
        grid = tuple(options["activations_shape"][-2:])
        if self.rows is None:
            self.sigma = float(options["sigmas"][0])
            self.window = _images(options, context.shape[0] // len(options["uuids"]))
            self.rows = [self._row(i, context, options) for i in range(x.shape[0])]
            self.to_regions = [self.neighbour.read(row.prompt, grid) for row in self.rows]
        wq, wk, wv = (getattr(attn2, name).weight.double() for name in ("to_q", "to_k", "to_v"))
        outs = [
            self._layer_row(key, row, regions, q.double() @ wq.T, wk, wv, attn2.heads, grid)
            for row, regions, q in zip(self.rows, self.to_regions, x, strict=True)
        ]
        return attn2.to_out(torch.stack(outs).to(x.dtype))

    def _row(self, i: int, context: Tensor, options: dict) -> _Row:
        size = len(self.window)
        prompt = self._prompt(context[i].double())
        cond = (options["uuids"][i // size], prompt)  # core gives several prompts one uuid
        return _Row(prompt, cond, self.window[i % size])

    def _prompt(self, text: Tensor) -> Prompt:
        for prompt in self.prompts:
            times = text.shape[0] // prompt.text.shape[0]
            if torch.equal(text, prompt.text.repeat(times, 1)):
                return prompt
        raise AssertionError("a row holds a text that is none of the prompts'")

    def _layer_row(self, key, row, regions, q, wk, wv, heads, grid) -> Tensor:
        shares = [region.share for region in self.neighbour.read(row.prompt, grid)]
        outs = [self.neighbour.attend(q, r.key_text() @ wk.T, r.value_text() @ wv.T, heads) for r in regions]
        main = sum(share * out for share, out in zip(shares, outs, strict=True))
        out = main + self.neighbour.branch(key, q, row.prompt)
        if key in self.untouched:
            return out
        if self.edits:
            compose = self._compose_positive if row.prompt.positive else self._compose_negative
            out = out - main + compose(key, row, regions, main, q, wk, wv, heads)
        for region in regions:
            k = region.key_text() @ wk.T
            steps = [self._step(update, row, k, q, heads, grid) for update in self.updates if self.on(update.window)]
            region.moved = region.moved + sum(steps) @ wk if steps else region.moved
        return out

    def _step(self, update: Update, row: _Row, k: Tensor, q: Tensor, heads: int, grid: tuple[int, int]) -> Tensor:
        weights, mask = 1.0, 1.0
        if update.token_weights is not None and row.prompt.positive:
            weights = update.token_weights.double().view(-1, 1)
        if update.mask is not None:
            mask = update.mask[:1, None].double()
            mask = interpolate(mask, size=grid, mode="bilinear", align_corners=True).view(-1, 1)
        return step(k, q, heads, update.gamma_attn, update.gamma_norm, weights, mask)

    def _compose_positive(self, layer, row, regions, main, q, wk, wv, heads) -> Tensor:
        out, total = main, 1.0
        for index, edit in enumerate(self.edits):
            key = (index, True, row.cond, row.image)
            text = edit.text.double() + self.change(key)
            k = text @ wk.T
            if self.on(edit.window) and edit.is_mixed_in(layer):
                out, total = out + edit.weight * self.neighbour.attend(q, k, text @ wv.T, heads), total + edit.weight
            if self.on(edit.gamma_window):
                moved = step(k, q, heads, edit.gamma_attn, edit.gamma_norm) @ wk
                self.changes[key] = self.change(key) + moved
        return within(out / total, main, self.norm_limit)

    def _compose_negative(self, layer, row, regions, main, q, wk, wv, heads) -> Tensor:
        (region,) = regions
        key = ("shared", False, row.cond, row.image)
        text = region.keys + self.change(key)
        k, values = text @ wk.T, text if region.values is None else region.values
        shared = self.neighbour.attend(q, k, values @ wv.T, heads)
        weight = sum(edit.weight for edit in self.edits if self.on(edit.window) and edit.is_mixed_in(layer))
        moving = [edit for edit in self.edits if self.on(edit.gamma_window)]
        if moving:
            steps = [step(k, q, heads, edit.gamma_attn, edit.gamma_norm) for edit in moving]
            self.changes[key] = self.change(key) + sum(steps) @ wk / len(self.edits)
        return within((main + weight * shared) / (1 + weight), main, self.norm_limit)


def _images(options: dict, size: int) -> tuple[int, ...]:
    """Which images of the batch a call holds: of ComfyUI's context windows, of AnimateDiff-Evolved's, or all."""
    window, params = options.get("context_window"), options.get("ad_params")
    if window is not None:
        anchor = getattr(window, "causal_anchor_index", None)
        return (*([] if anchor is None else [anchor]), *window.index_list)
    return tuple(params["sub_idxs"]) if params else tuple(range(size))


def layers(unet) -> dict[Key, torch.nn.Module]:
    """(side, block, depth) -> attn2, found by walking the U-Net."""
    sides = {"input": unet.input_blocks, "middle": [unet.middle_block or ()], "output": unet.output_blocks}
    return {
        (side, number, depth): block.attn2
        for side, modules in sides.items()
        for number, parts in enumerate(modules)
        for part in parts
        if isinstance(part, SpatialTransformer)
        for depth, block in enumerate(part.transformer_blocks)
    }


@contextmanager
def applied(ebca: Ebca, *models):
    """While this lasts, the MODELs' U-Nets have the hand-made attention; they themselves must hold no EBCA node."""
    comfy.model_management.unload_all_models()  # else what an earlier MODEL patched would be put back over it
    with ExitStack() as stack:
        for base in (model.model for model in models):
            unet = base.diffusion_model
            stack.enter_context(_instead(base, "apply_model", _call(ebca, base.apply_model)))
            stack.enter_context(_instead(unet, "_forward", _pass(ebca, unet._forward)))
            for key, attn2 in layers(unet).items():
                stack.enter_context(_instead(attn2, "forward", _layer(ebca, key, attn2)))
        yield


def _call(ebca: Ebca, original: Callable) -> Callable:
    def apply_model(*args, **kwargs):
        ebca.call_begins()
        out = original(*args, **kwargs)
        ebca.call_ends()
        return out

    return apply_model


def _pass(ebca: Ebca, original: Callable) -> Callable:
    def forward(*args, **kwargs):
        ebca.pass_begins()
        return original(*args, **kwargs)

    return forward


def _layer(ebca: Ebca, key: Key, attn2) -> Callable:
    def forward(x, context=None, value=None, mask=None, transformer_options=None):
        return ebca.layer(key, attn2, x, context, transformer_options)

    return forward


@contextmanager
def _instead(subject: Any, name: str, function: Callable):
    """An attribute of one object, for a time."""
    vars(subject)[name] = function
    try:
        yield
    finally:
        del vars(subject)[name]
