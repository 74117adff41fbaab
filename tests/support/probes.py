"""What a MODEL holds, and what its cross-attention layers really get, watched from outside by hooks of torch."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

from torch import Tensor


def contents(value):
    """Dicts and lists copied, whatever is in them by identity."""
    if isinstance(value, dict):
        return {key: contents(item) for key, item in value.items()}
    return [contents(item) for item in value] if isinstance(value, list) else value


def described(model):
    """Whatever a node could have put on a MODEL."""
    return contents([model.model_options, model.wrappers, model.callbacks, model.patches, model.object_patches,
                     model.attachments, model.injections, model.additional_models])  # fmt: skip


class LayerCall(NamedTuple):
    """context [b, t, c] that a layer read, queries [b, n, (h d)] of the image, to_k.weight, all float64; heads."""

    context: Tensor
    queries: Tensor
    w_k: Tensor
    heads: int

    @property
    def keys(self) -> Tensor:
        return self.context @ self.w_k.T


@contextmanager
def watched(model):
    """While this lasts: a LayerCall for every call of a cross-attention layer of the MODEL, in their order."""
    seen, hooks = [], []
    for module in model.model.diffusion_model.modules():
        if hasattr(module, "attn2"):
            layer, record = module.attn2, {}
            hooks += [
                layer.to_q.register_forward_hook(lambda _, args, out, record=record: record.update(q=out.double())),
                layer.to_v.register_forward_pre_hook(lambda _, args, record=record, layer=layer: seen.append(
                    LayerCall(args[0].double(), record["q"], layer.to_k.weight.double(), layer.heads))),
            ]  # fmt: skip
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def hooks_of(model):
    """Hooks and replaced methods of every module of the network."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    modules = model.model.diffusion_model.modules()
    return [held for module, kind in product(modules, kinds) for held in getattr(module, kind).items()]


def rows_of_calls(model):
    """Filled with the number of rows of each call of the MODEL."""
    rows = []

    def record(executor, x, *args, **kwargs):
        rows.append(x.shape[0])
        return executor(x, *args, **kwargs)

    model.add_wrapper_with_key("apply_model", "record", record)
    return rows
