"""One cross-attention layer at work, as a replaced attention of ComfyUI sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention as host
import torch
from torch import Tensor

from ..architectures.key_projection import is_unpatched, project_to_context
from ..architectures.unet import LayerKey


@dataclass(frozen=True, eq=False)
class Layer:
    """q [b, n, (h d)], k and v [b, t, (h d)] are what the host computed for the layer.

    context and value [b, t, c] are the layer's two inputs before EBCA's change; they are one tensor unless another
    pack gives keys and values different texts.
    """

    key: LayerKey
    attn2: torch.nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    context: Tensor
    value: Tensor
    options: Mapping[str, Any]

    @property
    def heads(self) -> int:
        return self.options["n_heads"]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the layer's image tokens."""
        return tuple(self.options["activations_shape"][-2:])

    @property
    def has_split_text(self) -> bool:
        return self.value is not self.context

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prompt: int | None = None) -> Tensor:
        """Attention as the layer itself would have it, other packs' overrides included; of one prompt's rows or all."""
        options = self.options if prompt is None else self._options_of(prompt)
        return host.optimized_attention(
            q, k, v, self.heads, attn_precision=self.options["attn_precision"], transformer_options=options
        )

    def _options_of(self, prompt: int) -> dict[str, Any]:
        """The layer's options as they would be if the prompt at this position were alone in the call."""
        lists = {name: [self.options[name][prompt]] for name in ("cond_or_uncond", "uuids") if self.options.get(name)}
        return {**self.options, **lists}

    def attend_exchanged(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Attention for the update. Overrides expect image queries over text keys; here it is the other way round."""
        return host.optimized_attention(
            query, key, value, heads, attn_precision=self.options["attn_precision"], low_precision_attention=False
        )

    def keys_of(self, context: Tensor) -> Tensor:
        return self.attn2.to_k(context)

    def values_of(self, context: Tensor) -> Tensor:
        return self.attn2.to_v(context)

    def project(self, step: Tensor) -> Tensor:
        """A step in the keys [b, t, (h d)] -> the step in the context [b, t, c]."""
        return project_to_context(step, self.attn2.to_k, self.context.shape[-1])


def is_replaceable(attn2: torch.nn.Module) -> bool:
    """Whether the layer's forward pass is ComfyUI's own, so that replacing its attention drops nobody else's work."""
    return type(attn2).forward is host.CrossAttention.forward and is_unpatched(attn2, "forward")


def moved(context: Tensor, change: Tensor | None) -> Tensor:
    """context [b, t, c] + its change, in the context's type."""
    return context if change is None else (context + change).to(context.dtype)


def accumulated(change: Tensor | None, step: Tensor, unit: float) -> Tensor:
    """change + unit * step, in float32 at least: the sum of many small steps."""
    if change is None:
        return step.to(torch.promote_types(step.dtype, torch.float32)) * unit
    return torch.add(change, step, alpha=unit)
