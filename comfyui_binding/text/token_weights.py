"""Weights of words of a prompt -> one weight per token of its conditioning (paper, section 4)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .strengths import parse_number
from .tokenized_prompt import (
    Token,
    TokenizedPrompt,
    chunk_length,
    columns_of_encoders,
    encode,
    find,
    is_adapted,
    occurrences,
    tokenize_phrase,
    tokenize_prompt,
    words,
)

if TYPE_CHECKING:
    from comfy.sd import CLIP

#: The authors use 2.5. Far larger weights would overflow half precision.
MAX_WEIGHT = 1000.0


#: Between the parts of a prompt that some packs encode one by one.
PART_SEPARATOR = "BREAK"
#: How far an encoded piece may be from its copy in a conditioning, by its norm: as in `matches_fingerprint`.
SAME_PIECE = 0.01


@dataclass(frozen=True, eq=False)
class Piece:
    """One chunk of a prompt as the text encoders take it: its weights [t], and what they make of it, [t * r, c].

    r is 1, or 2 where the encoder gives a key and a value for each token. encoders: the columns of each encoder's
    output, which lie side by side.
    """

    values: Tensor
    encoded: Tensor
    encoders: Sequence[slice] = (slice(None),)
    #: Whether the tokens with the weights are others than those that were encoded.
    is_adapted: bool = False

    def is_in(self, text: Tensor) -> bool:
        """Whether text [t * r, c] is this piece. Of two encoders one is enough: each may have a text of its own."""
        if text.shape != self.encoded.shape:
            return False
        text, encoded = text.float().cpu(), self.encoded
        return any(
            bool((text[:, columns] - encoded[:, columns]).norm() <= SAME_PIECE * encoded[:, columns].norm())
            for columns in self.encoders
        )


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """values [t], float32: a weight for each token of a prompt's conditioning, 1 by default.

    t counts all tokens that ComfyUI encodes, start, end and padding included: 77 for each chunk of the prompt.
    pieces: the chunks of the prompt that have weights, by which it is known again; None: only its length is known.
    """

    values: Tensor
    pieces: Sequence[Piece] | None = None

    def laid_on(self, text: Tensor) -> Tensor | None:
        """The weights [b, t] of a conditioning's text [b, t * r, c]: those of the pieces in it, and 1 elsewhere.

        None where no piece is in it. A prompt may be one part of several that ComfyUI has joined.
        """
        rows = [self._laid_on_row(row) for row in text] if self.pieces else []
        if all(row is None for row in rows):
            return None
        length = next(len(row) for row in rows if row is not None)
        return torch.stack([torch.ones(length) if row is None else row for row in rows])

    def _laid_on_row(self, text: Tensor) -> Tensor | None:
        if self.pieces[0].is_adapted:
            return self.pieces[0].values if self.pieces[0].is_in(text) else None
        size = self.pieces[0].encoded.shape[0]
        parts = text.split(size)
        found = [next((piece for piece in self.pieces if piece.is_in(part)), None) for part in parts]
        if all(piece is None for piece in found):
            return None
        per_token = size // len(self.pieces[0].values)
        return torch.cat([
            torch.ones(len(part) // per_token) if piece is None else piece.values
            for part, piece in zip(parts, found, strict=True)
        ])


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
    phrases = [tokenize_phrase(clip, line.phrase) for line in lines]
    by_encoder = [[phrase[index] for phrase in phrases] for index in range(len(tokenized))]
    values = [weigh_tokens(prompt, lines, tokens) for prompt, tokens in zip(tokenized, by_encoder, strict=True)]
    # SDXL concatenates its encoders' outputs along the width, up to the length of the shorter one.
    length = min(prompt.length for prompt in tokenized)
    if any(not torch.equal(v[:length], values[0][:length]) for v in values):
        raise ValueError(
            "The weighted words are at different positions in the two text encoders: "
            f"{' and '.join(str(v.ne(1).nonzero().flatten().tolist()) for v in values)}. Remove embeddings that belong "
            "to another model, or move them to the end of the prompt."
        )
    pieces = [
        piece
        for part, weights in [(text, values[0][:length]), *_parts(clip, text, lines, by_encoder[0])]
        for piece in _pieces(clip, part, weights, tokenized[0].encoded if part is text else None)
        if bool((piece.values != 1).any())
    ]
    return TokenWeights(values[0][:length], pieces), token_table(tokenized[0], values[0][:length])


def _parts(clip: CLIP, text: str, lines: list[Line], phrases: list[list[Token]]) -> Iterator[tuple[str, Tensor]]:
    """The parts between PART_SEPARATOR and their weights, for packs that encode each part by itself."""
    parts = re.split(rf"\b{PART_SEPARATOR}\b", text)
    for part in parts if len(parts) > 1 else ():
        prompt = tokenize_prompt(clip, part)[0]
        there = [pair for pair in zip(lines, phrases, strict=True) if find(prompt, pair[1])]
        yield part, weigh_tokens(prompt, [line for line, _ in there], [phrase for _, phrase in there])


def _pieces(clip: CLIP, text: str, values: Tensor, encoded: Tensor | None) -> Iterator[Piece]:
    """The chunks of a prompt with its weights [t]; encoded: the text [b, t, c] of its conditioning, if it is there."""
    encoded = (encode(clip, text) if encoded is None else encoded)[0].detach().float().cpu()
    if is_adapted(clip, text):
        yield Piece(values, encoded, is_adapted=True)
        return
    chunk, per_token = chunk_length(clip, text), max(1, len(encoded) // len(values))
    encoders = columns_of_encoders(clip, encoded.shape[1])
    for start in range(0, len(values), chunk):
        rows = slice(start * per_token, (start + chunk) * per_token)
        yield Piece(values[start : start + chunk], encoded[rows], encoders)


def parse_lines(weights: str) -> list[Line]:
    """The lines `phrase = weight`; blank ones are skipped. Raises ValueError for a malformed line."""
    return [_parse_line(line.strip()) for line in weights.splitlines() if line.strip()]


def _parse_line(line: str) -> Line:
    phrase, equals, number = (part.strip() for part in line.rpartition("="))
    if not equals or not phrase:
        raise ValueError(f"The line `{line}` in weights has no word or no weight. Write it as `shirt = 2.5`.")
    weight = parse_number(number, MAX_WEIGHT)
    if weight is None:
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
