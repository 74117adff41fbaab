"""The "shapes" model family, made of ComfyUI's own classes.

- U-Net: ComfyUI's UNetModel. It folds FOLD x FOLD pixels into channels on the way in and unfolds on the way out.
- Latent: the image itself, three channels in -1..1; core's pixel-space VAE turns it into an image and back.
- Text encoder: a narrow CLIP text model behind the SD 1.x tokenizer. The checkpoint holds the embeddings of a few
  words; the rows of all other tokens come from a seed, so any prompt runs.
- v-prediction, with more noise at the start than SD 1.x has: plain grounds shine through less.
"""
from __future__ import annotations

from types import SimpleNamespace

import comfy.latent_formats
import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_sampling
import comfy.ops
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from einops import rearrange
from torch.nn.functional import avg_pool2d, interpolate

FOLD = 2  # the U-Net works at half resolution, where this many pixels by as many are one position
PATCH = 2 * FOLD  # pixels of the image, each way, for one position of the U-Net
CONTEXT = 128  # width of the text context
TOKENS = 49408  # rows of the CLIP tokenizer's vocabulary
TEXT = {
    "hidden_size": CONTEXT, "intermediate_size": 4 * CONTEXT, "num_attention_heads": 4, "num_hidden_layers": 2,
    "projection_dim": CONTEXT,
}
WORD_IDS, WORD_ROWS = "words.ids", "words.rows"  # checkpoint keys, below the text encoder's prefix
NOISE = {"linear_start": 0.00085, "linear_end": 0.024}
SIGMAS = comfy.model_sampling.ModelSamplingDiscrete(SimpleNamespace(sampling_settings=NOISE)).sigmas
TABLE = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
PROJECTION = "clip_l.transformer.text_projection.weight"


def half_noise(sigma: torch.Tensor) -> torch.Tensor:
    """Noise at half resolution, never below 0.15: there the image itself changes by the way down and up."""
    return (sigma ** 2 / 4 + 0.15 ** 2).sqrt()


class ShapesUNet(UNetModel):
    """UNetModel on folded pixels; hooks, controls and wrappers see an ordinary U-Net that predicts v.

    Pictures of this world have soft edges and lose little at half resolution, so its layers work there, where noise is
    half as strong. What they predict and what passes them by are weighed by the noise, as in Karras et al. (2022).
    """

    def __init__(self, *args, device=None, **kwargs):
        super().__init__(*args, device=device, **kwargs)
        self.register_buffer("sigmas", SIGMAS.to(device, copy=True), persistent=False)

    def _forward(self, x: torch.Tensor, timesteps: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """v [b c h w] for noisy x = (image + sigma * noise) / sqrt(1 + sigma^2) of any size, timesteps [b]."""
        sigma = self.sigmas[timesteps.long()].view(-1, 1, 1, 1).to(x.dtype)
        spread, half_spread = (1 + sigma ** 2).sqrt(), (1 + half_noise(sigma) ** 2).sqrt()
        half = comfy.ldm.common_dit.pad_to_patch_size(x, (PATCH, PATCH), padding_mode="replicate")
        half = avg_pool2d(half, 2) * (spread / half_spread)
        folded = rearrange(half, "b c (h i) (w j) -> b (c i j) h w", i=FOLD, j=FOLD)
        change = super()._forward(folded, timesteps, *args, **kwargs)
        change = rearrange(change, "b (c i j) h w -> b c (h i) (w j)", i=FOLD, j=FOLD)
        image = (half + half_noise(sigma) * change) / half_spread
        image = interpolate(image, scale_factor=2.0, mode="bicubic")[..., :x.shape[-2], :x.shape[-1]]
        return (x - image * spread) / sigma


class ShapesLatent(comfy.latent_formats.LatentFormat):
    """The image as latent. The ratio 8 makes an empty latent of 512 x 512 the model's own 64 x 64."""

    latent_channels = 3
    spacial_downscale_ratio = 8
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class ShapesText(comfy.sd1_clip.SDClipModel):
    """CLIP's text model; the context of padding is zero, so that a short caption is not drowned by it."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, return_projected_pooled=False, zero_out_masked=True,
                         model_options={**model_options, "clip_l_model_config": TEXT})  # fmt: skip


class ShapesClip(comfy.sd1_clip.SD1ClipModel):
    """SD 1.x's text encoder with the narrow TEXT configuration."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=ShapesText)


def random_table() -> torch.Tensor:
    """Token embeddings [TOKENS, CONTEXT] before training; tokens that are no word of the grammar keep theirs."""
    return torch.randn(TOKENS, CONTEXT, generator=torch.Generator().manual_seed(0))


class Shapes(comfy.supported_models_base.BASE):
    """Recognised by its folded channels and the width of its context."""

    unet_config = {"in_channels": 3 * FOLD * FOLD, "out_channels": 3 * FOLD * FOLD, "context_dim": CONTEXT}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    sampling_settings = NOISE
    latent_format = ShapesLatent
    supported_inference_dtypes = [torch.float32]
    memory_usage_factor = 0.5

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(
            self, model_type=comfy.model_base.ModelType.V_PREDICTION, device=device, unet_model=ShapesUNet)

    def clip_target(self, state_dict={}):
        return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, ShapesClip)

    def process_unet_state_dict(self, state_dict):
        return {key: value.float() for key, value in state_dict.items()}

    def process_clip_state_dict(self, state_dict):
        """Fills in what the checkpoint leaves out: most of the embedding table, and a projection without use here."""
        state_dict = {key: value.float() for key, value in super().process_clip_state_dict(state_dict).items()}
        state_dict.setdefault(PROJECTION, torch.eye(CONTEXT))
        if WORD_IDS in state_dict:
            table = random_table()
            table[state_dict.pop(WORD_IDS).long()] = state_dict.pop(WORD_ROWS)
            state_dict[TABLE] = table
        return state_dict

    def process_vae_state_dict(self, state_dict):
        return {"pixel_space_vae": torch.tensor(1.0)}


def register() -> None:
    """Adds the family to those that ComfyUI's loaders recognise; twice does no harm."""
    if not any(family.__name__ == Shapes.__name__ for family in comfy.supported_models.models):
        comfy.supported_models.models.append(Shapes)
