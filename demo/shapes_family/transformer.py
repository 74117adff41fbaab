"""The transformer of the shapes family: MiniTrainDIT, the class of Cosmos-Predict2 and Anima, with flow matching.

Its blocks are ComfyUI's own, unchanged. What differs is how a picture becomes tokens and what the output means, see
windows.py.
"""
from __future__ import annotations

import torch
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from einops import rearrange

from .windows import FEATURES, TOKEN, WINDOW, Draw, blended, velocity, windows_of

WAVES = 4  # cosines along each axis that tell a token where it lies
NEAR = 0.004  # rotations by 1 to 0.16 a token, for grids of eight; 1 would be for grids of hundreds
CONFIG = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "in_channels": 3 * WINDOW ** 2 + 2 * WAVES,
    "out_channels": FEATURES * WINDOW ** 2, "patch_spatial": 1, "patch_temporal": 1, "concat_padding_mask": False,
    "model_channels": 192, "num_blocks": 6, "num_heads": 6, "mlp_ratio": 4.0, "crossattn_emb_channels": 128,
    "pos_emb_cls": "rope3d",
    "rope_h_extrapolation_ratio": NEAR, "rope_w_extrapolation_ratio": NEAR, "rope_enable_fps_modulation": False,
    "use_adaln_lora": True, "adaln_lora_dim": 64, "extra_per_block_abs_pos_emb": False,
}
MULTIPLIER = 1000  # timesteps are this many times sigma


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
        self.draw = Draw(kwargs.get("device"), kwargs.get("dtype"), kwargs["operations"])

    def prepare_embedded_sequence(self, x: torch.Tensor, fps=None, padding_mask=None):
        """Tokens [b 1 h w d] and rotary embedding of pictures [b c 1 h w]."""
        windows = windows_of(x[:, :, 0])
        place = places(*windows.shape[-2:]).to(windows).expand(len(x), -1, -1, -1)
        tokens, *rest = super().prepare_embedded_sequence(torch.cat([windows, place], 1)[:, :, None], fps=fps)
        return tokens.to(x.dtype), *rest  # blocks add to these: under autocast too in the precision of the picture

    def unpatchify(self, tokens: torch.Tensor) -> torch.Tensor:
        """Features [b f 1 h w] of tokens [b 1 h w o], at half resolution: their windows, blended."""
        return blended(rearrange(tokens, "b 1 h w o -> b o h w"))[:, :, None]

    def _forward(self, x: torch.Tensor, timesteps: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """v [b c h w] for x = (1 - sigma) image + sigma noise, timesteps [b] = MULTIPLIER sigma."""
        def features(picture: torch.Tensor) -> torch.Tensor:
            return super(ShapesDIT, self)._forward(picture[:, :, None], timesteps, *args, **kwargs)[:, :, 0]

        return velocity(x, timesteps / MULTIPLIER, self.draw, features)
