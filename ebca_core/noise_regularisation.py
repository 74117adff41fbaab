"""Noise regularisation: moves predicted noise towards white noise before an inversion step uses it.

Gradient descent on two losses, with gradients in closed form: white noise is uncorrelated with its own shifted copies
(autocorrelation), and has mean 0 and variance 1 (KL). Used to invert real images, as in the authors' experiments
(paper, section 4.3).

Letters: b batch, c channels of the latent, l levels of the pyramid. Noise is [b, c, height, width]; the losses are
computed for each image separately, and for each frame of a video.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

#: The pyramid ends at the first level whose shorter side is at most this long.
SHORTEST_SIDE = 8
#: Keeps the logarithm finite if all values of the noise are equal.
EPSILON = 1e-7
#: Values of the images that the authors chose their lambdas for: 4 channels of 64 x 64.
REFERENCE_VALUES = 4 * 64 * 64
#: Flow-matching models: noise of a lower variance takes no KL step, whose gradient grows as 1 / variance.
LOWEST_VARIANCE = 0.05


@dataclass(frozen=True)
class NoiseRegularisation:
    """Step sizes and numbers of iterations of the regularisation. The defaults are the authors' values."""

    lambda_auto_corr: float = 20.0
    lambda_kl: float = 20.0
    steps: int = 5
    rolls: int = 5

    @property
    def is_off(self) -> bool:
        return self.steps == 0 or (self.lambda_kl == 0 and (self.lambda_auto_corr == 0 or self.rolls == 0))


def regularised_noise(
    noise: Tensor, regularisation: NoiseRegularisation, generator: torch.Generator, flow_matching: bool = False
) -> Tensor:
    """`steps` times: `rolls` gradient steps of lambda / rolls on the autocorrelation loss, then one on the KL loss.

    noise [b, c, height, width] or [b, c, frames, height, width] -> the same shape. The shifts are drawn from
    `generator`, on the CPU; all images and frames use the same shifts, so that the result for an image does not depend
    on its batch.

    `flow_matching`: for latents of any size. The losses are means over the values of an image, so both lambdas are
    multiplied by the number of values over REFERENCE_VALUES; and images with a variance below LOWEST_VARIANCE, as the
    noise predicted in a nearly finished image can have, take no KL step.
    """
    frames = rearrange(noise, "b c ... h w -> (b ...) c h w")
    lambda_auto_corr, lambda_kl = regularisation.lambda_auto_corr, regularisation.lambda_kl
    if flow_matching:
        scale = frames[0].numel() / REFERENCE_VALUES
        lambda_auto_corr, lambda_kl = scale * lambda_auto_corr, scale * lambda_kl
    rolls = regularisation.rolls if lambda_auto_corr else 0
    shifts = draw_shifts(frames, (regularisation.steps, rolls), generator).to(noise.device)
    for step in range(regularisation.steps):
        for roll in range(rolls):
            gradient = auto_correlation_gradient(frames, shifts[step, roll])
            frames = frames - lambda_auto_corr / rolls * gradient
        if lambda_kl:
            stepped = frames - lambda_kl * kl_gradient(frames)
            frames = torch.where(_varies(frames), stepped, frames) if flow_matching else stepped
    return rearrange(frames, "(b t) c h w -> b c t h w", b=len(noise)).reshape(noise.shape)


def pyramid(noise: Tensor) -> list[Tensor]:
    """The noise and its averages over 2 x 2, 4 x 4, ... values, down to a shorter side of SHORTEST_SIDE."""
    levels = [noise]
    while min(levels[-1].shape[-2:]) > SHORTEST_SIDE:
        levels.append(avg_pool2d(levels[-1], 2))
    return levels


