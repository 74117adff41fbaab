"""The attention maps of words: the tokens that a trace has recorded, found by their text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..text.tokenized_prompt import Reading, occurrences, read, words
from .trace_record import TraceRecord, WordMaps, matches_fingerprint

if TYPE_CHECKING:
    from comfy.sd import CLIP


def positions_of_words(clip: CLIP, text: str, wanted: str) -> tuple[dict[str, list[int]], int]:
    """{word or phrase: the places of its tokens in the prompt's conditioning}, and how many tokens that has.

    wanted: words and phrases of the prompt `text`, between commas or on lines of their own; without any, all words.
    Every occurrence counts. Raises ValueError for one that is not in the prompt, and for a prompt without words.
    """
    readings = read(clip, text)
    reading, length = readings[0], min(reading.length for reading in readings)
    phrases = [phrase.strip() for phrase in re.split(r"[,\n]", wanted) if phrase.strip()]
    found = {p: occurrences(reading, p, read(clip, p)[0].tokens) for p in phrases} if phrases else _all_words(reading)
    if not found:
        raise ValueError("Expected a prompt with words, but text is empty. Give it the text of the positive prompt.")
    return {word: [token.position for token in tokens] for word, tokens in found.items()}, length


def _all_words(reading: Reading) -> dict[str, list]:
    found: dict[str, list] = {}
    for word in words(reading):
        if re.search(r"\w", text := reading.text(word)):
            found.setdefault(text, []).extend(word)
    return found


def is_prompt_of(record: TraceRecord, clip: CLIP, text: str) -> bool:
    """Whether the run's positive prompt is what `clip` makes of the text."""
    context = clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]
    return all(matches_fingerprint(prompt, context[0]) for prompt in record.prompts)


def maps_of_prompt(record: TraceRecord, tokens: int, images: int) -> WordMaps:
    """The maps of the one positive prompt of a run, which has so many tokens and images.

    Raises ValueError where a run has no such maps.
    """
    if not record.maps:
        raise ValueError(
            "Expected a trace with attention maps, but it has none. Switch on attention_maps of EBCA Trace and run "
            "again; if it is on, the prompt has an area, or the log says which node keeps the maps from being read."
        )
    if len(record.prompts) > 1:
        raise ValueError(
            f"Expected a run with one positive prompt, but it had {len(record.prompts)}: it is not known which of them "
            "the text is. Trace a run without Conditioning Combine, areas and timestep ranges."
        )
    (maps,) = record.maps
    if maps.tokens != tokens:
        raise ValueError(
            f"Expected the positive prompt of the traced run, with {maps.tokens} tokens, but text has {tokens}. Wire "
            "one text to CLIP Text Encode and to this node."
        )
    if maps.images != images:
        raise ValueError(
            f"Expected the {maps.images} image(s) of the traced run, but got {images}. Wire the VAE Decode of the "
            "sampler that ran with this trace."
        )
    return maps
