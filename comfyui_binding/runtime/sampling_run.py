"""State of one sampling run."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..shared_on_deepcopy import SharedOnDeepcopy
from . import notices
from .batch_layout import BatchLayout, Chunk
from .carried_contexts import CarriedContexts
from .notices import TOKEN_WEIGHTS_UNKNOWN, Notices, token_weights_error
from .protocols import RunRecorder
from .settings import ContextUpdate, Settings
from .tensor_cache import TensorCache
from .timeline import Timeline

if TYPE_CHECKING:
    from ..text.token_weights import TokenWeights


class Run(SharedOnDeepcopy):
    """One sampling run: created when the sampler starts, released with it. Calls in several threads may share it.

    timeline: what is on when; layout: which rows belong to which prompt; carried: edit contexts kept between calls;
    cache: tensors of the settings on the run's device; notices: the messages that were logged.
    """

    def __init__(
        self,
        settings: Settings,
        model_sampling: Any,
        conds: Mapping[str, Sequence[dict]] | None = None,
        latent_shape: Sequence[int] | None = None,
        warned: set[str] | None = None,
    ):
        """warned: warnings that are not logged again."""
        self.settings = settings
        self._latent_size = tuple(latent_shape[-2:]) if latent_shape is not None else None
        images = latent_shape[0] if latent_shape is not None else None
        self.timeline = Timeline(settings, model_sampling.percent_to_sigma)
        repeats_prompts = settings.architecture is None or settings.architecture.repeats_prompts
        self._reads_as_encoded = repeats_prompts
        frames = latent_shape[2] if latent_shape is not None and len(latent_shape) == 5 else None
        self.layout = BatchLayout(conds or {}, self._latent_size, images, repeats_prompts, frames)
        self.carried = CarriedContexts()
        self.cache = TensorCache(settings, self._latent_size, frames)
        self.notices = Notices(warned)
        #: Whether this is a sampling run, and not one call of the model without a run.
        self.is_whole = conds is not None
        #: Layers in which the edits of the positive prompt had to be skipped in the last call of it.
        self.layers_without_edits: set[str] = set()
        self._token_weights: dict[tuple[TokenWeights, Hashable], Tensor | None] = {}
        #: What is recorded for traces, where there are any.
        self.recorder: RunRecorder | None = None
        #: Whether edits were refused: calls go on without EBCA.
        self.is_refused = False
        self.calls = 0
        self.active_calls = 0
        #: ||change|| / ||context|| of the prompts at the end of each call with an update, on the device.
        self._update_sizes: list[Tensor] = []
        self._updated_layers = 0
        #: The nodes whose updates were on in a call, and whose updates took a step.
        self._on: set[str | None] = set()
        self._acted: set[str | None] = set()

    def match_token_weights(self, lengths_known: bool = True) -> None:
        """Find the positive prompts that the token weights were made for; a warning where there is none.

        lengths_known: whether layers get the prompts in their own lengths. Raises ValueError for weights that know no
        text and have another length than a positive prompt.
        """
        for weights in {update.token_weights for update in self.settings.updates} - {None}:
            texts = self.layout.encoded_texts
            if weights.pieces is not None:
                found = {(weights, cond): weights.laid_on(text) for cond, text in texts.items()}
                self._token_weights |= found
                if weights.pieces and found and all(values is None for values in found.values()):
                    self.notices.warn_once(TOKEN_WEIGHTS_UNKNOWN)
            elif lengths_known and self._reads_as_encoded:
                for text in texts.values():
                    if text.shape[1] != len(weights.values):
                        raise token_weights_error(len(weights.values), text.shape[1])

    def token_weights_of(self, weights: TokenWeights, chunk: Chunk) -> Tensor | None:
        """The token weights [b, t] of a prompt; None where it has none."""
        if not chunk.entry.positive:
            return None
        key = (weights, chunk.cond[0])
        if key not in self._token_weights:
            self._token_weights[key] = weights.values[None]
        return self._token_weights[key]

    def note_on(self, updates: Iterable[ContextUpdate]) -> None:
        """Note which updates are on in a call."""
        self._on |= {update.node_id for update in updates}

    def note_update(self, moved: Sequence[tuple[Tensor, Tensor]], layers: int, nodes: set[str | None]) -> None:
        """Note how far the prompts' contexts have moved in a call, in how many layers, and by which nodes' updates.

        moved: each context [b, t, c], one for a stream, and its change.
        """
        self._acted |= nodes
        if not moved or all(update.node_id is None for update in self.settings.updates):
            return
        norm = partial(torch.linalg.vector_norm, dtype=torch.float32)
        self._update_sizes.append(torch.stack([norm(change) / norm(context) for context, change in moved]).mean())
        self._updated_layers = max(self._updated_layers, layers)

    def summary(self, node_id: str) -> str:
        """What the context update of a node did in the run, or why it did nothing, for the node to show.

        Several updates of a model move one context, so each of their nodes shows how far all have moved it.
        """
        if node_id not in self._on:
            return notices.NEVER_ON
        if node_id not in self._acted:
            return next(iter(self.notices.messages), notices.NO_EFFECT)
        sizes = torch.stack([size.cpu() for size in self._update_sizes])
        moved = float(sizes[sizes.isfinite()].mean())  # a text of zeros has no norm
        return f"moved the prompt by {moved:.2%} in {self._updated_layers} layers, {len(sizes)} calls"

    @property
    def is_recording(self) -> bool:
        """Whether the next call of the model is recorded."""
        return self.recorder is not None and self.recorder.is_recording

    @property
    def silently_bypassed(self) -> bool:
        """Whether calls in which something was on, or all calls, passed without EBCA and without a reason given."""
        expected = self.active_calls > 0 or self.calls == 0 or self.recorder is not None
        return expected and not self.notices.accounted_for

    @property
    def was_never_on(self) -> bool:
        """Whether all calls lay outside every window."""
        return self.calls > 0 and self.active_calls == 0
