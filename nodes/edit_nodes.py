"""EBCA Edit Context and EBCA Compose: compose further prompts in every cross-attention layer."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from comfy_api.latest import io

from ..comfyui_binding.architectures.layer_selection import block_items, parse_blocks
from ..comfyui_binding.architectures.registry import layer_names
from ..comfyui_binding.model_patch import with_edits
from ..comfyui_binding.runtime.settings import Composition, Edit
from ..comfyui_binding.text.edit_conditioning import checked_conditioning, encode_prompt
from .input_validation import first_error
from .shared_inputs import (
    CLIP_TOOLTIP,
    EDIT,
    MODEL_TOOLTIP,
    EditType,
    blocks_input,
    end_input,
    gamma_input,
    schedule_input,
    start_input,
    validated_mask,
    validated_window,
)

ALIASES = """EBCA, concept, add concept, remove concept, missing object, compositional editing, image editing, CACAO,
style, cross attention""".replace("\n", " ").split(", ")
DIRECTIONS = {"add": 1, "remove": -1}

validated_gamma_window = partial(validated_window, prefix="gamma_")


class EBCAEditContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAEditContext",
            display_name="EBCA Edit Context",
            category=EDIT,
            description="A prompt to add to the image or to remove from it, for EBCA Compose. Connect an encoded "
            "prompt to conditioning, or a CLIP to clip and write the prompt in text.",
            search_aliases=ALIASES,
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="The prompt to add or remove, encoded, for example 'dog', 'brown horse' or 'watercolor "
                    "painting'.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="add",
                    tooltip="add: the prompt is added, with the weight +alpha. remove: it is removed, with the weight "
                    "-alpha.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.7,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="Strength of the edit. Typical: 0.5 to 0.8 for objects, 1.1 to 1.3 for styles. The sum of "
                    "the alphas that remove must be less than 1 + the sum of those that add. 0 disables the "
                    "composition.",
                ),
                start_input(0.3, "the composition", advice="A later start keeps more of the layout."),
                end_input(1.0, "the composition"),
                gamma_input(
                    "gamma_attn",
                    0.0005,
                    "Step size of the attention term of the edit's own context update. The change accumulates over "
                    "layers and steps, so keep it small. Typical: 0.0001 to 0.001. 0 disables the term.",
                    advanced=True,
                ),
                gamma_input(
                    "gamma_norm",
                    0.0005,
                    "Step size of the norm term of the edit's own context update. Typical: the same as gamma_attn. 0 "
                    "disables the term.",
                    advanced=True,
                ),
                start_input(0.3, "the edit's own context update", name="gamma_start_percent", advanced=True),
                end_input(1.0, "the edit's own context update", name="gamma_end_percent", advanced=True),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Limits the edit to the white region. Pixels outside can still change slightly; set a "
                    "noise mask on the latent as well to keep them unchanged.",
                ),
                schedule_input("alpha_schedule", "alpha"),
                schedule_input("gamma_schedule", "both gammas of the edit"),
                io.Clip.Input("clip", optional=True, tooltip=f"{CLIP_TOOLTIP} Used with text."),
                io.String.Input(
                    "text",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt to add or remove, instead of conditioning. Needs clip.",
                ),
            ],
            outputs=[EditType.Output(display_name="edit", tooltip="Connect to an edit input of EBCA Compose.")],
        )

    @classmethod
    def validate_inputs(
        cls,
        alpha=None,
        start_percent=None,
        end_percent=None,
        gamma_attn=None,
        gamma_norm=None,
        gamma_start_percent=None,
        gamma_end_percent=None,
    ):
        values = dict(
            alpha=alpha,
            start_percent=start_percent,
            end_percent=end_percent,
            gamma_attn=gamma_attn,
            gamma_norm=gamma_norm,
            gamma_start_percent=gamma_start_percent,
            gamma_end_percent=gamma_end_percent,
        )
        window = (validated_window, "start_percent", "end_percent", "alpha")
        gammas = (validated_gamma_window, "gamma_start_percent", "gamma_end_percent", "gamma_attn", "gamma_norm")
        return first_error(cls, values, window, gammas)

    @classmethod
    def execute(
        cls,
        direction,
        alpha,
        start_percent,
        end_percent,
        gamma_attn,
        gamma_norm,
        gamma_start_percent,
        gamma_end_percent,
        conditioning=None,
        mask=None,
        alpha_schedule=None,
        gamma_schedule=None,
        clip=None,
        text="",
    ) -> io.NodeOutput:
        edit = Edit(
            checked_conditioning(_one_of(conditioning, clip, text)),
            DIRECTIONS[direction],
            alpha,
            validated_window(start_percent, end_percent, alpha),
            gamma_attn,
            gamma_norm,
            validated_gamma_window(gamma_start_percent, gamma_end_percent, gamma_attn, gamma_norm),
            validated_mask(mask),
            alpha_schedule,
            gamma_schedule,
        )
        return io.NodeOutput(edit)


def _one_of(conditioning: list | None, clip, text: str) -> list:
    """The encoded prompt, or the text encoded. Raises ValueError unless one of the two is given."""
    if conditioning is not None and (clip is not None or text.strip()):
        raise ValueError(
            "The edit has two prompts, conditioning and text. Disconnect conditioning, or clip, and empty text."
        )
    if conditioning is not None:
        return conditioning
    if clip is None:
        raise ValueError(
            "The edit has no prompt. Connect a CLIP Text Encode to conditioning, or a CLIP to clip and write the "
            "prompt in text."
        )
    return encode_prompt(clip, text)


class EBCACompose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        edits = io.Autogrow.TemplatePrefix(
            input=EditType.Input("edit", tooltip="From EBCA Edit Context."), prefix="edit", min=1, max=50
        )
        return io.Schema(
            node_id="EBCACompose",
            display_name="EBCA Compose",
            category=EDIT,
            description="Adds prompts to the image and removes others while it is sampled: the output of every "
            "cross-attention layer is a linear combination of the outputs for the prompt and for the edits. Each edit "
            "costs one attention call per layer, not another pass of the model.",
            search_aliases=["energy", "compositional editing", "CACAO", "edit", "composable", "style mixing"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=f"{MODEL_TOOLTIP} Several EBCA Compose nodes in a row form one list of edits.",
                ),
                io.Autogrow.Input("edits", template=edits),
                blocks_input("Layers that mix in these edits"),
                io.Float.Input(
                    "norm_limit",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="For strong removals: how many times the norm of the prompt's own output the mixed output "
                    "of each image token may have in a layer, as tau in normalised attention guidance. Typical: 1.5 to "
                    "2.5, at least 1. 0: no limit.",
                ),
                io.Boolean.Input(
                    "mix_pooled",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Mix the edits' pooled texts into the prompt's with the same weights; they act on the "
                    "whole image. Only Flux 1, SD 3, SD 3.5 and HiDream have them. Edits with a mask are left out.",
                ),
                io.Boolean.Input(
                    "shared_attention",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="For models with joint attention (Qwen-Image, Flux): the attention of the image to itself "
                    "is computed once, not again for each edit. The result is the same up to rounding. Helps most with "
                    "several edits and large images. Its speed was not measured on a GPU.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with the edits.")],
        )

    @classmethod
    def validate_inputs(cls, edits=None, blocks=None, norm_limit=None):
        """edits: ComfyUI hands the sockets of an Autogrow input to every function of the node."""
        values = dict(blocks=blocks, norm_limit=norm_limit)
        limited = partial(Composition, None)
        return first_error(cls, values, (block_items, "blocks"), (limited, "norm_limit"))

    @classmethod
    def execute(
        cls, model, edits, blocks="", norm_limit=0.0, mix_pooled=False, shared_attention=False
    ) -> io.NodeOutput:
        connected = [edit for edit in edits.values() if edit is not None]
        if not connected:
            raise ValueError("No edit is connected. Connect an EBCA Edit Context to edit0.")
        composition = Composition(parse_blocks(layer_names(model), blocks), norm_limit, mix_pooled, shared_attention)
        return io.NodeOutput(with_edits(model, [replace(edit, composition=composition) for edit in connected]))


NODES = [EBCAEditContext, EBCACompose]
