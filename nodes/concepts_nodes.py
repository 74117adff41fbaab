"""EBCA Concepts: adds each concept of a prompt to the image as a separate edit, in one node."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.model_patch import with_edits
from ..comfyui_binding.node_messages import show_on_node
from ..comfyui_binding.runtime.settings import Edit
from ..comfyui_binding.text.concepts import Concept, concepts_of, describe, on_one_line, shared_strength
from ..comfyui_binding.text.edit_conditioning import encode_prompt
from ..ebca_core import Schedule, Window
from .input_validation import first_error
from .shared_inputs import CLIP_TOOLTIP, MODEL_TOOLTIP, PROMPT, concept_inputs, own_id, schedule_input

ALIASES = """EBCA, concept, several concepts, multi concept, missing object, attribute bleeding, concept bleeding,
attend and excite, composable diffusion, prompt adherence, cross attention""".replace("\n", " ").split(", ")


class EBCAConcepts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCAConcepts",
            display_name="EBCA Concepts",
            category=PROMPT,
            description="For prompts with several concepts. Each concept is also added to the image as a separate "
            "edit, and the empty prompt is removed, in the first part of sampling, up to end_percent. Connect the "
            "model to the sampler, and positive to its positive prompt.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip=MODEL_TOOLTIP),
                io.Clip.Input("clip", tooltip=CLIP_TOOLTIP),
                *concept_inputs(),
                io.Float.Input(
                    "strength",
                    default=0.1,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="The alpha with which each concept is added. With more than three concepts, each gets 3 x "
                    "strength / their number. Typical: 0.05 to 0.15. 0 disables the node.",
                ),
                io.Float.Input(
                    "empty_prompt",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="The alpha with which the empty prompt is removed, which suppresses objects that nobody "
                    "asked for. Typical: 0.1 to 0.2. 0 disables the removal.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    advanced=True,
                    tooltip="End of the composition: 0 is pure noise, 1 the finished image, as in ComfyUI's timestep "
                    "ranges. The layout forms in the first half.",
                ),
                schedule_input("schedule", "all strengths"),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with one edit per concept."),
                io.Conditioning.Output(display_name="positive", tooltip="The whole prompt, encoded."),
                io.String.Output(display_name="found", tooltip="The concepts and their strengths, as a table."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, prompt=None, concepts=None, strength=None, empty_prompt=None, end_percent=None):
        values = dict(
            prompt=prompt, concepts=concepts, strength=strength, empty_prompt=empty_prompt, end_percent=end_percent
        )
        return first_error(cls, values, (_needed_concepts, "prompt", "concepts", "strength", "end_percent"))

    @classmethod
    def execute(
        cls,
        model,
        clip,
        prompt: str,
        concepts: str,
        strength: float,
        empty_prompt: float,
        end_percent: float,
        schedule: Schedule | None = None,
    ) -> io.NodeOutput:
        positive = encode_prompt(clip, prompt)
        listed = _needed_concepts(prompt, concepts, strength, end_percent)
        shared = shared_strength(strength, len(listed))
        strengths = {one.text: one.strength_or(shared) for one in listed}
        if not any(strengths.values()):
            show_on_node(own_id(cls), OFF)
            return io.NodeOutput(model, positive, OFF)
        window = Window(0.0, end_percent)

        def edit(text: str, direction: int, alpha: float) -> Edit:
            context = encode_prompt(clip, text)
            if len(context) > 1:
                raise ValueError(SCHEDULED)
            return Edit(context, direction, alpha, window, 0.0, 0.0, Window(), alpha_schedule=schedule)

        edits = [edit(text, 1, alpha) for text, alpha in strengths.items()]
        model = with_edits(model, [*edits, edit("", -1, empty_prompt)])
        found = describe(listed, shared)
        show_on_node(own_id(cls), on_one_line(listed, shared))
        return io.NodeOutput(model, positive, found)


#: The text on a node that does nothing.
OFF = "off: every strength is 0, or end_percent is 0"
SCHEDULED = (
    "clip encodes a prompt once for each of several parts of the run (Set CLIP Hooks with a schedule), which concepts "
    "do not follow. Connect the CLIP from before that node."
)


def _needed_concepts(prompt: str, concepts: str, strength: float, end_percent: float) -> list[Concept]:
    """The concepts; none where the node is off, so that nothing is asked about a prompt that need not be split."""
    if end_percent == 0 or (strength == 0 and not concepts.strip()):
        return []
    return concepts_of(prompt, concepts)


NODES = [EBCAConcepts]
