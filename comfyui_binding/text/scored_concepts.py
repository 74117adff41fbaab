"""Which concepts of a prompt the score "one place each" can judge, and where their words are among its tokens.

A single thing has one place in the image. Several of a kind, places and backgrounds, parts and styles do not: they are
left out of the score, each with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .concept_words import (  # isort: skip
    AND, ATMOSPHERE, DETERMINERS, GROUNDS, MEDIA, NUMBERS, OF, PAIRED, PARTS, PREPOSITIONS, SINGULAR, STYLE,
    STYLE_HEADS, WITH,
)  # fmt: skip
from .concepts import concepts_of
from .noun_phrases import ConceptsNotFound, find_things, first_phrase, is_plural, read_tokens
from .tokenized_prompt import Token, TokenizedPrompt, occurrences_apart, tokenize_phrase, whole_prompt, words

if TYPE_CHECKING:
    from comfy.sd import CLIP

SEVERAL = "several of a kind, which have several places"
PLACE = "a place or background, which has no place of its own"
PART = "a part of another thing"
STYLE_REASON = "a style"
THINGS = "more than one thing"
NOT_IN_PROMPT = "its words are not in the prompt"
TWICE = "its words are in the prompt more than once"
#: Places that are things as well: "a green square".
SHAPES = {"square"}
#: Words that name nothing: their attention is left out of an object's.
_LITTLE = {part for word in DETERMINERS | OF | WITH | AND | PREPOSITIONS for part in word.split()}


@dataclass(frozen=True)
class ScoredConcepts:
    """What is scored of a prompt: {concept: the places of its words in the prompt's conditioning}.

    left_out: {concept: why it is not scored}.
    """

    places: Mapping[str, Sequence[int]]
    left_out: Mapping[str, str]
    prompt: TokenizedPrompt


def scored_concepts(clip: CLIP, prompt: str, box: str) -> ScoredConcepts:
    """The concepts of a prompt, or in the box, that can be scored.

    Raises ValueError if fewer than two are left, and as `concepts_of` and `tokenize_prompt` do.
    """
    left_out = split_concepts(prompt, box)
    tokenized = whole_prompt(clip, prompt)
    places = {}
    for concept, reason in left_out.items():
        if reason is None:
            found = _places(tokenized, tokenize_phrase(clip, concept)[0])
            left_out[concept] = found if isinstance(found, str) else None
            places |= {} if isinstance(found, str) else {concept: found}
    check_enough(left_out)
    reasons = {concept: reason for concept, reason in left_out.items() if reason is not None}
    return ScoredConcepts(places, reasons, tokenized)


def split_concepts(prompt: str, box: str) -> dict[str, str | None]:
    """{concept: why it is not scored, None if it is}, by its words alone. Raises ValueError as `concepts_of` does, and
    if fewer than two are scored."""
    found = {concept.text: why_not_scored(concept.text) for concept in concepts_of(prompt, box)}
    check_enough(found)
    return found


def check_enough(left_out: Mapping[str, str | None]) -> None:
    """Raises ValueError unless there are two concepts to compare."""
    scored = [concept for concept, reason in left_out.items() if reason is None]
    if len(scored) < 2:
        raise ValueError(
            f"{'Only one concept' if scored else 'No concept'} of the prompt can be scored, and the score compares "
            f"where two or more concepts are ({describe(left_out)}). Write at least two, each a single thing of the "
            "prompt such as `a red balloon`, in the `concepts` box, one a line."
        )


def describe(left_out: Mapping[str, str | None]) -> str:
    """The concepts with the reasons why they are not scored, on one line."""
    return "; ".join(f"`{concept}`: {reason or 'can be scored'}" for concept, reason in left_out.items())


def why_not_scored(concept: str) -> str | None:
    """Why a concept has not one place in an image, by its words; None if it has, or if that is not known."""
    text = concept.lower()
    bare = text.split()
    if re.match(r"[2-9]\d*\+?[a-z]", text):  # "2girls"
        return SEVERAL
    if not set(bare) & DETERMINERS and (set(bare) <= STYLE or bare[-1] in MEDIA | STYLE_HEADS):
        return STYLE_REASON
    if _has_several_things(concept):
        return THINGS
    try:
        phrase = first_phrase(read_tokens(concept))
    except ConceptsNotFound:
        return None
    determiner, head = phrase.determiner, phrase.head
    counted = determiner in NUMBERS or (determiner.isdigit() and determiner != "1")
    if counted or (is_plural(head) and determiner not in SINGULAR and not PAIRED.match(head)):
        return PART if head in PARTS and not counted else SEVERAL
    if head in (GROUNDS | ATMOSPHERE | {"background"}) - SHAPES:
        return PLACE
    return PART if head in PARTS and determiner not in SINGULAR else None


def _has_several_things(concept: str) -> bool:
    try:
        return len(find_things(read_tokens(concept))) > 1
    except ConceptsNotFound:
        return False


def _places(prompt: TokenizedPrompt, phrase: list[Token]) -> list[int] | str:
    """The places of a phrase's words in the prompt, without articles and prepositions; or why there are none."""
    found = occurrences_apart(prompt, phrase)
    if len(found) != 1:
        return TWICE if found else NOT_IN_PROMPT
    own = words(prompt._replace(tokens=found[0]))
    named = [token.position for word in own if _names_something(prompt.text(word)) for token in word]
    return named or [token.position for token in found[0]]


def _names_something(word: str) -> bool:
    return bool(re.search(r"\w", word)) and word not in _LITTLE
