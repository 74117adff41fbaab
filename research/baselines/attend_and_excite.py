"""Chefer, Alaluf, Vinker, Wolf, Cohen-Or, "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
Diffusion Models" (SIGGRAPH 2023, arXiv 2301.13826).

In the first half of the steps, before the model is asked for its prediction, with A_s [h, w] the attention map of the
prompt's token s, the mean over the layers of one resolution and their heads:

    A   <- softmax over the prompt's tokens without the start token (of 100 A), smoothed by a Gaussian
    L   =  max over subject tokens s of (1 - max over pixels of A_s)
    z   <- z - alpha_t grad_z L                            alpha_t = step_size sqrt(1 - progress / 2)

and at three of the steps again until max A_s has reached 0.05, 0.5, 0.8, at most 20 times. z is the latent as the
model sees it (variance preserving); ComfyUI's is x = z sqrt(1 + sigma^2), so that the step in x is (1 + sigma^2) times
the gradient in x.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .layers import with_cross_attention

SHARPNESS = 100.0
SHARE = 0.5  # of the steps, from the first
REFINED = {0.0: 0.05, 0.2: 0.5, 0.4: 0.8}  # {progress: how far a subject's map has to reach there}
REFINEMENTS = 20
KERNEL_SIGMA = 0.5


def losses(maps: Tensor, subjects: Tensor, prompt: Tensor) -> Tensor:
    """L of each image [b].

    maps [b, h, w, t]: attention, mean over layers and heads. subjects, prompt [b, t]: which tokens are subjects, which
    are the prompt's own (neither start nor end nor padding).
    """
    sharp = (SHARPNESS * maps).masked_fill(~prompt[:, None, None], -torch.inf).softmax(-1)
    peaks = _smoothed(sharp.movedim(-1, 1)).amax((-2, -1))
    return (1 - peaks).masked_fill(~subjects, -torch.inf).amax(-1)


def _smoothed(maps: Tensor) -> Tensor:
    """[b, t, h, w] under a Gaussian of 3 x 3."""
    line = torch.exp(-torch.arange(-1.0, 2.0, device=maps.device) ** 2 / (2 * KERNEL_SIGMA**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    flat = pad(maps.flatten(0, 1)[:, None].float(), (1, 1, 1, 1), mode="reflect")
    return conv2d(flat, kernel[None, None]).view(maps.shape)


def attention_map(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """softmax over tokens of q k^T / sqrt(d), mean over heads: q [b, n, (h d)], k [b, t, (h d)] -> [b, n, t]."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1).mean(1)


@dataclass(frozen=True)
class AttendAndExcite:
    """subjects, prompt: as in `losses`, for the images of the batch. side: rows and columns of the maps' layers."""

    subjects: Tensor
    prompt: Tensor
    step_size: float
    refines: bool
    side: int

    def applied_to(self, model):
        """A clone of the model; for samplers that show the model their own latent, which is changed in place."""
        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.PREDICT_NOISE, self._predict)
        return model

    def _predict(self, executor, x: Tensor, timestep: Tensor, model_options: dict, seed=None):
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        steps = len(sigmas) - 1
        step = int((sigmas[:-1] - timestep[0]).abs().argmin())
        if step < SHARE * steps:
            self._excite(executor.class_obj, x, timestep, model_options, step, steps)
        return executor(x, timestep, model_options, seed)

    def _excite(self, guider, x: Tensor, timestep: Tensor, model_options: dict, step: int, steps: int) -> None:
        rate = self.step_size * (1 - 0.5 * step / steps) ** 0.5 * (1 + timestep[0] ** 2)
        targets = {round(progress * steps): reach for progress, reach in REFINED.items()}
        loss, gradient = self._loss(guider, x, timestep, model_options)
        if self.refines and step in targets:
            for _ in range(REFINEMENTS):
                lacking = loss > 1 - targets[step]
                if not lacking.any():
                    break
                x.sub_(rate * gradient * lacking.view(-1, 1, 1, 1))
                loss, gradient = self._loss(guider, x, timestep, model_options)
        x.sub_(rate * gradient)

    def _loss(self, guider, x: Tensor, timestep: Tensor, model_options: dict) -> tuple[Tensor, Tensor]:
        """L [b] and its gradient with respect to x [b, c, h, w]."""
        maps: list[Tensor] = []

        def attend(q, k, v, options):
            if q.shape[1] == self.side**2:
                maps.append(attention_map(q, k, options["n_heads"]))
            return optimized_attention(q, k, v, options["n_heads"], attn_precision=options["attn_precision"])

        options = with_cross_attention(model_options, guider.inner_model.diffusion_model, attend)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            comfy.samplers.calc_cond_batch(guider.inner_model, [guider.conds["positive"]], x, timestep, options)
            mean = torch.stack(maps).mean(0).unflatten(1, (self.side, self.side))
            loss = losses(mean, self.subjects, self.prompt)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach(), gradient
