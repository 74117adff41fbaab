"""How ComfyUI's text encoders read a prompt: its tokens, their places in the conditioning, its words and phrases.

The graph's own CLIP tokenizes the prompt and every phrase, so a phrase is found wherever the text encoder reads the
same tokens: prompt weights in parentheses, letter case, chunks and embeddings need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from comfy.sd import CLIP

#: What the tokenizers of SD 1.x, SD 2.x and SDXL call their tokens.
SUPPORTED = ({"l"}, {"h"}, {"l", "g"})
#: Ends the last piece of a word in CLIP's vocabulary.
END_OF_WORD = "</w>"


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


def occurrences(reading: Reading, text: str, phrase: list[Token]) -> list[Token]:
    """The tokens of every occurrence of the phrase, whole words only; `text` is what it is called in messages.

    Raises ValueError if there is none.
    """
    keys, wanted = [token.key for token in reading.tokens], [token.key for token in phrase]
    starts = [
        i
        for i in range(len(keys) - len(wanted) + 1)
        if keys[i : i + len(wanted)] == wanted and (i == 0 or reading.tokens[i - 1].ends_word)
    ]
    if not wanted or not starts:
        known = dict.fromkeys(reading.text(word) for word in words(reading))
        raise ValueError(
            f"Expected words of the prompt, but got `{text}`, which is not in it. The prompt's words are: "
            f"{' '.join(f'`{word}`' for word in known) or '(none)'}\nWrite words and phrases as they are in the prompt."
        )
    return [token for i in starts for token in reading.tokens[i : i + len(wanted)]]


def words(reading: Reading) -> list[list[Token]]:
    """The prompt's words in their order, each as its tokens."""
    found: list[list[Token]] = [[]]
    for token in reading.tokens:
        found[-1].append(token)
        if token.ends_word:
            found.append([])
    return [word for word in found if word]
