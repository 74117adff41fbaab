"""State of one sampling run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..shared_on_deepcopy import SharedOnDeepcopy
from .batch_layout import BatchLayout, Chunk
from .carried_contexts import CarriedContexts
from .notices import Notices, token_weights_error
from .protocols import RunRecorder
from .settings import Settings
from .tensor_cache import TensorCache
from .timeline import Timeline


class Run(SharedOnDeepcopy):
    """One sampling run: created when the sampler starts, released with it. Calls in several threads may share it.

    timeline: what is on when; layout: which rows belong to which prompt; carried: edit contexts kept between calls;
    cache: tensors of the settings on the run's device; notices: what the user is told.
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
        self.layout = BatchLayout(conds or {}, self._latent_size, images, repeats_prompts)
        self.carried = CarriedContexts()
        self.cache = TensorCache(settings, self._latent_size)
        self.notices = Notices(warned)
        #: What is recorded for traces, where there are any.
        self.recorder: RunRecorder | None = None
        self.calls = 0
        self.active_calls = 0

    def chunks(self, transformer_options: Mapping[str, Any], batch: int, size: tuple[int, int]) -> list[Chunk]:
        """The prompts of a call with `batch` latents of `size`; empty if it is not known which rows belong to which.

        That is so for a latent that is neither the whole image nor the area of a prompt, but a tile of another pack.
        """
        chunks = self.layout.chunks(transformer_options, batch)
        expected = (chunk.entry.area[:2] if chunk.entry.area else self._latent_size or size for chunk in chunks)
        return chunks if all(one == size for one in expected) else []

    def check_token_weights(self) -> None:
        """Raises ValueError for token weights of another length than a positive prompt's."""
        for update in self.settings.updates:
            if update.token_weights is None:
                continue
            for entry in self.layout.positive:
                if entry.tokens not in (None, len(update.token_weights.values)):
                    raise token_weights_error(len(update.token_weights.values), entry.tokens)

    @property
    def silently_bypassed(self) -> bool:
        """Whether calls in which something was on, or all calls, passed without EBCA and without a reason given."""
        expected = self.active_calls > 0 or self.calls == 0 or self.recorder is not None
        return expected and not self.notices.accounted_for

    @property
    def was_never_on(self) -> bool:
        """Whether all calls lay outside every window."""
        return self.calls > 0 and self.active_calls == 0
