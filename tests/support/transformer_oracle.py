"""EBCA in transformers, made by hand in float64: one text and row after the other, steps by autograd.

Needs a booted host.

Nothing of the pack takes part. For the length of a `with applied(...)` the forward pass of each cross-attention module
is replaced, on the module itself. `FAMILIES` says how each kind of module makes queries, keys and values, and how each
network embeds a text before its layers read it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from support.oracle import Edit, Update, _instead, attention

# --- what a family's modules compute ---


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of network. The functions take its cross-attention module, in float64.

    attribute: the module's name in its block. queries: (module, x [n, c], forward's other positional arguments) ->
    [n, (h d)]; raw_keys: text [t, c] -> [t, (h d)]; norm: of these, over which dimensions. embed: (network, an entry
    of a CONDITIONING, timestep [1]) -> the text [t, c] as the layers read it.
    """

    attribute: str
    heads: Callable[[Any], int]
    queries: Callable[[Any, Tensor, tuple], Tensor]
    raw_keys: Callable[[Any, Tensor], Tensor]
    values: Callable[[Any, Tensor], Tensor]
    output: Callable[[Any, Tensor], Tensor]
    embed: Callable[[Any, list, Tensor], Tensor]
    key_norm: Callable[[Any], Any] = lambda module: None
    norm_per_head: bool = False
    #: What the module's forward returns around its output.
    returned: Callable[[Tensor], Any] = lambda out: out
    #: (module, q [n, (h d)], image rows [t, c]) -> the output of the attention to an image.
    image_branch: Callable[[Any, Tensor, Tensor], Tensor] | None = None

    def keys(self, module, text: Tensor) -> Tensor:
        """text [t, c] -> [t, (h d)]."""
        z, norm = self.raw_keys(module, text), self.key_norm(module)
        if norm is None:
            return z
        return norm(z.unflatten(-1, (self.heads(module), -1))).flatten(-2) if self.norm_per_head else norm(z)


def _per_head(norm, tensor: Tensor, heads: int) -> Tensor:
    return norm(tensor.unflatten(-1, (heads, -1))).flatten(-2)


def _wan_image_branch(module, q: Tensor, image: Tensor) -> Tensor:
    return attention(q, module.norm_k_img(module.k_img(image)), module.v_img(image), module.num_heads)


