"""What one sampling run knows and what its edits carry from call to call."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import comfy.model_management
import torch
from torch import Tensor

from ...ebca_core import Schedule, Window, mask_on_grid
from ..shared_on_deepcopy import CopiedAsItself
from ..trace.recorder import RunReadings
from .batch_layout import Chunk, Prompts
from .settings import ContextUpdate, Edit, Settings

log = logging.getLogger("ebca")

Made = TypeVar("Made")

#: Whose context is carried: an edit's for one prompt and image, or (edit None) the negative one that all edits share.
CarryKey = tuple[Edit | None, Hashable, int]


class Run(CopiedAsItself):
    """One sampling run. Made when the sampler starts and gone with it; calls in several threads may share it."""

    def __init__(
        self,
        settings: Settings,
        model_sampling: Any,
        conds: Mapping[str, Sequence[dict]] | None = None,
        latent_shape: Sequence[int] | None = None,
        said: set[str] | None = None,
    ):
        """said: warnings not to be given again."""
        self.settings = settings
        self._latent_size = tuple(latent_shape[-2:]) if latent_shape is not None else None
        images = latent_shape[0] if latent_shape is not None else None
        self.prompts = Prompts(conds or {}, self._latent_size, images)
        self.calls = 0
        self.active_calls = 0
        #: Whether a layer worked with EBCA, or the user knows why none did.
        self.was_reached = False
        to_sigma = model_sampling.percent_to_sigma
        self._bounds = {w: (to_sigma(w.start_percent), to_sigma(w.end_percent)) for w in settings.windows}
        self._carried: dict[CarryKey, tuple[Tensor, float]] = {}
        #: What is read for traces, where there are any.
        self.readings: RunReadings | None = None
        self._to_sigma = to_sigma
        self._cache: dict[Hashable, Any] = {}
        self._warned: set[str] = set() if said is None else said
        self._lock = threading.Lock()

    # --- when ---

    @property
    def needs_sigma(self) -> bool:
        """Whether what is on depends on sigma. Reading sigma makes the host wait for the device, so ask first."""
        settings = self.settings
        return bool(settings.edits or settings.schedules) or any(window != Window() for window in settings.windows)

    def is_on(self, window: Window, sigma: float | None) -> bool:
        if sigma is None:
            return True
        start, end = self._bounds[window]
        return end < sigma <= start

    def is_active(self, sigma: float | None) -> bool:
        """Whether anything is on at this sigma."""
        return bool(self.updates(sigma) or self.weights(sigma) or self.gammas(sigma))

    def updates(self, sigma: float | None) -> list[ContextUpdate]:
        """The context updates that are on at this sigma, as strong as their schedules have them."""
        on = [update for update in self.settings.updates if self.is_on(update.window, sigma)]
        scaled = [update.scaled(self._factor(update.schedule, sigma)) if update.schedule else update for update in on]
        return [update for update in scaled if not update.is_off]

    def weights(self, sigma: float | None) -> dict[Edit, float]:
        """The edits that are mixed into the outputs at this sigma, with their signed alphas."""
        on = [edit for edit in self.settings.edits if self.is_on(edit.window, sigma)]
        weights = {edit: edit.weight * self._factor(edit.alpha_schedule, sigma) for edit in on}
        return {edit: weight for edit, weight in weights.items() if weight != 0}

    def gammas(self, sigma: float | None) -> dict[Edit, tuple[float, float]]:
        """The edits whose own contexts are updated at this sigma, with gamma_attn and gamma_norm."""
        on = [edit for edit in self.settings.edits if edit.is_updated and self.is_on(edit.gamma_window, sigma)]
        factors = {edit: self._factor(edit.gamma_schedule, sigma) for edit in on}
        return {
            edit: (factor * edit.gamma_attn, factor * edit.gamma_norm) for edit, factor in factors.items() if factor
        }

    def _factor(self, schedule: Schedule | None, sigma: float | None) -> float:
        if schedule is None:
            return 1.0
        return schedule.factor(self.kept(("percent", sigma), lambda: self._percent(sigma)))

    def _percent(self, sigma: float) -> float:
        """The share of the noise schedule at a sigma: percent_to_sigma falls, and ComfyUI has no way back."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self._to_sigma(middle) > sigma else (low, middle)
        return high

    # --- prompts ---

    def chunks(self, transformer_options: Mapping[str, Any], batch: int, size: tuple[int, int]) -> list[Chunk]:
        """The prompts of a call with `batch` latents of `size`; none if it is not known which rows are whose.

        That is so for a latent that is neither the whole image nor a prompt's area, but a tile of another pack.
        """
        chunks = self.prompts.chunks(transformer_options, batch)
        expected = (chunk.prompt.area[:2] if chunk.prompt.area else self._latent_size or size for chunk in chunks)
        return chunks if all(one == size for one in expected) else []

    def check_token_weights(self) -> None:
        """Raises ValueError for token weights of another length than a positive prompt's."""
        for update in self.settings.updates:
            if update.token_weights is None:
                continue
            for prompt in self.prompts.positive:
                if prompt.tokens not in (None, len(update.token_weights.values)):
                    raise token_weights_error(len(update.token_weights.values), prompt.tokens)

    # --- what is carried ---

    def carried(self, edit: Edit | None, chunk: Chunk, device: torch.device) -> Tensor | None:
        """Change of an edit's context so far, [b, t, c] with t its own tokens (None: of the shared negative one)."""
        changes = [self._carried.get((edit, chunk.cond, image)) for image in chunk.images]
        known = next((change for change, _ in filter(None, changes)), None)
        if known is None:
            return None
        rows = [torch.zeros_like(known) if change is None else change[0] for change in changes]
        return torch.stack([row.to(device) for row in rows])

    def commit(self, changes: Mapping[CarryKey, Tensor], sigma: float) -> None:
        """Keep changes [t, c]. Of calls in a row for one prompt at one sigma (PAG, SAG) the first counts."""
        with self._lock:
            for key, change in changes.items():
                if key not in self._carried or self._carried[key][1] != sigma:
                    self._carried[key] = (change, sigma)

    # --- the settings' tensors on the run's device ---

    def cast(self, tensor: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A settings tensor on the device of `like`, in its type or the given one; copied there once a run."""
        device, dtype = like.device, dtype or like.dtype
        waits_not = comfy.model_management.device_supports_non_blocking(device)
        return self.kept(("cast", id(tensor), device, dtype), lambda: tensor.to(device, dtype, non_blocking=waits_not))

    def fetch(self, like: Tensor) -> None:
        """Have all of them on the device before the first layer asks, which would make the host wait for the device."""
        for update in self.settings.updates:
            if update.token_weights is not None:
                self.cast(update.token_weights.values, like)
        for edit in self.settings.edits:
            self.cast(edit.context, like)
        for setting in (*self.settings.updates, *self.settings.edits):
            if setting.mask is not None:
                self.cast(setting.mask, like, torch.float32)

    def edit_rows(self, edit: Edit, chunk: Chunk, like: Tensor) -> Tensor:
        """An edit's context for each row of a chunk, [b, t, c]: copies, as fast fp8 layers clamp inputs in place."""
        context = self.cast(edit.context, like)
        key = ("edit", edit, chunk.images, like.device, like.dtype)
        return self.kept(key, lambda: torch.stack([context[image % context.shape[0]] for image in chunk.images]))

    def mask_rows(
        self, mask: Tensor, chunks: Sequence[Chunk], latent_size: tuple[int, int], grid: tuple[int, int], like: Tensor
    ) -> Tensor:
        """Mask [b, height, width] -> [rows of the chunks, n, 1] on a layer's grid, cropped to the prompts' areas.

        latent_size: of the whole image, where the run itself does not know it.
        """
        regions = tuple((chunk.prompt.area, chunk.images) for chunk in chunks)
        key = ("mask", id(mask), regions, grid, like.device, like.dtype)
        return self.kept(key, lambda: self._make_mask_rows(mask, chunks, latent_size, grid, like))

    def _make_mask_rows(
        self, mask: Tensor, chunks: Sequence[Chunk], latent_size: tuple[int, int], grid: tuple[int, int], like: Tensor
    ) -> Tensor:
        mask = self.cast(mask, like, torch.float32).unsqueeze(1)
        latent = torch.nn.functional.interpolate(mask, size=self._latent_size or latent_size, mode="bilinear").squeeze(
            1
        )
        rows = [mask_on_grid(_region(latent, chunk), grid) for chunk in chunks]
        return torch.cat(rows).to(like.dtype)

    def kept(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once a run."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    # --- what the user should know ---

    @property
    def had_no_effect(self) -> bool:
        """Whether calls in which something was on, or all calls, went by without EBCA and without a reason given."""
        wanted = self.active_calls > 0 or self.calls == 0 or self.readings is not None
        return wanted and not self.was_reached

    @property
    def was_never_on(self) -> bool:
        """Whether all calls lay outside every window."""
        return self.calls > 0 and self.active_calls == 0

    def excuse(self, message: str) -> None:
        """Say why EBCA is out."""
        self.was_reached = True
        self.warn_once(message)

    def warn_once(self, message: str) -> None:
        with self._lock:
            if message in self._warned:
                return
            self._warned.add(message)
        log.warning(message)


def token_weights_error(weights: int, tokens: int) -> ValueError:
    return ValueError(
        f"Expected token weights for the {tokens} tokens of the positive prompt, but got {weights}. Give EBCA Token "
        "Weights the text that the positive prompt encodes."
    )


def _region(mask: Tensor, chunk: Chunk) -> Tensor:
    """The part of a latent-sized mask [b, height, width] that a chunk is about, one for each of its images."""
    if chunk.prompt.area is not None:
        height, width, top, left = chunk.prompt.area
        mask = mask[:, top : top + height, left : left + width]
    return torch.stack([mask[image % mask.shape[0]] for image in chunk.images])
