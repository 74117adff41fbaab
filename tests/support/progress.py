"""The server's side of a progress bar. Needs a booted host."""

import latent_preview
from comfy import model_management, utils


def recorded(monkeypatch) -> list[tuple]:
    """From now on: what the server would be told, (value, total, preview) each time."""
    seen = []
    _with_previews(monkeypatch)
    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", lambda *report, **kwargs: seen.append(report))
    return seen


def interrupted_at(monkeypatch, step: int) -> list[int]:
    """From now on: the user interrupts at a step, and the server obeys as it does; the steps that it saw."""
    seen = []

    def hook(value, total, preview, **kwargs):
        seen.append(value)
        model_management.throw_exception_if_processing_interrupted()
        if value == step:
            model_management.interrupt_current_processing()

    _with_previews(monkeypatch)
    monkeypatch.setattr(utils, "PROGRESS_BAR_HOOK", hook)
    return seen


def _with_previews(monkeypatch) -> None:
    """A preview at every step: steps without one are told only now and then."""
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
