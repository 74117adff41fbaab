"""The context update of the prompts themselves, through one call of the U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ebca_core import key_step
from ..architectures.unet import LayerKey
from .batch_layout import Chunk
from .layer import Layer, accumulated, moved
from .sampling_run import token_weights_error
from .settings import ContextUpdate
from .unet_call import LENGTHS, REGIONS, UNetCall


@dataclass(frozen=True, eq=False)
class Part:
    """A context update on some rows of the call: all of them, or those of one positive prompt."""

    update: ContextUpdate
    rows: slice
    chunks: Sequence[Chunk]


class PromptUpdate:
    """Every layer's steps start from the same context and are summed; the next layer reads the result."""

    def __init__(self, call: UNetCall):
        self._call = call
        active = call.run.updates(call.sigma)
        self._parts = [part for update in active for part in self._split(update)]
        #: The call's largest gamma. Steps are in its units, so that half precision holds those of small gammas.
        self.unit = max((max(update.gamma_attn, update.gamma_norm) for update in active), default=1.0)
        self._token_weight_rows: dict[tuple[Part, int], Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Start again from the prompts as they came."""
        self._changes: dict[torch.Size, Tensor] = {}  # by the context's shape: some packs change it between layers

    def works_in(self, key: LayerKey) -> bool:
        return any(part.update.reaches(key) for part in self._parts)

    def has_moved(self, context: Tensor, chunk: Chunk) -> bool:
        """Whether a chunk's rows of the context differ from the prompt as it came."""
        return context.shape in self._changes and any(chunk in part.chunks for part in self._parts)

    def moved(self, context: Tensor) -> Tensor:
        """The context as updated so far."""
        return moved(context, self._changes.get(context.shape))

    def step(self, layer: Layer) -> Tensor | None:
        """Update the context for the layers to come. Gives this layer's change [b, t, c] in units, None for none."""
        step = None
        for part in self._parts:
            if part.update.reaches(layer.key):
                step = self._add(step, part, layer)
        if step is None:
            return None
        if layer.has_split_text:
            self._call.run.warn_once(
                "EBCA's update moves only the keys, for another node gives keys and values different texts. The values "
                "stay that node's."
            )
        shape = layer.context.shape
        change = layer.project(step)
        self._changes[shape] = accumulated(self._changes.get(shape), change, self.unit)
        return change

    def _split(self, update: ContextUpdate) -> list[Part]:
        chunks = self._call.chunks
        if not update.positive_only or not chunks:
            return [Part(update, slice(0, self._call.context.shape[0]), chunks)]
        return [Part(update, chunk.rows, [chunk]) for chunk in chunks if chunk.prompt.positive]

    def _add(self, total: Tensor | None, part: Part, layer: Layer) -> Tensor | None:
        """The sum of the steps so far and of one part's, [b, t, (h d)]."""
        obstacle = self._obstacle(part, layer)
        if obstacle is not None:
            self._call.run.warn_once(
                f"EBCA leaves out a context update, for {obstacle}. Remove that node to have the update there."
            )
            return total
        update = part.update
        rows = part.rows if self._call.has_own_rows(layer) else slice(None)
        repeats = self._call.repeats(layer) if update.gamma_norm != 0 else None
        step = key_step(
            layer.k[rows],
            layer.q[rows],
            layer.heads,
            layer.attend_exchanged,
            update.gamma_attn / self.unit,
            update.gamma_norm / self.unit,
            self._token_weights(part, layer),
            None if update.mask is None else self._call.mask_rows(update.mask, part.chunks, layer),
            None if repeats is None else repeats[rows],
        )
        if total is None and step.shape == layer.k.shape:
            return step
        total = torch.zeros_like(layer.k) if total is None else total
        total[rows] += step
        return total

    def _obstacle(self, part: Part, layer: Layer) -> str | None:
        if not self._call.has_own_rows(layer):
            needs_rows = part.update.positive_only or part.update.token_weights or part.update.mask is not None
            if layer.q.shape[0] != layer.k.shape[0]:
                return REGIONS
            if needs_rows:
                return f"{REGIONS} (without token weights, mask and apply_to = positive it works there)"
        is_own = self._call.has_own_lengths(layer)
        if not is_own and _has_token_weights(part) and layer.k.shape[1] != len(part.update.token_weights.values):
            return f"{LENGTHS} (without token weights it works there)"
        return None if part.update.mask is None else self._call.mask_obstacle(layer)

    def _token_weights(self, part: Part, layer: Layer) -> Tensor | None:
        """Weights [rows of the part, t, 1]: the user's on positive prompts, 1 on the others; None if all are 1."""
        if not _has_token_weights(part):
            return None
        key = (part, layer.k.shape[1])
        if key not in self._token_weight_rows:
            self._token_weight_rows[key] = self._make_token_weights(part, layer)
        return self._token_weight_rows[key]

    def _make_token_weights(self, part: Part, layer: Layer) -> Tensor:
        values, tokens = part.update.token_weights.values, layer.k.shape[1]
        own = [chunk.prompt.tokens or tokens for chunk in part.chunks if chunk.prompt.positive]
        is_own = self._call.has_own_lengths(layer)
        if tokens % len(values) or (is_own and any(count != len(values) for count in own)):
            raise token_weights_error(len(values), next((count for count in own if count != len(values)), tokens))
        positive = self._call.run.cast(values, layer.k).repeat(tokens // len(values)).view(1, tokens, 1)
        rows = [positive if chunk.prompt.positive else torch.ones_like(positive) for chunk in part.chunks]
        return torch.cat([row.expand(len(chunk.images), -1, -1) for row, chunk in zip(rows, part.chunks, strict=True)])


def _has_token_weights(part: Part) -> bool:
    return part.update.token_weights is not None and any(chunk.prompt.positive for chunk in part.chunks)
