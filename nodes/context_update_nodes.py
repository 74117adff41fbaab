"""EBCA Context Update: move the prompt's own context, layer by layer."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.architectures.unet import parse_blocks, unet_of
from ..comfyui_binding.model_patch import with_update
from ..comfyui_binding.runtime.settings import ContextUpdate
from ..ebca_core import Window
from .shared_inputs import (
    CATEGORY,
    TokenWeightsType,
    checked_mask,
    checked_window,
    end_input,
    gamma_input,
    schedule_input,
    start_input,
)


class EBCAContextUpdate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAContextUpdate",
            display_name="EBCA Context Update",
            category=CATEGORY,
            description="Moves the prompt a little towards what the image has so far, in each cross-attention layer, "
            "and hands it to the next one, so that the picture can follow the prompt more closely. No training, any "
            "sampler.",
            search_aliases=["energy", "bayesian context update", "prompt adherence", "multi concept", "BCU"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD 1.x, SD 2.x, SDXL, SSD-1B, Segmind Vega or KOALA. LoRAs and other patches may come "
                    "before or after this node.",
                ),
                gamma_input(
                    "gamma_attn",
                    0.01,
                    "Step towards what the image attends to. Typical: 0.005 to 0.025 for SD 1.5; try "
                    "0.0025 for SDXL, which has 70 layers instead of 16. 0 switches this term off.",
                ),
                gamma_input(
                    "gamma_norm",
                    0.02,
                    "Step that keeps single words from growing too loud. Typical: one to two times gamma_attn. 0 "
                    "switches this term off.",
                ),
                start_input(0.0, "the update"),
                end_input("the update"),
                TokenWeightsType.Input(
                    "token_weights",
                    optional=True,
                    tooltip="From EBCA Token Weights: how much each word of the positive prompt takes part in the "
                    "attention term.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Only this region of the image speaks in the attention term. For inpainting: the mask of "
                    "what is painted.",
                ),
                io.Combo.Input(
                    "apply_to",
                    options=["both", "positive"],
                    default="both",
                    optional=True,
                    advanced=True,
                    tooltip="both: positive and negative prompt are updated, as in the paper. positive: the negative "
                    "prompt stays as written.",
                ),
                io.String.Input(
                    "blocks",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Layers that compute the update; empty for all. d1-d2,m0,u0-u3: blocks with attention, "
                    "counted from 0, on the way down, in the middle, up. u0.4: the fifth layer in u0 (SDXL).",
                ),
                io.Boolean.Input(
                    "use_noise_mask",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Where no mask is wired: take the noise mask of the latent, the region that is painted.",
                ),
                schedule_input("schedule", "both gammas"),
            ],
            outputs=[io.Model.Output(tooltip="The model with the context update.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        gamma_attn,
        gamma_norm,
        start_percent,
        end_percent,
        token_weights=None,
        mask=None,
        apply_to="both",
        blocks="",
        use_noise_mask=False,
        schedule=None,
    ) -> io.NodeOutput:
        update = ContextUpdate(
            gamma_attn,
            gamma_norm,
            checked_window(start_percent, end_percent) if gamma_attn or gamma_norm else Window(),
            token_weights,
            checked_mask(mask),
            use_noise_mask,
            positive_only=apply_to == "positive",
            layers=parse_blocks(unet_of(model), blocks),
            schedule=schedule,
        )
        return io.NodeOutput(with_update(model, update))


NODES = [EBCAContextUpdate]
