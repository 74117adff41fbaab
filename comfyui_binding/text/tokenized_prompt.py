"""The tokens of a prompt in ComfyUI's text encoders, their positions in the conditioning, its words and phrases.

The prompt and every phrase are tokenized by the workflow's own CLIP, and a phrase is found wherever its tokens occur:
prompt weights in parentheses, letter case, chunks and embeddings need no special cases.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from comfy.sd import CLIP

#: The names of the token lists of the supported tokenizers.
SUPPORTED = ({"l"}, {"h"}, {"l", "g"})
#: Ends the last piece of a word in CLIP's vocabulary.
END_OF_WORD = "</w>"


class Token(NamedTuple):
    """One token of the prompt; key is its number in the vocabulary, or the values of an embedding's vector."""

    position: int
    key: int | tuple[float, ...]
    ends_word: bool


class TokenizedPrompt(NamedTuple):
    """The prompt in one text encoder: its own tokens; length includes start, end and padding tokens."""

    tokens: list[Token]
    length: int
    decode: Callable[[list[int]], str]

    def text(self, tokens: list[Token]) -> str:
        """The tokens of one word as text; the vectors of an embedding have no text."""
        if any(isinstance(token.key, tuple) for token in tokens):
            return "<embedding>"
        return self.decode([token.key for token in tokens])


def tokenize_prompt(clip: CLIP, text: str) -> list[TokenizedPrompt]:
    """The tokens of `text` in each text encoder of `clip`. Raises ValueError for unsupported text encoders."""
    if clip is None:
        raise ValueError("The checkpoint has no CLIP. Load one with Load CLIP.")
    chunks = clip.tokenize(text, return_word_ids=True)
    names = _encoder_names(clip, chunks)
    if set(chunks) not in SUPPORTED or not names:
        raise ValueError(
            f"This CLIP is not supported ({type(clip.tokenizer).__name__}, tokens for {', '.join(chunks)}). Connect "
            "the CLIP that encodes the prompt of the EBCA model; the README lists the supported models."
        )
    return [_tokenized(clip, name, chunks[name]) for name in names]


def _encoder_names(clip: CLIP, chunks: Mapping[str, Any]) -> list[str]:
    """The encoders for which a prompt is tokenized; the SDXL refiner's CLIP tokenizes for both and has only one."""
    return [name for name in sorted(chunks) if hasattr(clip.cond_stage_model, f"clip_{name}")]


def chunk_length(clip: CLIP, text: str) -> int:
    """How many tokens a prompt's chunks have, start, end and padding included."""
    chunks = clip.tokenize(text)
    return len(chunks[_encoder_names(clip, chunks)[0]][0])


def encode(clip: CLIP, text: str) -> Tensor:
    """The text [b, t, c] of a conditioning, as CLIP Text Encode makes it."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def columns_of_encoders(clip: CLIP, width: int) -> list[slice]:
    """Which columns of a conditioning's text each encoder makes: SDXL's two lie side by side, the smaller first."""
    names = [name for name in ("l", "g") if hasattr(clip.cond_stage_model, f"clip_{name}")]
    ends = list(itertools.accumulate(_width(clip, name) for name in names))
    if len(ends) < 2 or ends[-1] != width:
        return [slice(None)]
    return [slice(start, end) for start, end in itertools.pairwise([0, *ends])]


def _width(clip: CLIP, name: str) -> int:
    """Width of an encoder's token embeddings, which is that of its output."""
    encoder = getattr(clip.cond_stage_model, f"clip_{name}")
    return encoder.transformer.get_input_embeddings().embedding_dim


def _tokenized(clip: CLIP, name: str, chunks: list[list[tuple]]) -> TokenizedPrompt:
    tokenizer = getattr(clip.tokenizer, f"clip_{name}")
    tokens = list(_prompt_tokens(clip, name, chunks, tokenizer.inv_vocab))
    return TokenizedPrompt(tokens, sum(map(len, chunks)), tokenizer.tokenizer.decode)


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
    """Whether ComfyUI drops this embedding of another encoder; the tokens after it then move up by one."""
    return torch.is_tensor(token) and token.shape[-1] != _width(clip, name)


def occurrences(prompt: TokenizedPrompt, text: str, phrase: list[Token]) -> list[Token]:
    """The tokens of every occurrence of the phrase, whole words only; `text` is the phrase as the user wrote it.

    Raises ValueError if there is none.
    """
    starts = starts_of(prompt, phrase)
    if not starts:
        in_order = [prompt.text(word) for word in words(prompt)]
        length = max(1, len(text.split()))
        phrases = [" ".join(in_order[i : i + length]) for i in range(len(in_order) - length + 1)]
        similar = get_close_matches(text.lower(), phrases, n=1)
        advice = f"Did you mean `{similar[0]}`?" if similar else "Write words and phrases as they are in the prompt."
        listed = " ".join(f"`{word}`" for word in dict.fromkeys(in_order)) or "(none)"
        raise ValueError(f"`{text}` is not in the prompt. {advice} The words of the prompt are: {listed}")
    return [token for i in starts for token in prompt.tokens[i : i + len(phrase)]]


def starts_of(prompt: TokenizedPrompt, phrase: list[Token]) -> list[int]:
    """Where the phrase begins among the tokens of the prompt, whole words only."""
    keys, wanted = [token.key for token in prompt.tokens], [token.key for token in phrase]
    return [
        i
        for i in range(len(keys) - len(wanted) + 1 if wanted else 0)
        if keys[i : i + len(wanted)] == wanted and (i == 0 or prompt.tokens[i - 1].ends_word)
    ]


def words(prompt: TokenizedPrompt) -> list[list[Token]]:
    """The words of the prompt in order, each as its tokens."""
    found: list[list[Token]] = [[]]
    for token in prompt.tokens:
        found[-1].append(token)
        if token.ends_word:
            found.append([])
    return [word for word in found if word]
