"""The tokens of a prompt in ComfyUI's text encoders, their positions in the conditioning, its words and phrases.

The prompt and every phrase are tokenized by the workflow's own CLIP, and a phrase is found wherever its tokens spell
it: prompt weights in parentheses, letter case, chunks and embeddings need no special cases.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .vocabularies import UNKNOWN, byte_pairs, clip_pieces, sentence_pieces

if TYPE_CHECKING:
    from comfy.sd import CLIP


class Lists(NamedTuple):
    """Which of a tokenizer's token lists hold the words of the prompt, and how they become the rows of a text."""

    names: Sequence[str]
    #: What a piece of the vocabulary spells.
    spell: Callable[[str], bytes]
    #: Whether each is made of chunks with start, end and padding, as CLIP reads them; else it is one list.
    is_chunked: bool = False
    #: Whether a template stands around the prompt, and whether rows in front are left out of the conditioning.
    has_template: bool = False
    is_cut: bool = False
    #: Whether the model makes a row for each token of a text that was encoded from other tokens.
    is_adapted: bool = False


#: By the names of all lists of a tokenizer.
SUPPORTED = {
    frozenset({"l"}): Lists(("l",), clip_pieces, is_chunked=True),  # SD 1.x
    frozenset({"h"}): Lists(("h",), clip_pieces, is_chunked=True),  # SD 2.x
    frozenset({"l", "g"}): Lists(("g", "l"), clip_pieces, is_chunked=True),  # SDXL
    frozenset({"t5xxl"}): Lists(("t5xxl",), sentence_pieces),  # PixArt, LTX, Cosmos 1
    frozenset({"t5base"}): Lists(("t5base",), sentence_pieces),  # Stable Audio 1
    frozenset({"umt5xxl"}): Lists(("umt5xxl",), sentence_pieces),  # Wan
    frozenset({"umt5base", "lyrics"}): Lists(("umt5base",), sentence_pieces),  # ACE-Step 1: its tags
    frozenset({"qwen3_06b", "t5xxl"}): Lists(("t5xxl",), sentence_pieces, is_adapted=True),  # Anima
    frozenset({"qwen25_7b", "l"}): Lists(("qwen25_7b",), byte_pairs, has_template=True, is_cut=True),  # Kandinsky 5
    frozenset({"gemma3_12b"}): Lists(("gemma3_12b",), sentence_pieces, is_cut=True),  # LTX-2
}
#: Why the words of others are not known.
WHY_NOT = {
    frozenset({"hydit_clip", "mt5xl"}): "two text encoders read the prompt, each in tokens of its own",
    frozenset({"lm_prompt", "lm_prompt_negative", "lyrics", "qwen3_06b", "lm_metadata"}): (
        "it writes tempo, key and length of the music into the prompt, and these are not known here"
    ),
}


class Token(NamedTuple):
    """One token of the prompt.

    text: what it stands for, in UTF-8, whose last character may go on in the next token; for the vector of an embedding
    a name that no text contains.
    """

    position: int
    text: bytes
    ends_word: bool


class TokenizedPrompt(NamedTuple):
    """The prompt in one text encoder: its own tokens.

    length: of the text that the layers read, start, end and padding included; where the model adds tokens of its own
    (has_more), up to the last position that is known. encoded: the text [b, t, c] of the conditioning, where the
    positions depend on it.
    """

    tokens: list[Token]
    length: int
    has_more: bool = False
    encoded: Tensor | None = None

    def text(self, tokens: Sequence[Token]) -> str:
        """The tokens of one word as text; the vectors of an embedding have no text."""
        text = b"".join(token.text for token in tokens)
        if VECTOR in text:
            return "<embedding>"
        return text.replace(UNKNOWN, b"<unknown>").decode(errors="replace").strip()


#: Begins the name of an embedding's vector: no byte of UTF-8.
VECTOR = b"\xfe"


def tokenize_prompt(clip: CLIP, text: str) -> list[TokenizedPrompt]:
    """The tokens of `text` in each text encoder of `clip`. Raises ValueError for unsupported text encoders."""
    tokens, lists = _token_lists(clip, text)
    names = _names(clip, lists)
    if lists.is_chunked:
        return [TokenizedPrompt(_own_tokens(clip, name, tokens, lists), sum(map(len, tokens[name]))) for name in names]
    (name,) = names
    own, length, encoded = _own_tokens(clip, name, tokens, lists), len(tokens[name][0]), None
    if lists.is_cut:
        encoded = encode(clip, text)
        cut = length - encoded.shape[1]
        own, length = [token._replace(position=token.position - cut) for token in own], encoded.shape[1]
    return [TokenizedPrompt(own, length, True, encoded)]


