"""How the transformers of the shapes family see a picture and draw one: what surrounds their blocks.

A token stands for TOKEN x TOKEN pixels. It reads and draws a window of the picture at half resolution; windows overlap
by half. A few convolutions make the picture of what the windows say of each pixel.
"""
from __future__ import annotations

from collections.abc import Callable

import comfy.ldm.common_dit
import torch
from einops import rearrange
from torch.nn.functional import avg_pool2d, fold, interpolate, pad, silu, unfold

TOKEN = 8  # pixels of the picture, each way, for one token
STRIDE = TOKEN // 2  # the same at half resolution
WINDOW = 2 * STRIDE  # a token reads and draws this many pixels each way at half resolution: windows overlap by half
MARGIN = (WINDOW - STRIDE) // 2
FEATURES = 16  # what a token says of each pixel of its window; the first three are the colours that it would draw
DILATIONS = (1, 2, 4, 1, 2, 1)  # of the convolutions that make a picture of these: together they see 23 pixels
CHANNELS = 32  # of the convolutions
FLOOR = 0.02  # below this sigma the noise is not told from the image any more, which passes as it is


def windows_of(picture: torch.Tensor) -> torch.Tensor:
    """What each token reads of pictures [b c h w]: windows [b (c k) h/TOKEN w/TOKEN] of WINDOW x WINDOW = k pixels."""
    half = avg_pool2d(picture, 2)
    windows = unfold(pad(half, (MARGIN,) * 4, mode="replicate"), WINDOW, stride=STRIDE)
    return rearrange(windows, "b c (h w) -> b c h w", h=half.shape[-2] // STRIDE)


def blended(windows: torch.Tensor) -> torch.Tensor:
    """Features [b f h w] at half resolution of tokens' windows [b (f k) h/STRIDE w/STRIDE]: they overlap."""
    height, width = (n * STRIDE for n in windows.shape[-2:])
    size = (height + 2 * MARGIN, width + 2 * MARGIN)
    ramp = (torch.arange(STRIDE, device=windows.device) + 0.5) / STRIDE
    ramp = torch.cat([ramp, ramp.flip(0)])  # overlapping windows' ramps add up to one
    blend = (ramp[:, None] * ramp).flatten().to(windows)[:, None]
    windows = rearrange(windows, "b (f k) h w -> b f k (h w)", k=WINDOW ** 2) * blend
    share = fold(blend.expand(-1, windows.shape[-1])[None], size, WINDOW, stride=STRIDE)
    half = fold(windows.flatten(1, 2), size, WINDOW, stride=STRIDE) / share
    return half[..., MARGIN:MARGIN + height, MARGIN:MARGIN + width]


def velocity(
    x: torch.Tensor, sigma: torch.Tensor, draw: Draw, features_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """v = noise - image [b c h w] for x = (1 - sigma) image + sigma noise, sigma [b].

    features_of turns a picture, padded to whole tokens and with values of about 1, into features [b f h/2 w/2].
    Pictures of this world have soft edges and lose little at half resolution, so the network works there, where noise
    is half as strong. What it predicts and what passes it by are weighed as in Karras et al. (2022).
    """
    sigma = sigma.view(-1, 1, 1, 1).to(x.dtype)
    signal = 1 - sigma
    noise = (sigma ** 2 / 4 + (0.15 * signal) ** 2).sqrt()  # never 0: halving and enlarging change the image
    spread = (signal ** 2 + noise ** 2).sqrt()
    padded = comfy.ldm.common_dit.pad_to_patch_size(x, (TOKEN, TOKEN), padding_mode="replicate")
    features = features_of(padded / spread)
    half = avg_pool2d(padded, 2)
    change = enlarged(draw(features.to(x.dtype), half / spread))
    image = (signal / spread * enlarged(half) + noise * change) / spread
    image = image[..., :x.shape[-2], :x.shape[-1]]
    return (x - signal * image) / sigma.clamp_min(FLOOR) - image


class Draw(torch.nn.Module):
    """Convolutions that make a picture of what tokens say of each pixel: edges come out sharp anywhere."""

    def __init__(self, device=None, dtype=None, operations=None):
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.begin = operations.Conv2d(FEATURES + 3, CHANNELS, 1, **made)
        self.norms = torch.nn.ModuleList(operations.GroupNorm(4, CHANNELS, **made) for _ in DILATIONS)
        self.layers = torch.nn.ModuleList(
            operations.Conv2d(CHANNELS, CHANNELS, 3, padding=reach, dilation=reach, **made) for reach in DILATIONS
        )
        self.end = operations.Conv2d(CHANNELS, 3, 1, **made)

    def forward(self, features: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
        """features [b f h w], noisy picture [b 3 h w] -> picture [b 3 h w]."""
        x = self.begin(torch.cat([features, noisy], 1))
        for norm, layer in zip(self.norms, self.layers):
            x = x + layer(silu(norm(x)))
        return features[:, :3] + self.end(silu(x))


def enlarged(half: torch.Tensor) -> torch.Tensor:
    """Pictures [b c h w] at twice their size."""
    return interpolate(half, scale_factor=2.0, mode="bicubic")
