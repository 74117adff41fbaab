"""Words of a prompt -> one weight per token of its conditioning (paper, section 4, words that should weigh more).

The graph's own CLIP tokenizes the prompt and every phrase, so a phrase is found wherever the text encoder reads the
same tokens: prompt weights in parentheses, letter case, chunks and embeddings need no rules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from comfy.sd import CLIP

#: What the tokenizers of SD 1.x, SD 2.x and SDXL call their tokens.
SUPPORTED = ({"l"}, {"h"}, {"l", "g"})
#: The authors use 2.5. Far larger ones would overflow half precision.
MAX_WEIGHT = 1000.0
#: Ends the last piece of a word in CLIP's vocabulary.
END_OF_WORD = "</w>"


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """values [t], float32: a weight for each token of a prompt's conditioning, 1 where nothing is said.

    t counts all tokens that ComfyUI encodes, start, end and padding included: 77 for each chunk of the prompt.
    """

    values: Tensor


class Line(NamedTuple):
    """One line of the weights, `phrase = weight`."""

    phrase: str
    weight: float


class Token(NamedTuple):
    """One token of the prompt; key is its number in the vocabulary, or the values of an embedding's vector."""

    position: int
    key: int | tuple[float, ...]
    ends_word: bool


class Reading(NamedTuple):
    """What one text encoder reads: the prompt's own tokens; length counts start, end and padding tokens as well."""

    tokens: list[Token]
    length: int
    decode: Callable[[list[int]], str]

    def text(self, tokens: list[Token]) -> str:
        """The tokens of one word as text; an embedding's vectors have none of their own."""
        if any(isinstance(token.key, tuple) for token in tokens):
            return "<embedding>"
        return self.decode([token.key for token in tokens])


def weigh_words(clip: CLIP, text: str, weights: str) -> tuple[TokenWeights, str]:
    """The weights of the tokens of a prompt, and a table of them to be read.

    Args:
        clip: the CLIP that encodes the prompt.
        text: the prompt.
        weights: lines `phrase = weight`. Every occurrence of a phrase counts. Without lines every weight is 1.

    Raises:
        ValueError: a text encoder of another family, a line that cannot be read, a phrase that is not in the prompt,
            two weights for one token, or text encoders that read the weighted words at different positions.
    """
    lines = parse_lines(weights)
    readings = read(clip, text)
    phrases = [read(clip, line.phrase) for line in lines]
    values = [
        weigh_tokens(reading, lines, [phrase[index].tokens for phrase in phrases])
        for index, reading in enumerate(readings)
    ]
    # SDXL's encoders stand side by side in the conditioning, which is as long as the shorter of them.
    length = min(reading.length for reading in readings)
    if any(not torch.equal(v[:length], values[0][:length]) for v in values):
        raise ValueError(
            "Expected both text encoders to read the weighted words at the same positions, but they are at "
            f"{' and at '.join(str(v.ne(1).nonzero().flatten().tolist()) for v in values)}. Take out the embeddings "
            "that were made for another model, or move them to the end of the prompt."
        )
    return TokenWeights(values[0][:length]), describe(readings[0], values[0][:length])


def parse_lines(weights: str) -> list[Line]:
    """The lines `phrase = weight`; blank ones are skipped. Raises ValueError for a line that cannot be read."""
    return [_parse_line(line.strip()) for line in weights.splitlines() if line.strip()]


def _parse_line(line: str) -> Line:
    phrase, equals, number = (part.strip() for part in line.rpartition("="))
    if not equals or not phrase:
        raise ValueError(f"Expected a line of the form `word = weight`, such as `shirt = 2.5`, but got `{line}`.")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= MAX_WEIGHT:  # False for nan too
        raise ValueError(
            f"Expected a number from 0 to {MAX_WEIGHT:g} as the weight of `{phrase}`, but got `{number}`. "
            "Write it as in `shirt = 2.5`; 1 changes nothing, 0 takes the word out of the attention term."
        )
    return Line(phrase, weight)


def read(clip: CLIP, text: str) -> list[Reading]:
    """How each text encoder of `clip` reads `text`. Raises ValueError for another family of text encoders."""
    if clip is None:
        raise ValueError("Expected a CLIP, but got none: the checkpoint has no text encoder. Load one with Load CLIP.")
    chunks = clip.tokenize(text, return_word_ids=True)
    # The SDXL refiner's CLIP tokenizes for both encoders and has only one.
    names = [name for name in sorted(chunks) if hasattr(clip.cond_stage_model, f"clip_{name}")]
    if set(chunks) not in SUPPORTED or not names:
        raise ValueError(
            "Expected the CLIP of an SD 1.x, SD 2.x or SDXL model, but got the text encoder of another family "
            f"({type(clip.tokenizer).__name__}, tokens for {', '.join(chunks)}). "
            "Wire the CLIP that encodes the prompt of the model with EBCA Context Update."
        )
    return [_reading(clip, name, chunks[name]) for name in names]


