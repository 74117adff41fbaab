"""EBCA Token Weights: weights of words of the prompt in the attention term."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.text.token_weights import parse_lines, weigh_words
from .input_validation import first_error
from .shared_inputs import PROMPT, TokenWeightsType, prompt_inputs


class EBCATokenWeights(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCATokenWeights",
            display_name="EBCA Token Weights",
            category=PROMPT,
            description="Sets the weight of single words of the prompt in the attention term of EBCA Context Update. "
            "The second output lists the tokens that were found; connect it to Preview as Text.",
            search_aliases=["energy based cross attention", "word weights", "token weights", "emphasis"],
            inputs=[
                *prompt_inputs(),
                io.String.Input(
                    "weights",
                    multiline=True,
                    default="",
                    placeholder="shirt = 2.5",
                    tooltip="One word or phrase of the prompt per line, with its weight: shirt = 2.5. It applies to "
                    "every occurrence. 1 changes nothing, 0 excludes the word from the attention term; the paper's "
                    "example has 2.5. Empty: all weights are 1.",
                ),
            ],
            outputs=[
                TokenWeightsType.Output(
                    display_name="token_weights", tooltip="Connect to token_weights of EBCA Context Update."
                ),
                io.String.Output(
                    display_name="description", tooltip="The tokens of the prompt with their positions and weights."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, weights=None):
        return first_error(cls, {"weights": weights}, (parse_lines, "weights"))

    @classmethod
    def execute(cls, clip, text: str, weights: str) -> io.NodeOutput:
        return io.NodeOutput(*weigh_words(clip, text, weights))


NODES = [EBCATokenWeights]