def whole_prompt(clip: CLIP, text: str) -> TokenizedPrompt:
    """The tokens of `text` in the first encoder, and the length of the text that all encoders make together.

    SDXL concatenates its encoders' outputs along the width, up to the length of the shorter one.
    """
    tokenized = tokenize_prompt(clip, text)
    return tokenized[0]._replace(length=min(one.length for one in tokenized))


def tokenize_phrase(clip: CLIP, phrase: str) -> list[list[Token]]:
    """The tokens of a phrase in each text encoder of `clip`; their positions say nothing."""
    tokens, lists = _token_lists(clip, phrase)
    return [_own_tokens(clip, name, tokens, lists) for name in _names(clip, lists)]


def chunk_length(clip: CLIP, text: str) -> int:
    """How many tokens the parts have in which a prompt is encoded, start, end and padding included."""
    tokens, lists = _token_lists(clip, text)
    return len(tokens[_names(clip, lists)[0]][0])


def is_adapted(clip: CLIP, text: str) -> bool:
    """Whether the rows of a prompt's conditioning are not the tokens that are known."""
    return _token_lists(clip, text)[1].is_adapted


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


# --- the lists of a tokenizer ----------------------------------------------------------------------------------------


def _token_lists(clip: CLIP, text: str) -> tuple[Mapping[str, Any], Lists]:
    if clip is None:
        raise ValueError("The checkpoint has no CLIP. Load one with Load CLIP.")
    tokens = clip.tokenize(text, return_word_ids=True)
    lists = SUPPORTED.get(frozenset(tokens))
    if lists is None or not _names(clip, lists):
        reason = WHY_NOT.get(frozenset(tokens))
        raise ValueError(
            f"This CLIP is not supported ({type(clip.tokenizer).__name__}, tokens for {', '.join(tokens)})"
            + (f": {reason}. " if reason else ". ")
            + "Connect the CLIP that encodes the prompt of the EBCA model; the README lists the supported models."
        )
    return tokens, lists


def _names(clip: CLIP, lists: Lists) -> list[str]:
    """The lists that are encoded; the SDXL refiner's CLIP tokenizes for both encoders and has only one."""
    if not lists.is_chunked:
        return list(lists.names)
    return [name for name in lists.names if hasattr(clip.cond_stage_model, f"clip_{name}")]


def _part(owner: Any, name: str) -> Any:
    """The tokenizer of a list, or its encoder; None where there is none."""
    return getattr(owner, f"clip_{name}", None) or getattr(owner, name, None)


def _width(clip: CLIP, name: str) -> int:
    """Width of an encoder's token embeddings, which is that of its output."""
    return _part(clip.cond_stage_model, name).transformer.get_input_embeddings().embedding_dim


def _own_tokens(clip: CLIP, name: str, tokens: Mapping[str, Any], lists: Lists) -> list[Token]:
    """The tokens that come from the prompt; start, end and padding tokens have ComfyUI's word id 0."""
    own, start = [], 0
    for chunk in tokens[name]:
        rows = [row for row in chunk if not _is_left_out(clip, name, row[0])]
        own += [(position, token) for position, (token, _, word) in enumerate(rows, start) if word != 0]
        start += len(chunk)
    if lists.has_template:
        own = _without_template(own, [token for token, *_ in clip.tokenize("", return_word_ids=True)[name][0]])
    pieces = _part(clip.tokenizer, name).inv_vocab
    texts = [_name(token) if torch.is_tensor(token) else lists.spell(pieces[token]) for _, token in own]
    ends = [not text or text[-1:] in (b" ", VECTOR) for text in texts] if lists.is_chunked else _ends_of_words(texts)
    return [Token(position, text, end) for (position, _), text, end in zip(own, texts, ends, strict=True)]


def _is_left_out(clip: CLIP, name: str, token: int | Tensor) -> bool:
    """Whether ComfyUI drops this embedding of another encoder; the tokens after it then move up by one."""
    return torch.is_tensor(token) and token.shape[-1] != _width(clip, name)


def _without_template(own: list[tuple[int, Any]], empty: list) -> list[tuple[int, Any]]:
    """The tokens between those that the empty prompt has, too, in front and behind."""
    found = [token for _, token in own]
    front = _common(found, empty)
    behind = _common(found[front:][::-1], empty[front:][::-1])
    return own[front : len(own) - behind]


