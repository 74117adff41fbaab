"""The transformer of the shapes family: MiniTrainDIT, the class of Cosmos-Predict2 and Anima, with flow matching.

Its blocks are ComfyUI's own, unchanged. What differs is how a picture becomes tokens and what the output means.
"""
from __future__ import annotations

import comfy.ldm.common_dit
import torch
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from einops import rearrange
from torch.nn.functional import avg_pool2d, fold, interpolate, pad, silu, unfold

TOKEN = 8  # pixels of the picture, each way, for one token
STRIDE = TOKEN // 2  # the same at half resolution
WINDOW = 2 * STRIDE  # a token reads and draws this many pixels each way at half resolution: windows overlap by half
MARGIN = (WINDOW - STRIDE) // 2
WAVES = 4  # cosines along each axis that tell a token where it lies
FEATURES = 16  # what a token says of each pixel of its window; the first three are the colours that it would draw
DILATIONS = (1, 2, 4, 1, 2, 1)  # of the convolutions that make a picture of these: together they see 23 pixels
CHANNELS = 32  # of the convolutions
DRAWN = 3 * WINDOW ** 2
NEAR = 0.004  # rotations by 1 to 0.16 a token, for grids of eight; 1 would be for grids of hundreds
CONFIG = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": DRAWN + 2 * WAVES,
    "out_channels": FEATURES * WINDOW ** 2, "patch_spatial": 1, "patch_temporal": 1, "concat_padding_mask": False,
    "model_channels": 192, "num_blocks": 6, "num_heads": 6, "mlp_ratio": 4.0, "crossattn_emb_channels": 128,
    "pos_emb_cls": "rope3d",
    "rope_h_extrapolation_ratio": NEAR, "rope_w_extrapolation_ratio": NEAR, "rope_enable_fps_modulation": False,
    "use_adaln_lora": True, "adaln_lora_dim": 64, "extra_per_block_abs_pos_emb": False,
}
MULTIPLIER = 1000  # timesteps are this many times sigma
FLOOR = 0.02  # below this sigma the noise is not told from the image any more, which passes as it is


def places(height: int, width: int) -> torch.Tensor:
    """Where each token of a grid lies, as cosines [2 * WAVES, h, w] of its place along each axis, 0..1."""
    waves = torch.pi * torch.arange(1, WAVES + 1)
    y, x = ((torch.arange(n) + 0.5) / n * waves[:, None] for n in (height, width))
    return torch.cat([y.cos()[:, :, None].expand(-1, -1, width), x.cos()[:, None].expand(-1, height, -1)])


class ShapesDIT(MiniTrainDIT):
    """MiniTrainDIT on windows of the picture at half resolution; hooks and wrappers see one that predicts v.

    The picture is a latent [b c h w] of any size, with tokens of TOKEN x TOKEN pixels. v = noise - image.
    """

    ebca_family = MiniTrainDIT  # whose blocks are unchanged

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.patch_spatial = TOKEN  # what a token stands for; the embedding itself sees windows, one at a time
        made = {"device": kwargs.get("device"), "dtype": kwargs.get("dtype"), "operations": kwargs["operations"]}
        self.draw = Draw(**made)
        ramp = (torch.arange(STRIDE) + 0.5) / STRIDE
        ramp = torch.cat([ramp, ramp.flip(0)])  # overlapping windows' ramps add up to one
        self.register_buffer("blend", (ramp[:, None] * ramp).flatten().to(kwargs.get("device")), persistent=False)

    def prepare_embedded_sequence(self, x: torch.Tensor, fps=None, padding_mask=None):
        """Tokens [b 1 h w d] and rotary embedding of pictures [b c 1 h w]."""
        half = avg_pool2d(x[:, :, 0], 2)
        height, width = (n // STRIDE for n in half.shape[-2:])
        windows = unfold(pad(half, (MARGIN,) * 4, mode="replicate"), WINDOW, stride=STRIDE)
        windows = rearrange(windows, "b c (h w) -> b c 1 h w", h=height)
        place = places(height, width).to(windows)[None, :, None].expand(len(x), -1, -1, -1, -1)
        tokens, *rest = super().prepare_embedded_sequence(torch.cat([windows, place], 1), fps=fps)
        return tokens.to(x.dtype), *rest  # blocks add to these: under autocast too in the precision of the picture

    def unpatchify(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features [b f 1 h w] of tokens [b 1 h w o], at half resolution: their windows, blended."""
        height, width = (n * STRIDE for n in tokens.shape[2:4])
        size = (height + 2 * MARGIN, width + 2 * MARGIN)
        blend = self.blend.to(tokens)[:, None]
        windows = rearrange(tokens, "b 1 h w (c k) -> b c k (h w)", k=WINDOW ** 2) * blend
        share = fold(blend.expand(-1, windows.shape[-1])[None], size, WINDOW, stride=STRIDE)
        half = fold(windows.flatten(1, 2), size, WINDOW, stride=STRIDE) / share
        return half[..., MARGIN:MARGIN + height, MARGIN:MARGIN + width][:, :, None]

    def _forward(self, x: torch.Tensor, timesteps: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """v [b c h w] for x = (1 - sigma) image + sigma noise, timesteps [b] = MULTIPLIER sigma.

        Pictures of this world have soft edges and lose little at half resolution, so the network works there, where
        noise is half as strong. What it predicts and what passes it by are weighed as in Karras et al. (2022).
        """
        sigma = (timesteps / MULTIPLIER).view(-1, 1, 1, 1).to(x.dtype)
        signal = 1 - sigma
        noise = (sigma ** 2 / 4 + (0.15 * signal) ** 2).sqrt()  # never 0: halving and enlarging change the image
        spread = (signal ** 2 + noise ** 2).sqrt()
        padded = comfy.ldm.common_dit.pad_to_patch_size(x, (TOKEN, TOKEN), padding_mode="replicate")
        features = super()._forward((padded / spread)[:, :, None], timesteps, *args, **kwargs)[:, :, 0]
        half = avg_pool2d(padded, 2)
        change = enlarged(self.draw(features.to(x.dtype), half / spread))
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