def draw_shifts(noise: Tensor, times: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Shifts for the autocorrelation, uniform from [0, rows / 2) for each channel and level -> [*times, l, c].

    On the CPU. The shift of a level with one row is 0.
    """
    rows = [level.shape[-2] for level in pyramid(noise[:1, :1])]
    count, channels = torch.Size(times).numel(), noise.shape[1]
    drawn = [
        torch.randint(max(side // 2, 1), (1,), generator=generator) for _ in range(count * channels) for side in rows
    ]  # one value at a time: the order in which the reference draws
    if not drawn:
        return torch.zeros(*times, len(rows), channels, dtype=torch.long)
    return torch.cat(drawn).reshape(*times, channels, len(rows)).transpose(-1, -2)


def auto_correlation_loss(noise: Tensor, shifts: Tensor) -> Tensor:
    """Sum over channels and levels of mean(x * roll(x, r, rows))^2 + mean(x * roll(x, r, columns))^2.

    noise [b, c, height, width], shifts [l, c] -> losses [b].
    """
    levels = zip(pyramid(noise), shifts, strict=True)
    return sum(
        (level * _rolled(level, shift, axis)).mean(dim=(-2, -1)).square().sum(dim=-1)
        for level, shift in levels
        for axis in (-2, -1)
    )


def auto_correlation_gradient(noise: Tensor, shifts: Tensor) -> Tensor:
    """d auto_correlation_loss / d noise. noise [b, c, height, width], shifts [l, c] -> [b, c, height, width].

    With m = mean(x * roll(x, r)) over p values, dm^2/dx = 2 m (roll(x, r) + roll(x, -r)) / p. The gradient of a coarser
    level is spread over the 2 x 2 values of each average, a quarter to each.
    """
    gradient = None
    for level, shift in reversed(list(zip(pyramid(noise), shifts, strict=True))):
        own = sum(_level_gradient(level, shift, axis) for axis in (-2, -1))
        gradient = own if gradient is None else own + _spread(gradient, own)
    return gradient


def kl_loss(noise: Tensor) -> Tensor:
    """var + mean^2 - 1 - log(var + EPSILON) over all values of an image, var unbiased. noise [b, c, h, w] -> [b]."""
    variance, mean = torch.var_mean(noise, dim=(1, 2, 3))
    return variance + mean.square() - 1 - (variance + EPSILON).log()


def kl_gradient(noise: Tensor) -> Tensor:
    """d kl_loss / d noise, [b, c, height, width] -> the same shape."""
    count = noise[0].numel()
    variance, mean = torch.var_mean(noise, dim=(1, 2, 3), keepdim=True)
    return (1 - 1 / (variance + EPSILON)) * (noise - mean) * (2 / (count - 1)) + mean * (2 / count)


def _varies(noise: Tensor) -> Tensor:
    """Whether an image's values have a variance of LOWEST_VARIANCE or more. noise [b, c, h, w] -> [b, 1, 1, 1]."""
    return noise.var(dim=(1, 2, 3), keepdim=True) >= LOWEST_VARIANCE


def _level_gradient(level: Tensor, shift: Tensor, axis: int) -> Tensor:
    ahead, behind = _rolled(level, shift, axis), _rolled(level, -shift, axis)
    mean = (level * ahead).mean(dim=(-2, -1), keepdim=True)
    return (ahead + behind) * (mean * (2 / level[0, 0].numel()))


def _rolled(values: Tensor, shift: Tensor, axis: int) -> Tensor:
    """torch.roll of each channel of values [b, c, height, width] by the shift [c] of that channel."""
    size = values.shape[axis]
    source = (torch.arange(size, device=values.device) - rearrange(shift, "c -> c 1")) % size
    index = rearrange(source, "c i -> 1 c i 1" if axis == -2 else "c i -> 1 c 1 i").expand_as(values)
    return values.gather(axis, index)


def _spread(gradient: Tensor, finer: Tensor) -> Tensor:
    """The gradient of 2 x 2 averages with respect to their values; 0 for an odd last row or column."""
    spread = repeat(gradient / 4, "b c h w -> b c (h 2) (w 2)")
    return pad(spread, (0, finer.shape[-1] - spread.shape[-1], 0, finer.shape[-2] - spread.shape[-2]))