def _common(one: list, other: list) -> int:
    """How many tokens two lists begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))
    return sum(1 for _ in pairs)


def _name(vector: Tensor) -> bytes:
    """The name of an embedding's vector."""
    return VECTOR + sha256(vector.detach().float().cpu().numpy().tobytes()).hexdigest().encode() + VECTOR


# --- words and phrases -----------------------------------------------------------------------------------------------

#: Letters and digits of the scripts that write spaces between words.
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"


def occurrences(prompt: TokenizedPrompt, text: str, phrase: list[Token]) -> list[Token]:
    """The tokens of every occurrence of the phrase, whole words only; `text` is the phrase as the user wrote it.

    Raises ValueError if there is none.
    """
    if any(UNKNOWN in token.text for token in phrase):
        raise ValueError(
            f"`{text}` has a character that the text encoder does not know: its token stands for all such characters. "
            "Choose another word."
        )
    found = find(prompt, phrase)
    if not found:
        in_order = [prompt.text(word) for word in words(prompt)]
        length = max(1, len(text.split()))
        phrases = {p.lower(): p for i in range(len(in_order) - length + 1) if (p := " ".join(in_order[i : i + length]))}
        similar = get_close_matches(text.lower(), phrases, n=1)
        advice = "Write words and phrases as they are in the prompt."
        if similar:
            advice = f"Did you mean `{phrases[similar[0]]}`?"
        listed = " ".join(f"`{word}`" for word in dict.fromkeys(in_order)) or "(none)"
        raise ValueError(f"`{text}` is not in the prompt. {advice} The words of the prompt are: {listed}")
    return found


def find(prompt: TokenizedPrompt, phrase: list[Token]) -> list[Token]:
    """The tokens of every occurrence of the phrase in the prompt, whole words only."""
    found = {token.position for occurrence in occurrences_apart(prompt, phrase) for token in occurrence}
    return [token for token in prompt.tokens if token.position in found]


def occurrences_apart(prompt: TokenizedPrompt, phrase: list[Token]) -> list[list[Token]]:
    """The tokens of each occurrence of the phrase in the prompt, whole words only."""
    text, places = _spelled([token.text for token in prompt.tokens])
    wanted = _spelled([token.text for token in phrase])[0].split()
    if not wanted:
        return []
    before = f"(?<!{LETTER})" if re.match(LETTER, wanted[0]) else ""
    after = f"(?!{LETTER})" if re.match(LETTER, wanted[-1][-1]) else ""
    phrase_pattern = r"\s+".join(map(re.escape, wanted))
    pattern = f"{before}(?=({phrase_pattern}){after})"  # looks ahead: occurrences may overlap
    return [
        [
            token
            for token, (start, end) in zip(prompt.tokens, places, strict=True)
            if start < match.end(1) and match.start(1) < end
        ]
        for match in re.finditer(pattern, text)
    ]


def _spelled(texts: Sequence[bytes]) -> tuple[str, list[tuple[int, int]]]:
    """The text of tokens in small letters, and for each token the characters that it has a part in."""
    characters = b"".join(texts).decode(errors="surrogateescape")
    at = [i for i, one in enumerate(characters) for _ in one.encode(errors="surrogateescape")]  # of each byte
    ends = itertools.accumulate(map(len, texts))
    places = [(at[start], at[end - 1] + 1) if end > start else (0, 0) for start, end in itertools.pairwise([0, *ends])]
    return "".join(one.lower() if len(one.lower()) == 1 else one for one in characters), places


def _ends_of_words(texts: Sequence[bytes]) -> list[bool]:
    """Whether a word ends with each of the tokens with these texts, where only their letters say so."""
    text, places = _spelled(texts)

    def goes_on(one: tuple[int, int], following: tuple[int, int]) -> bool:
        (start, end), first = one, following[0]
        if first < end:  # in one character
            return True
        if not text[start:end].strip():  # a space of its own
            return not text[first].isspace()
        return bool(re.match(LETTER, text[end - 1]) and re.match(LETTER, text[first]))

    return [not goes_on(*pair) for pair in itertools.pairwise(places)] + [True] * bool(texts)


def words(prompt: TokenizedPrompt) -> list[list[Token]]:
    """The words of the prompt in order, each as its tokens."""
    return [word for word in _groups(prompt.tokens) if prompt.text(word)]


def _groups(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    word: list[Token] = []
    for token in tokens:
        word.append(token)
        if token.ends_word:
            yield word
            word = []
    yield word
