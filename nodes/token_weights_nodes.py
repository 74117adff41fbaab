"""EBCATokenWeights: weights for words of the prompt."""

from __future__ import annotations

from comfy_api.latest import io

from ..comfyui_binding.text.token_weights import weigh_words
from .shared_inputs import CATEGORY, TokenWeightsType, prompt_inputs


class EBCATokenWeights(io.ComfyNode):
    """Turns lines like `shirt = 2.5` into one weight per token of the prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EBCATokenWeights",
            display_name="EBCA Token Weights",
            category=CATEGORY,
            description=(
                "Lets EBCA Context Update pull harder on some words of the prompt than on others. "
                "The second output shows which tokens were found; wire it to Preview as Text."
            ),
            search_aliases=["energy based cross attention", "word weights", "token weights", "emphasis"],
            inputs=[
                *prompt_inputs(),
                io.String.Input(
                    "weights",
                    multiline=True,
                    default="",
                    placeholder="shirt = 2.5",
                    tooltip=(
                        "One word or phrase a line, as it is in the prompt: shirt = 2.5. Every occurrence counts. "
                        "1 changes nothing, 0 takes the word out of the attention term; the paper's example has 2.5. "
                        "Empty: all weights are 1."
                    ),
                ),
            ],
            outputs=[
                TokenWeightsType.Output(
                    display_name="token_weights", tooltip="For the token_weights input of EBCA Context Update."
                ),
                io.String.Output(
                    display_name="description", tooltip="The prompt's tokens with their positions and weights."
                ),
            ],
        )

    @classmethod
    def execute(cls, clip, text: str, weights: str) -> io.NodeOutput:
        return io.NodeOutput(*weigh_words(clip, text, weights))


NODES = [EBCATokenWeights]
