"""Weights of words of a prompt -> one weight per token of its conditioning (paper, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .tokenized_prompt import Token, TokenizedPrompt, occurrences, tokenize_prompt, words

if TYPE_CHECKING:
    from comfy.sd import CLIP

#: The authors use 2.5. Far larger weights would overflow half precision.
MAX_WEIGHT = 1000.0


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """values [t], float32: a weight for each token of a prompt's conditioning, 1 by default.

    t counts all tokens that ComfyUI encodes, start, end and padding included: 77 for each chunk of the prompt.
    """

    values: Tensor


class Line(NamedTuple):
    """One line of the weights, `phrase = weight`."""

    phrase: str
    weight: float


def weigh_words(clip: CLIP, text: str, weights: str) -> tuple[TokenWeights, str]:
    """The weights of the tokens of a prompt, and a table of them for the user.

    Args:
        clip: the CLIP that encodes the prompt.
        text: the prompt.
        weights: lines `phrase = weight`, for every occurrence of the phrase. Without lines every weight is 1.

    Raises:
        ValueError: an unsupported text encoder, a malformed line, a phrase that is not in the prompt, two weights for
            one token, or text encoders with the weighted words at different positions.
    """
    lines = parse_lines(weights)
    tokenized = tokenize_prompt(clip, text)
    phrases = [tokenize_prompt(clip, line.phrase) for line in lines]
    values = [
        weigh_tokens(prompt, lines, [phrase[index].tokens for phrase in phrases])
        for index, prompt in enumerate(tokenized)
    ]
    # SDXL concatenates its encoders' outputs along the width, up to the length of the shorter one.
    length = min(prompt.length for prompt in tokenized)
    if any(not torch.equal(v[:length], values[0][:length]) for v in values):
        raise ValueError(
            "The weighted words are at different positions in the two text encoders: "
            f"{' and '.join(str(v.ne(1).nonzero().flatten().tolist()) for v in values)}. Remove embeddings that belong "
            "to another model, or move them to the end of the prompt."
        )
    return TokenWeights(values[0][:length]), token_table(tokenized[0], values[0][:length])


def parse_lines(weights: str) -> list[Line]:
    """The lines `phrase = weight`; blank ones are skipped. Raises ValueError for a malformed line."""
    return [_parse_line(line.strip()) for line in weights.splitlines() if line.strip()]


def _parse_line(line: str) -> Line:
    phrase, equals, number = (part.strip() for part in line.rpartition("="))
    if not equals or not phrase:
        raise ValueError(f"The line `{line}` in weights has no word or no weight. Write it as `shirt = 2.5`.")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:  # False for nan too
        raise ValueError(
            f"The weight of `{phrase}` is `{number}`. Set it to a number from 0 to {MAX_WEIGHT:g}, as in `shirt = "
            "2.5`; 1 changes nothing, 0 excludes the word from the attention term."
        )
    return Line(phrase, weight)


def weigh_tokens(prompt: TokenizedPrompt, lines: list[Line], phrases: list[list[Token]]) -> Tensor:
    """One weight per token [t]; phrases holds the tokens of each line's phrase."""
    values = torch.ones(prompt.length, dtype=torch.float32)
    given: dict[int, Line] = {}
    for line, phrase in zip(lines, phrases, strict=True):
        for token in occurrences(prompt, line.phrase, phrase):
            earlier = given.setdefault(token.position, line)
            if earlier.weight != line.weight:
                raise ValueError(
                    f"The token `{prompt.text([token])}` at position {token.position} has two weights: "
                    f"`{earlier.phrase} = {earlier.weight:g}` and `{line.phrase} = {line.weight:g}`. Remove one of the "
                    "two lines, or give them the same weight."
                )
            values[token.position] = line.weight
    return values


def token_table(prompt: TokenizedPrompt, values: Tensor) -> str:
    """A table of the prompt's tokens with positions and weights, and the word of tokens that are a part of one."""
    rows = [
        f"{token.position:>8}  {values[token.position]:<6g}  {prompt.text([token])}"
        + (f"  in {prompt.text(word)}" if len(word) > 1 else "")
        for word in words(prompt)
        for token in word
    ]
    unchanged = ["All weights are 1, so nothing changes."] if torch.all(values == 1) else []
    head = "position  weight  token" if rows else "The prompt is empty."
    tail = f"{len(values)} tokens in total. Start, end and padding tokens are not listed; their weight is 1."
    return "\n".join([*unchanged, head, *rows, tail])
