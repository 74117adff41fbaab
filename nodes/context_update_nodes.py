"""EBCA Context Update: the text context is updated layer by layer."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.architectures.layer_selection import block_items, parse_blocks
from ..comfyui_binding.architectures.registry import layer_names
from ..comfyui_binding.model_patch import with_update
from ..comfyui_binding.node_messages import show_on_node
from ..comfyui_binding.runtime.settings import ContextUpdate
from .input_validation import first_error
from .shared_inputs import (
    MODEL_TOOLTIP,
    PROMPT,
    TokenWeightsType,
    blocks_input,
    end_input,
    gamma_input,
    own_id,
    schedule_input,
    start_input,
    validated_mask,
    validated_window,
)

ALIASES = """EBCA, energy, bayesian context update, BCU, prompt adherence, multi concept, attribute bleeding, cross
attention""".replace("\n", " ").split(", ")


class EBCAContextUpdate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAContextUpdate",
            display_name="EBCA Context Update",
            category=PROMPT,
            description="Updates the text embedding in every cross-attention layer by one gradient step towards the "
            "image features that attend to it; the next layer uses the updated embedding. Needs no training and works "
            "with any sampler.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=f"{MODEL_TOOLTIP} LoRAs and other model patches can be applied before or after this node.",
                ),
                gamma_input(
                    "gamma_attn",
                    0.01,
                    "Step size of the attention term: moves each token towards the image features that attend to it. "
                    "Typical: 0.005 to 0.025 for SD 1.5; try 0.0025 for SDXL, which has 70 layers instead of 16. 0 "
                    "disables the term.",
                ),
                gamma_input(
                    "gamma_norm",
                    0.02,
                    "Step size of the norm term: keeps any single token from dominating the attention. Typical: one "
                    "to two times gamma_attn. 0 disables the term.",
                ),
                start_input(0.0, "the update"),
                end_input(1.0, "the update"),
                TokenWeightsType.Input(
                    "token_weights",
                    optional=True,
                    tooltip="From EBCA Token Weights: the weight of each token of the positive prompt in the attention "
                    "term.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Limits the attention term to image tokens inside the mask. For inpainting, use the "
                    "inpaint mask.",
                ),
                io.Combo.Input(
                    "apply_to",
                    options=["both", "positive"],
                    default="both",
                    optional=True,
                    advanced=True,
                    tooltip="both: the positive and the negative prompt are updated, as in the paper. positive: the "
                    "negative prompt is left unchanged.",
                ),
                blocks_input("Layers that compute the update"),
                io.Boolean.Input(
                    "use_noise_mask",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="If no mask is connected, use the noise mask of the latent, which marks the region to "
                    "inpaint.",
                ),
                schedule_input("schedule", "both gammas"),
            ],
            outputs=[io.Model.Output(tooltip="The model with the context update.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, gamma_attn=None, gamma_norm=None, start_percent=None, end_percent=None, blocks=None):
        values = dict(
            gamma_attn=gamma_attn,
            gamma_norm=gamma_norm,
            start_percent=start_percent,
            end_percent=end_percent,
            blocks=blocks,
        )
        window = (validated_window, "start_percent", "end_percent", "gamma_attn", "gamma_norm")
        return first_error(cls, values, window, (block_items, "blocks"))

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
            validated_window(start_percent, end_percent, gamma_attn, gamma_norm),
            token_weights,
            validated_mask(mask),
            use_noise_mask,
            positive_only=apply_to == "positive",
            layers=parse_blocks(layer_names(model), blocks),
            schedule=schedule,
            node_id=own_id(cls),
        )
        if update.is_off:
            show_on_node(update.node_id, "off: both gammas are 0, or their schedule is 0")
        return io.NodeOutput(with_update(model, update))


NODES = [EBCAContextUpdate]
