"""Which updates and edits are on at a sigma, and how strong their schedules make them."""

from __future__ import annotations

from collections.abc import Callable

from ...ebca_core import Schedule, Window
from .settings import ContextUpdate, Edit, Settings


class Timeline:
    """The windows and schedules of one run, in terms of the model's sigma."""

    def __init__(self, settings: Settings, percent_to_sigma: Callable[[float], float]):
        self._settings = settings
        self._percent_to_sigma = percent_to_sigma
        self._bounds = {
            window: (percent_to_sigma(window.start_percent), percent_to_sigma(window.end_percent))
            for window in settings.windows
        }
        self._percents: dict[float | None, float] = {}

    @property
    def needs_sigma(self) -> bool:
        """Whether what is on depends on sigma. Reading sigma makes the host wait for the device, so ask first."""
        settings = self._settings
        return bool(settings.edits or settings.schedules) or any(window != Window() for window in settings.windows)

    def updates(self, sigma: float | None) -> list[ContextUpdate]:
        """The context updates that are on at a sigma, scaled by their schedules."""
        on = [update for update in self._settings.updates if self._is_on(update.window, sigma)]
        scaled = [update.scaled(self._factor(update.schedule, sigma)) if update.schedule else update for update in on]
        return [update for update in scaled if not update.is_off]

    def weights(self, sigma: float | None) -> dict[Edit, float]:
        """The edits that are mixed into the layers' outputs at a sigma, with their signed alphas."""
        on = [edit for edit in self._settings.edits if self._is_on(edit.window, sigma)]
        weights = {edit: edit.weight * self._factor(edit.alpha_schedule, sigma) for edit in on}
        return {edit: weight for edit, weight in weights.items() if weight != 0}

    def gammas(self, sigma: float | None) -> dict[Edit, tuple[float, float]]:
        """The edits whose own contexts are updated at a sigma, with gamma_attn and gamma_norm."""
        on = [edit for edit in self._settings.edits if edit.is_updated and self._is_on(edit.gamma_window, sigma)]
        factors = {edit: self._factor(edit.gamma_schedule, sigma) for edit in on}
        return {
            edit: (factor * edit.gamma_attn, factor * edit.gamma_norm) for edit, factor in factors.items() if factor
        }

    def is_on_before(self, sigma: float) -> bool:
        """Whether edits' contexts would have moved in steps above a sigma."""
        return any(edit.is_updated and self._bounds[edit.gamma_window][0] > sigma for edit in self._settings.edits)

    def _is_on(self, window: Window, sigma: float | None) -> bool:
        if sigma is None:
            return True
        start, end = self._bounds[window]
        return end < sigma <= start

    def _factor(self, schedule: Schedule | None, sigma: float | None) -> float:
        if schedule is None:
            return 1.0
        if sigma not in self._percents:
            self._percents[sigma] = self._percent(sigma)
        return schedule.factor(self._percents[sigma])

    def _percent(self, sigma: float) -> float:
        """The share of the noise schedule at a sigma, by bisection: ComfyUI has no inverse of percent_to_sigma."""
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self._percent_to_sigma(middle) > sigma else (low, middle)
        return high
