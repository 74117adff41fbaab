"""The joint-attention transformer of the shapes family: ComfyUI's Flux class, unchanged inside, with flow matching.

Two of its blocks have weights of their own for the text; in the others text and image share theirs. It has no pooled
text and no guidance input. What differs is how a picture becomes tokens and what the output means, see windows.py.
"""
from __future__ import annotations

import torch
from comfy.ldm.flux.model import Flux
from einops import rearrange

from .windows import FEATURES, TOKEN, WINDOW, Draw, blended, velocity, windows_of

WAVES = 8  # cosines along each axis that tell a token where it lies; as many products as a window has pixels
CONFIG = {
    "in_channels": 3 + 1, "out_channels": FEATURES, "patch_size": WINDOW, "vec_in_dim": None, "context_in_dim": 128,
    "hidden_size": 192, "mlp_ratio": 4.0, "num_heads": 6, "depth": 2, "depth_single_blocks": 4,
    "axes_dim": [8, 12, 12], "theta": 10, "qkv_bias": True, "guidance_embed": False, "txt_ids_dims": [],
}
MULTIPLIER = 1.0  # timesteps are sigma itself


def places(height: int, width: int) -> torch.Tensor:
    """Where each token of a grid lies, as products [WAVES ** 2, h, w] of cosines of its place along both axes."""
    y, x = (((torch.arange(n) + 0.5) / n * torch.pi * torch.arange(WAVES)[:, None]).cos() for n in (height, width))
    return (y[:, None, :, None] * x[:, None]).flatten(0, 1)


class ShapesFlux(Flux):
    """Flux on windows of the picture at half resolution; hooks and wrappers see one that predicts v.

    The picture is a latent [b c h w] of any size, with tokens of TOKEN x TOKEN pixels. v = noise - image.
    """

    ebca_family = Flux  # whose blocks are unchanged

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        assert self.patch_size == TOKEN == WINDOW  # a window at half resolution has as many pixels as a whole token
        self.draw = Draw(kwargs.get("device"), kwargs.get("dtype"), kwargs["operations"])

    def process_img(self, x: torch.Tensor, *args, **kwargs):
        """Windows [b n (c k)] of pictures, with the places of tokens, and the positions that Flux gives to them."""
        _, positions = super().process_img(x, *args, **kwargs)
        windows = windows_of(x)
        place = places(*windows.shape[-2:]).to(windows).expand(len(x), -1, -1, -1)
        return rearrange(torch.cat([windows, place], 1), "b c h w -> b (h w) c"), positions

    def _forward(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """v [b c h w] for x = (1 - sigma) image + sigma noise, timestep [b] = sigma."""
        def features(picture: torch.Tensor) -> torch.Tensor:
            tiles = super(ShapesFlux, self)._forward(picture, timestep, context, *args, **kwargs)
            return blended(rearrange(tiles, "b c (h p) (w q) -> b (c p q) h w", p=WINDOW, q=WINDOW))

        return velocity(x, timestep, self.draw, features)
