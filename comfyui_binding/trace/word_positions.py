"""The attention maps of words: the tokens that a trace has recorded, found by their text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..text.tokenized_prompt import TokenizedPrompt, encode, occurrences, tokenize_phrase, whole_prompt, words
from .trace_record import TraceRecord, WordMaps, matches_fingerprint

if TYPE_CHECKING:
    from comfy.sd import CLIP


def positions_of_words(clip: CLIP, text: str, wanted: str) -> tuple[dict[str, list[int]], TokenizedPrompt]:
    """{word or phrase: the places of its tokens in the prompt}, and the tokens of the prompt.

    wanted: words and phrases of the prompt `text`, between commas or on lines of their own; without any, all words.
    Every occurrence counts. Raises ValueError for one that is not in the prompt, and for a prompt without words.
    """
    prompt = whole_prompt(clip, text)
    phrases = [phrase.strip() for phrase in re.split(r"[,\n]", wanted) if phrase.strip()]
    found = {phrase: occurrences(prompt, phrase, tokenize_phrase(clip, phrase)[0]) for phrase in phrases}
    found = found or _all_words(prompt)
    if not found:
        raise ValueError("text has no words. Give it the text of the positive prompt.")
    return {word: [token.position for token in tokens] for word, tokens in found.items()}, prompt


def _all_words(prompt: TokenizedPrompt) -> dict[str, list]:
    found: dict[str, list] = {}
    for word in words(prompt):
        if re.search(r"\w", text := prompt.text(word)):
            found.setdefault(text, []).extend(word)
    return found


def is_prompt_of(record: TraceRecord, clip: CLIP, text: str) -> bool:
    """Whether the run's positive prompt is what `clip` makes of the text."""
    context = encode(clip, text)
    return all(matches_fingerprint(prompt, context[0]) for prompt in record.prompts)


def maps_of_prompt(record: TraceRecord, prompt: TokenizedPrompt, images: int | None = None) -> WordMaps:
    """The maps of the one positive prompt of a run with, where it is given, so many images.

    Raises ValueError where a run has no such maps.
    """
    if not record.maps:
        raise ValueError(
            "The trace has no attention maps. Switch on attention_maps of EBCA Trace and run again. If it is on, the "
            "prompt has an area, or the log names the node that prevents the recording."
        )
    if len(record.prompts) > 1:
        raise ValueError(
            f"The traced run had {len(record.prompts)} positive prompts, so it is not known which of them text is. "
            "Trace a run without Conditioning Combine, areas and timestep ranges."
        )
    (maps,) = record.maps
    if maps.tokens < prompt.length or (maps.tokens > prompt.length and not prompt.has_more):
        raise ValueError(
            f"text has {prompt.length} tokens, but the positive prompt of the traced run has {maps.tokens}. Connect "
            "one text to CLIP Text Encode and to this node."
        )
    if images is not None and maps.images != images:
        raise ValueError(
            f"image has {images} image(s), but the traced run made {maps.images}. Connect the VAE Decode of the "
            "sampler that ran with this trace; of a video, one frame: its maps are means over all of them."
        )
    return maps