def _reading(clip: CLIP, name: str, chunks: list[list[tuple]]) -> Reading:
    tokenizer = getattr(clip.tokenizer, f"clip_{name}")
    tokens = list(_prompt_tokens(clip, name, chunks, tokenizer.inv_vocab))
    return Reading(tokens, sum(map(len, chunks)), tokenizer.tokenizer.decode)


def _prompt_tokens(clip: CLIP, name: str, chunks: list[list[tuple]], vocabulary: dict[int, str]) -> Iterator[Token]:
    """The tokens that come from the prompt; start, end and padding tokens have ComfyUI's word id 0."""
    start = 0
    for chunk in chunks:
        rows = [row for row in chunk if not _is_left_out(clip, name, row[0])]
        for position, (token, _, word_id) in enumerate(rows, start):
            if word_id == 0:
                continue
            if torch.is_tensor(token):
                yield Token(position, tuple(token.flatten().tolist()), True)
            else:
                yield Token(position, token, vocabulary[token].endswith(END_OF_WORD))
        start += len(chunk)


def _is_left_out(clip: CLIP, name: str, token: int | Tensor) -> bool:
    """Whether ComfyUI drops this embedding, made for another encoder; the tokens after it then move up by one."""
    if not torch.is_tensor(token):
        return False
    encoder = getattr(clip.cond_stage_model, f"clip_{name}")
    return token.shape[-1] != encoder.transformer.get_input_embeddings().embedding_dim


def weigh_tokens(reading: Reading, lines: list[Line], phrases: list[list[Token]]) -> Tensor:
    """One weight per token [t]; phrases holds the tokens of each line's phrase."""
    values = torch.ones(reading.length, dtype=torch.float32)
    given: dict[int, Line] = {}
    for line, phrase in zip(lines, phrases, strict=True):
        for token in _occurrences(reading, line, phrase):
            earlier = given.setdefault(token.position, line)
            if earlier.weight != line.weight:
                raise ValueError(
                    f"Expected one weight per token, but got `{earlier.phrase} = {earlier.weight:g}` and "
                    f"`{line.phrase} = {line.weight:g}` for `{reading.text([token])}` at position {token.position}. "
                    "Remove one of the two lines or give them the same weight."
                )
            values[token.position] = line.weight
    return values


def _occurrences(reading: Reading, line: Line, phrase: list[Token]) -> list[Token]:
    """The tokens of every occurrence of the phrase, whole words only. Raises ValueError if there is none."""
    keys, wanted = [token.key for token in reading.tokens], [token.key for token in phrase]
    starts = [
        i
        for i in range(len(keys) - len(wanted) + 1)
        if keys[i : i + len(wanted)] == wanted and (i == 0 or reading.tokens[i - 1].ends_word)
    ]
    if not wanted or not starts:
        words = dict.fromkeys(reading.text(word) for word in _words(reading))
        raise ValueError(
            f"Expected words of the prompt, but got `{line.phrase}`, which is not in it. The prompt's words are: "
            f"{' '.join(words) or '(none)'}\nWrite words and phrases as they are in the prompt."
        )
    return [token for i in starts for token in reading.tokens[i : i + len(wanted)]]


def _words(reading: Reading) -> list[list[Token]]:
    """The prompt's words in their order, each as its tokens."""
    words: list[list[Token]] = [[]]
    for token in reading.tokens:
        words[-1].append(token)
        if token.ends_word:
            words.append([])
    return [word for word in words if word]


def describe(reading: Reading, values: Tensor) -> str:
    """A table of the prompt's tokens, their positions and weights; of a word of several tokens, the whole word too."""
    rows = [
        f"{token.position:>8}  {values[token.position]:<6g}  {reading.text([token])}"
        + (f"  in {reading.text(word)}" if len(word) > 1 else "")
        for word in _words(reading)
        for token in word
    ]
    unchanged = ["All weights are 1: nothing changes."] if torch.all(values == 1) else []
    head = "position  weight  token" if rows else "The prompt is empty."
    tail = f"{len(values)} tokens in all. Start, end and padding tokens are not listed; their weight is 1."
    return "\n".join([*unchanged, head, *rows, tail])
