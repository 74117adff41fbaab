"""The "shapes" model family, made of ComfyUI's own classes: three denoisers that read the same text.

- Denoiser: a U-Net with v-prediction (unet.py), or a transformer with flow matching whose attention to the text is
  cross-attention (transformer.py) or joint attention (joint.py). The checkpoint's keys tell which one it holds.
- Latent: the image itself, three channels in -1..1; core's pixel-space VAE turns it into an image and back.
- Text encoder: a narrow CLIP text model behind the SD 1.x tokenizer. The checkpoint holds the embeddings of a few
  words; the rows of all other tokens come from a seed, so any prompt runs.

The family of the things model shares the text encoder; its U-Net sees the latents of a VAE in its checkpoint.
"""
from __future__ import annotations

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from . import joint, transformer, unet

CONTEXT = 128  # width of the text context
TEXT_TOKENS = 28  # of a text in joint attention, at least
TOKENS = 49408  # rows of the CLIP tokenizer's vocabulary
TEXT = {
    "hidden_size": CONTEXT, "intermediate_size": 4 * CONTEXT, "num_attention_heads": 4, "num_hidden_layers": 2,
    "projection_dim": CONTEXT,
}
WORD_IDS, WORD_ROWS = "words.ids", "words.rows"  # checkpoint keys, below the text encoder's prefix
TABLE = "clip_l.transformer.text_model.embeddings.token_embedding.weight"
PROJECTION = "clip_l.transformer.text_projection.weight"


class ShapesLatent(comfy.latent_formats.LatentFormat):
    """The image as latent. The ratio 8 makes an empty latent of 512 x 512 the model's own 64 x 64."""

    latent_channels = 3
    spacial_downscale_ratio = 8
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class ThingsLatent(comfy.latent_formats.LatentFormat):
    """What the checkpoint's own VAE, of the TAESD classes, makes of 8 x 8 pixels; its mean is 0, its deviation 1."""

    latent_channels = 8


class ShapesText(comfy.sd1_clip.SDClipModel):
    """CLIP's text model; the context of padding is zero, so that a short caption is not drowned by it."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, return_projected_pooled=False, zero_out_masked=True,
                         model_options={**model_options, "clip_l_model_config": TEXT})  # fmt: skip


class ShapesClip(comfy.sd1_clip.SD1ClipModel):
    """SD 1.x's text encoder with the narrow TEXT configuration."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=ShapesText)


class ShortClip(ShapesClip):
    """The same text encoder with less padding: joint attention attends to all that it gets, and was trained on this."""

    def encode_token_weights(self, token_weight_pairs):
        text, *rest = super().encode_token_weights(token_weight_pairs)
        words = int(text.abs().amax((0, 2)).nonzero().max()) + 1
        return text[:, :max(TEXT_TOKENS, words)], *rest


def random_table() -> torch.Tensor:
    """Token embeddings [TOKENS, CONTEXT] before training; tokens that are no word of the grammar keep theirs."""
    return torch.randn(TOKENS, CONTEXT, generator=torch.Generator().manual_seed(0))


class ShapesFlow(comfy.model_base.BaseModel):
    """The transformer in a MODEL. As in ComfyUI's own transformers, texts of unequal length are never repeated."""

    def extra_conds(self, **kwargs):
        text = kwargs.get("cross_attn")
        return super().extra_conds(**kwargs) | ({} if text is None else {"c_crossattn": comfy.conds.CONDRegular(text)})


class Shapes(comfy.supported_models_base.BASE):
    """The U-Net, recognised by its folded channels and the width of its context."""

    unet_config = {"in_channels": 3 * unet.FOLD ** 2, "out_channels": 3 * unet.FOLD ** 2, "context_dim": CONTEXT}
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    sampling_settings = unet.NOISE
    latent_format = ShapesLatent
    supported_inference_dtypes = [torch.float32]
    memory_usage_factor = 0.5
    prediction = comfy.model_base.ModelType.V_PREDICTION
    network, model, text = unet.ShapesUNet, comfy.model_base.BaseModel, ShapesClip

    def get_model(self, state_dict, prefix="", device=None):
        return self.model(self, model_type=self.prediction, device=device, unet_model=self.network)

    def clip_target(self, state_dict={}):
        return comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, self.text)

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


class ShapesTransformer(Shapes):
    """The transformer, recognised by its class and the width of its embedding as ComfyUI reads it off the weights."""

    unet_config = {"image_model": "cosmos_predict2", "in_channels": transformer.CONFIG["in_channels"] // 4 - 1}
    unet_extra_config = transformer.CONFIG
    sampling_settings = {"shift": 3.0, "multiplier": transformer.MULTIPLIER}
    prediction = comfy.model_base.ModelType.FLOW
    network, model = transformer.ShapesDIT, ShapesFlow


class ShapesJoint(ShapesTransformer):
    """The joint-attention transformer, recognised by its class and its narrow text."""

    unet_config = {"image_model": "flux", "context_in_dim": CONTEXT, "hidden_size": joint.CONFIG["hidden_size"]}
    unet_extra_config = joint.CONFIG
    sampling_settings = {"shift": 3.0, "multiplier": joint.MULTIPLIER}
    network, text = joint.ShapesFlux, ShortClip


class Things(Shapes):
    """The U-Net of emoji drawings: UNetModel itself, on latents."""

    unet_config = {"in_channels": ThingsLatent.latent_channels, "out_channels": ThingsLatent.latent_channels,
                   "context_dim": CONTEXT}
    latent_format = ThingsLatent
    network = UNetModel

    def process_vae_state_dict(self, state_dict):
        return state_dict


def register() -> None:
    """Adds the families to those that ComfyUI's loaders recognise; twice does no harm."""
    known = {family.__name__ for family in comfy.supported_models.models}
    ours = [f for f in (Shapes, ShapesTransformer, ShapesJoint, Things) if f.__name__ not in known]
    comfy.supported_models.models[:0] = ours  # first: a wide Flux may be any other network of its class
