"""The calls that are measured: a sampler's denoiser call, positive and negative prompt in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch

from random_models import Geometry

#: Direction and alpha of the edits, the authors' cat -> dog first.
EDITS = (("add", 0.75), ("remove", 0.65), ("add", 0.6), ("remove", 0.5))
EDIT_GAMMA = 0.0005


@dataclass(frozen=True)
class Case:
    """What EBCA does in a call. limit: the ratio to the plain model that the project aims at on CPU, if any."""

    name: str
    update: bool = False
    edits: int = 0
    edits_updated: bool = False
    trace: bool = False
    attention_maps: bool = False
    limit: float | None = None


PLAIN = Case("plain")
CASES = (
    Case("context update", update=True, limit=1.05),
    Case("1 edit", edits=1),
    Case("2 edits", edits=2, limit=1.05),
    Case("4 edits", edits=4),
    Case("1 edit, updated", edits=1, edits_updated=True),
    Case("2 edits, updated", edits=2, edits_updated=True, limit=1.05),
    Case("4 edits, updated", edits=4, edits_updated=True),
    Case("trace", trace=True, limit=1.03),
    Case("trace with maps", trace=True, attention_maps=True),
)


def patched(case: Case, model: Any, geometry: Geometry, nodes: dict[str, type]) -> Any:
    """The MODEL with the case's nodes on it, at settings that keep all of them on at every sigma."""
    if case.update:
        update = dict(gamma_attn=0.01, gamma_norm=0.02, start_percent=0.0, end_percent=1.0)
        (model,) = nodes["EBCAContextUpdate"].execute(model=model, **update).result
    if case.trace:
        model, _ = nodes["EBCATrace"].execute(model=model, attention_maps=case.attention_maps).result
    gamma = EDIT_GAMMA if case.edits_updated else 0.0
    strengths = dict(
        start_percent=0.0, end_percent=1.0, gamma_attn=gamma, gamma_norm=gamma, gamma_start_percent=0.0,
        gamma_end_percent=1.0,
    )  # fmt: skip
    edits = {
        f"edit{i}": nodes["EBCAEditContext"].execute(
            conditioning=geometry.conditioning(10 + i), direction=direction, alpha=alpha, **strengths
        ).result[0]
        for i, (direction, alpha) in enumerate(EDITS[: case.edits])
    }  # fmt: skip
    return nodes["EBCACompose"].execute(model=model, edits=edits).result[0] if edits else model


class DenoiserCall:
    """A sampling run of `model`, stopped where the sampler calls the denoiser; the call can then be made at will."""

    def __init__(self, model: Any, geometry: Geometry, shape: Sequence[int]):
        """shape: of the latent, without the batch."""
        self._patcher = model
        self._count = 0
        noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        sampling = model.get_model_object("model_sampling")
        self._sigmas = torch.tensor([float(sampling.percent_to_sigma(percent)) for percent in (0.3, 0.35)])
        sampler = comfy.samplers.KSAMPLER(self._capture)
        with torch.inference_mode():
            comfy.sample.sample_custom(
                model, noise, 7.5, sampler, self._sigmas[:1], geometry.conditioning(1),
                geometry.conditioning(2), torch.zeros_like(noise), disable_pbar=True,
            )  # fmt: skip

    def _capture(self, model: Callable, x: torch.Tensor, sigmas, extra_args: dict, callback, disable, **kwargs):
        guider = model.inner_model
        self._model, self._options = guider.inner_model, extra_args["model_options"]
        self._conds = [guider.conds["negative"], guider.conds["positive"]]
        self._x, self._sigmas = x, self._sigmas.to(x.device)
        return x

    @property
    def options(self) -> dict[str, Any]:
        """The run's model_options."""
        return self._options

    def begin(self) -> None:
        """What ComfyUI does before a run: the next calls are this model's."""
        self._patcher.pre_run()

    def end(self) -> None:
        self._patcher.cleanup()

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """The denoised images of both prompts. Two sigmas take turns, for edits carry on from one to the next."""
        self._count += 1
        sigma = self._sigmas[self._count % 2].expand(1)
        return torch.cat(comfy.samplers.calc_cond_batch(self._model, self._conds, self._x, sigma, self._options))
