"""EBCA Edit Context and EBCA Compose: mix further prompts into every cross-attention layer."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.model_patch import with_edits
from ..comfyui_binding.runtime.settings import Edit
from ..comfyui_binding.text.edit_conditioning import edit_context
from ..ebca_core import Window
from .shared_inputs import (
    CATEGORY,
    EditType,
    checked_mask,
    checked_window,
    end_input,
    gamma_input,
    schedule_input,
    start_input,
)

DIRECTIONS = {"add": 1, "remove": -1}


class EBCAEditContext(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAEditContext",
            display_name="EBCA Edit Context",
            category=CATEGORY,
            description="One thing to add to the picture or to take out of it, for EBCA Compose.",
            search_aliases=["energy", "compositional editing", "add concept", "remove concept", "CACAO", "style"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="The words to add or remove, as one encoded prompt: 'dog', 'brown horse', 'watercolor "
                    "painting'.",
                ),
                io.Combo.Input(
                    "direction",
                    options=list(DIRECTIONS),
                    default="add",
                    tooltip="add puts the words into the picture, remove takes them out.",
                ),
                io.Float.Input(
                    "alpha",
                    default=0.7,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly. Typical: 0.5 to 0.8 for objects, 1.1 to 1.3 for styles. The alphas of what "
                    "is removed must stay under 1 + the alphas of what is added. 0 switches the mixing off.",
                ),
                start_input(0.3, "the mixing", advice="Later keeps more of the picture's layout."),
                end_input("the mixing"),
                gamma_input(
                    "gamma_attn",
                    0.0005,
                    "Lets these words settle into the picture: step of their own context update. It adds up over "
                    "layers and steps, so it is small. Typical: 0.0001 to 0.001. 0 switches it off.",
                ),
                gamma_input(
                    "gamma_norm",
                    0.0005,
                    "Keeps single words of the edit from growing too loud. Typical: as gamma_attn. 0 switches it off.",
                ),
                start_input(0.3, "the update of these words", name="gamma_start_percent"),
                end_input("the update of these words", name="gamma_end_percent"),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="The edit holds where the mask is white. Pixels outside can still change a little; use the "
                    "latent's noise mask as well if they must not.",
                ),
                schedule_input("alpha_schedule", "alpha"),
                schedule_input("gamma_schedule", "both gammas of these words"),
            ],
            outputs=[EditType.Output(display_name="edit", tooltip="For an edit socket of EBCA Compose.")],
        )

    @classmethod
    def execute(
        cls,
        conditioning,
        direction,
        alpha,
        start_percent,
        end_percent,
        gamma_attn,
        gamma_norm,
        gamma_start_percent,
        gamma_end_percent,
        mask=None,
        alpha_schedule=None,
        gamma_schedule=None,
    ) -> io.NodeOutput:
        edit = Edit(
            edit_context(conditioning),
            DIRECTIONS[direction],
            alpha,
            checked_window(start_percent, end_percent) if alpha else Window(),
            gamma_attn,
            gamma_norm,
            checked_window(gamma_start_percent, gamma_end_percent, "gamma_") if gamma_attn or gamma_norm else Window(),
            checked_mask(mask),
            alpha_schedule,
            gamma_schedule,
        )
        return io.NodeOutput(edit)


class EBCACompose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        edits = io.Autogrow.TemplatePrefix(
            input=EditType.Input("edit", tooltip="From EBCA Edit Context."), prefix="edit", min=1, max=50
        )
        return io.Schema(
            node_id="EBCACompose",
            display_name="EBCA Compose",
            category=CATEGORY,
            description="Adds things to the picture and removes others while it is sampled: every cross-attention "
            "layer answers with a linear combination of the prompt and the edits. A further edit costs an attention "
            "call per layer, not another pass of the model.",
            search_aliases=["energy", "compositional editing", "CACAO", "edit", "composable", "style mixing"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="SD 1.x, SD 2.x, SDXL, SSD-1B, Segmind Vega or KOALA. Compose nodes one after the other "
                    "make one list of edits.",
                ),
                io.Autogrow.Input("edits", template=edits),
            ],
            outputs=[io.Model.Output(tooltip="The model with the edits composed in.")],
        )

    @classmethod
    def execute(cls, model, edits) -> io.NodeOutput:
        wired = [edit for edit in edits.values() if edit is not None]
        if not wired:
            raise ValueError("Expected at least one edit, but none is wired. Connect an EBCA Edit Context to edit0.")
        return io.NodeOutput(with_edits(model, wired))


NODES = [EBCAEditContext, EBCACompose]