def _rotated(q: Tensor, freqs: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """HunyuanDiT's rotary embedding of q [n, (h d)]: pairs of channels turned by the angles of each position."""
    cos, sin = (freq.double().unsqueeze(1) for freq in freqs)
    q = q.unflatten(-1, (heads, -1))
    turned = torch.stack([-q[..., 1::2], q[..., 0::2]], dim=-1).flatten(-2)
    return (q * cos + turned * sin).flatten(-2)


def _hydit_queries(module, x: Tensor, args: tuple) -> Tensor:
    q = _per_head(module.q_norm, module.q_proj(x), module.num_heads)
    return q if not args or args[0] is None else _rotated(q, args[0], module.num_heads)


def _hydit_text(network, entry: list, timestep: Tensor) -> Tensor:
    """CLIP's rows, then T5's through their MLP; masked rows are replaced by learned ones."""
    text, options = entry
    rows, padding = [], network.text_embedding_padding
    t5 = network.mlp_t5(options["conditioning_mt5xl"][0])
    for part, mask, learned in (
        (text[0], options["attention_mask"][0], padding[: network.text_len]),
        (t5, options["attention_mask_mt5xl"][0], padding[network.text_len :]),
    ):
        part, last = part.clone(), len(learned)
        for i in range(last):
            if not mask[-last + i]:
                part[-last + i] = learned[i]
        rows.append(part)
    return torch.cat(rows)


def _kandinsky_text(network, entry: list, timestep: Tensor) -> Tensor:
    """Its text blocks are modulated by time and by the pooled text."""
    text, options = entry
    time = network.time_embeddings(timestep, text.dtype) + network.pooled_text_embeddings(options["pooled_output"][:1])
    context, freqs = network.text_embeddings(text[:1]), network.rope_encode_1d(text.shape[1], dtype=text.dtype)
    for block in network.text_transformer_blocks:
        context = block(context, time, freqs)
    return context[0]


def _fused(name: str, half: int) -> Callable:
    return lambda module, text: getattr(module, name)(text).chunk(2, dim=-1)[half]


_WAN = Family(
    "cross_attn",
    lambda m: m.num_heads,
    lambda m, x, args: m.norm_q(m.q(x)),
    lambda m, text: m.k(text),
    lambda m, text: m.v(text),
    lambda m, out: m.o(out),
    lambda network, entry, timestep: network.text_embedding(entry[0])[0],
    lambda m: m.norm_k,
)
FAMILIES = {
    "wan": _WAN,
    "wan_vace": _WAN,
    "wan_i2v": Family(**{**vars(_WAN), "image_branch": _wan_image_branch}),
    "predict2": Family(
        "cross_attn",
        lambda m: m.n_heads,
        lambda m, x, args: _per_head(m.q_norm, m.q_proj(x), m.n_heads),
        lambda m, text: m.k_proj(text),
        lambda m, text: m.v_proj(text),
        lambda m, out: m.output_proj(out),
        lambda network, entry, timestep: entry[0][0],
        lambda m: m.k_norm,
        norm_per_head=True,
    ),
    "ltxv": Family(
        "attn2",
        lambda m: m.heads,
        lambda m, x, args: m.q_norm(m.to_q(x)),
        lambda m, text: m.to_k(text),
        lambda m, text: m.to_v(text),
        lambda m, out: m.to_out(out),
        lambda network, entry, timestep: network.caption_projection(entry[0])[0],
        lambda m: m.k_norm,
    ),
    "kandinsky5": Family(
        "cross_attention",
        lambda m: m.num_heads,
        lambda m, x, args: _per_head(m.query_norm, m.to_query(x), m.num_heads),
        lambda m, text: m.to_key(text),
        lambda m, text: m.to_value(text),
        lambda m, out: m.out_layer(out),
        _kandinsky_text,
        lambda m: m.key_norm,
        norm_per_head=True,
    ),
    "pixart": Family(
        "cross_attn",
        lambda m: m.num_heads,
        lambda m, x, args: m.q_linear(x),
        _fused("kv_linear", 0),
        _fused("kv_linear", 1),
        lambda m, out: m.proj(out),
        lambda network, entry, timestep: network.y_embedder(entry[0].unsqueeze(1), False)[0, 0],
    ),
    "hydit": Family(
        "attn2",
        lambda m: m.num_heads,
        _hydit_queries,
        _fused("kv_proj", 0),
        _fused("kv_proj", 1),
        lambda m, out: m.out_proj(out),
        _hydit_text,
        lambda m: m.k_norm,
        norm_per_head=True,
        returned=lambda out: (out,),
    ),
}


def modules(family: str, network) -> dict[str, Any]:
    """{path in the network: cross-attention module}."""
    named = network.named_modules()
    return {path: module for path, module in named if path.split(".")[-1] == FAMILIES[family].attribute}


def block_of(path: str) -> str:
    """As users write it: `blocks.2.cross_attn` -> b2, `vace_blocks.0.cross_attn` -> v0."""
    blocks, number, _ = path.split(".")
    return ("v" if blocks.startswith("vace") else "b") + number


# --- the step ---


def padding_rows(text: Tensor, visible: Tensor | None = None) -> list[bool]:
    """Whether each row of a text [t, c] is none of its words: masked, zero, or in a tail of two or more equal rows."""
    count = len(text)
    found = [not bool(row.any()) or (visible is not None and not visible[i]) for i, row in enumerate(text)]
    tail = count
    while tail > 0 and torch.equal(text[tail - 1], text[-1]):
        tail -= 1
    return [is_padding or (count - tail > 1 and i >= tail) for i, is_padding in enumerate(found)]


def energy(k: Tensor, q: Tensor, heads: int) -> Tensor:
    """E(K | Q) of each token [t] of k [t, (h d)], given q [n, (h d)]."""
    total = 0.0
    for kh, qh in zip(k.chunk(heads, dim=-1), q.chunk(heads, dim=-1), strict=True):
        beta = kh.shape[-1] ** -0.5
        total = total - torch.logsumexp(beta * kh @ qh.T, dim=-1) / beta
    return total


def step(
    family: Family, module, text: Tensor, q: Tensor, gamma_attn: float, gamma_norm: float,
    weights: Tensor | float = 1.0, mask: Tensor | None = None, visible: Tensor | None = None,
) -> Tensor:
    """A step of a text [t, c]: m_t times minus the gradient of its energy; padding takes none.

    weights [t] of the tokens; mask [n]: weights of the queries in the sum, not in the softmax; visible [t]: 0 where the
    text is masked.
    """
    heads = family.heads(module)
    with torch.inference_mode(False), torch.enable_grad():
        text, q = text.clone().requires_grad_(), q.clone()
        weights = torch.as_tensor(weights).clone()
        k = family.keys(module, text)
        if mask is None:
            loss = gamma_attn * (weights * energy(k, q, heads)).sum()
        else:
            pulls = [
                torch.softmax(kh @ qh.T / kh.shape[-1] ** 0.5, dim=-1) @ (qh * mask.clone()[:, None])
                for kh, qh in zip(k.chunk(heads, dim=-1), q.chunk(heads, dim=-1), strict=True)
            ]
            pull = torch.cat(pulls, dim=-1).detach()
            loss = -gamma_attn * (weights.view(-1, 1) * pull * k).sum()
        if family.key_norm(module) is None:
            loss = loss + gamma_norm * 0.5 * torch.logsumexp(k.square().sum(dim=-1), dim=0)
        (gradient,) = torch.autograd.grad(loss, text)
        scale = 1.0
        if family.key_norm(module) is not None:
            scale = family.raw_keys(module, text).square().mean(dim=-1, keepdim=True).detach()
    moved = -scale * gradient
    for i, is_padding in enumerate(padding_rows(text.detach(), visible)):
        if is_padding:
            moved[i] = 0.0
    return moved


# --- a run ---


@dataclass(eq=False)
class _Row:
    """A row of a call: what tells its prompt, its image, and its prompt's change so far in the call."""

    cond: Any
    positive: bool
    image: int
    moved: Tensor | float = 0.0


class Ebca:
    """One sampling run by hand.

    Masks of updates and edits [n]: a weight for every image token, as the test knows it; a function of the context
    window where the tokens depend on it; or None. blocks: of the layers that update the prompts, None for all;
    positive_only: of the updates.
    """

    def __init__(
        self, family: str, model, updates: Sequence[Update] = (), edits: Sequence[Edit] = (),
        edit_masks: Sequence[Tensor | None] = (), blocks: Sequence[str] | None = None, positive_only: bool = False,
        factor: Callable[[float], float] = lambda sigma: 1.0, attend: Callable[..., Tensor] = attention,
    ):
        """factor: of the updates' gammas at a sigma; attend: the attention that another pack computes."""
        self.family, self.base = FAMILIES[family], model.model
        self.sampling = model.get_model_object("model_sampling")
        self.updates, self.edits = updates, edits
        self.edit_masks = edit_masks or [None] * len(edits)
        self.blocks, self.positive_only, self.factor = blocks, positive_only, factor
        self.attend = attend
        self.carried: dict[tuple, tuple[Tensor, float]] = {}
        self.modules = {path: copy.deepcopy(m).double() for path, m in modules(family, self.network).items()}

    @property
    def network(self):
        return self.base.diffusion_model

    def call_begins(self, x: Tensor, sigma: Tensor, options: dict, pooled: Tensor | None) -> None:
        """pooled [b, c]: of the prompts, where the model reads it."""
        self.sigma = float(sigma[0])
        self.read = {key: change for key, (change, _) in self.carried.items()}
        self.timestep = self.sampling.timestep(sigma[:1]).float()
        size = x.shape[0] // len(options["uuids"])
        window = options.get("context_window")
        images = list(window.index_list) if window is not None and window.dim == 0 else list(range(size))
        prompts = zip(options["uuids"], options["cond_or_uncond"], strict=True)
        self.rows = [_Row(uuid, index == 0, image) for uuid, index in prompts for image in images]
        positive = next((place for place, row in enumerate(self.rows) if row.positive), None)
        self.pooled = None if pooled is None or positive is None else pooled[positive : positive + 1]
        self.texts = [[self._text(edit, image) for image in images] for edit in self.edits]
        self.images, self.window = images, window
        self.pass_begins()

    def _text(self, edit: Edit, image: int) -> Tensor:
        """An edit's text [t, c] as the layers read it."""
        ((text, options),) = edit.text
        dtype = self.base.get_dtype_inference()
        own = {name: _cast(_row_of(value, image), dtype) for name, value in options.items()}
        if self.pooled is not None:  # it stays the prompt's
            own["pooled_output"] = self.pooled.to(dtype)
        entry = [_row_of(text, image).to(dtype), own]
        return self.family.embed(self.network, entry, self.timestep).double()

    def pass_begins(self) -> None:
        self.changes = {}
        for row in self.rows:
            row.moved = 0.0

    def call_ends(self) -> None:
        for key, change in self.changes.items():
            if key not in self.carried or self.carried[key][1] != self.sigma:
                self.carried[key] = (change, self.sigma)

    def change(self, key: tuple) -> Tensor | float:
        return self.changes.get(key, self.read.get(key, 0.0))

    def on(self, window: tuple[float, float]) -> bool:
        start, end = (self.sampling.percent_to_sigma(percent) for percent in window)
        return end < self.sigma <= start

    def layer(self, path: str, x: Tensor, context: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """x [b, n, c_x], context [b, t, c] as the network gives it -> the layer's output [b, n, c_x]."""
        family, module = self.family, self.modules[path]
        context = context.reshape(len(self.rows), -1, context.shape[-1]).double()
        image_rows = (kwargs.get("context_img_len") or 0) if family.image_branch else 0
        masks = kwargs.get("mask")
        outs = []
        for i, row in enumerate(self.rows):
            q = family.queries(module, x[i].double(), args)
            image, text = context[i, :image_rows], context[i, image_rows:]
            visible = None if masks is None else masks[i].reshape(-1) > -1
            out = self._row(path, module, row, text, q, visible)
            if image_rows:
                out = out + family.image_branch(module, q, image)
            outs.append(family.output(module, out))
        return torch.stack(outs).to(x.dtype)

    def _attend(self, module, q: Tensor, text: Tensor, visible: Tensor | None = None) -> Tensor:
        text = text if visible is None else text[visible]
        family = self.family
        return self.attend(q, family.keys(module, text), family.values(module, text), family.heads(module))

    def _row(self, path: str, module, row: _Row, text: Tensor, q: Tensor, visible: Tensor | None) -> Tensor:
        main = text + row.moved
        out = self._attend(module, q, main, visible)
        if self.edits:
            compose = self._positive if row.positive else self._negative
            out = compose(block_of(path), module, row, text, out, q, visible)
        if self.blocks is None or block_of(path) in self.blocks:
            for update in self.updates:
                if self.on(update.window) and (row.positive or not self.positive_only):
                    row.moved = row.moved + self._update(update, module, row, main, q, visible)
        return out

    def _update(self, update: Update, module, row: _Row, text: Tensor, q: Tensor, visible) -> Tensor:
        weights, factor = 1.0, self.factor(self.sigma)
        if update.token_weights is not None and row.positive:
            weights = update.token_weights.double()
        gammas = factor * update.gamma_attn, factor * update.gamma_norm
        return step(self.family, module, text, q, *gammas, weights, self._mask(update.mask), visible)

    def _mask(self, mask) -> Tensor | None:
        """[n]."""
        mask = mask(self.window) if callable(mask) else mask
        return None if mask is None else mask.double()

    def _weight(self, edit: Edit, mask) -> Tensor | float:
        """A number, or under a mask [n, 1]."""
        return edit.weight if mask is None else edit.weight * self._mask(mask)[:, None]

    def _positive(self, block: str, module, row: _Row, prompt: Tensor, out: Tensor, q: Tensor, visible) -> Tensor:
        total = 1.0
        for number, (edit, mask) in enumerate(zip(self.edits, self.edit_masks, strict=True)):
            key = (number, row.cond, row.image)
            text = self.texts[number][self.images.index(row.image)] + self.change(key)
            own = _visible(edit.text)
            if self.on(edit.window) and edit.is_mixed_in(block):
                weight = self._weight(edit, mask)
                out, total = out + weight * self._attend(module, q, text, own), total + weight
            if self.on(edit.gamma_window):
                moved = step(self.family, module, text, q, edit.gamma_attn, edit.gamma_norm, visible=own)
                self.changes[key] = self.change(key) + moved
        return out / total

    def _negative(self, block: str, module, row: _Row, prompt: Tensor, out: Tensor, q: Tensor, visible) -> Tensor:
        """All edits share a copy of the negative prompt as given, which moves by the mean of their steps."""
        key = ("shared", row.cond, row.image)
        text = prompt + self.change(key)
        weight = 0.0
        for edit, mask in zip(self.edits, self.edit_masks, strict=True):
            if self.on(edit.window) and edit.is_mixed_in(block):
                weight = weight + self._weight(edit, mask)
        shared = self._attend(module, q, text, visible)
        for edit in self.edits:
            if self.on(edit.gamma_window):
                moved = step(self.family, module, text, q, edit.gamma_attn, edit.gamma_norm, visible=visible)
                self.changes[key] = self.change(key) + moved / len(self.edits)
        return (out + weight * shared) / (1 + weight)


def _row_of(value: Any, image: int) -> Any:
    """What belongs to one image of a batch."""
    return value[image % len(value)][None] if torch.is_tensor(value) else value


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value


def _visible(conditioning: list) -> Tensor | None:
    """Which tokens of an edit are not masked, where its layers read the mask."""
    mask = conditioning[0][1].get("attention_mask")
    return None if mask is None or mask.dtype != torch.long else mask[0].bool()


@contextmanager
def applied(ebca: Ebca):
    """While this lasts, the MODEL's layers have the hand-made attention; it must hold no EBCA node."""
    comfy.model_management.unload_all_models()  # else what an earlier MODEL patched would be put back over it
    base, network = ebca.base, ebca.network
    with ExitStack() as stack:
        stack.enter_context(_instead(base, "apply_model", _call(ebca, base.apply_model)))
        stack.enter_context(_instead(network, "forward", _pass(ebca, network.forward)))
        for path in ebca.modules:
            module = network.get_submodule(path)
            stack.enter_context(_instead(module, "forward", _layer(ebca, path)))
        yield


def _call(ebca: Ebca, original: Callable) -> Callable:
    def apply_model(*args, **kwargs):
        options = args[5] if len(args) > 5 else kwargs["transformer_options"]
        ebca.call_begins(args[0], args[1], options, kwargs.get("y"))
        out = original(*args, **kwargs)
        ebca.call_ends()
        return out

    return apply_model


def _pass(ebca: Ebca, original: Callable) -> Callable:
    def forward(*args, **kwargs):
        ebca.pass_begins()
        return original(*args, **kwargs)

    return forward


def _layer(ebca: Ebca, path: str) -> Callable:
    def forward(x, *args, **kwargs):
        if "context" in kwargs:
            context = kwargs["context"]
        else:
            context, *args = args
        return ebca.family.returned(ebca.layer(path, x, context, tuple(args), kwargs))

    return forward
