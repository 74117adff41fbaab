"""The concepts of a prompt, that is, what the image should show: found by rules, or read from the `concepts` box.

A concept is a substring of the prompt, so that its tokens can be found in the prompt:

    a red fox on a wooden table next to a vase of roses, oil painting  ->  a red fox | a wooden table | a vase of roses

There is no dictionary of nouns. Commas, "and", "with", prepositions and verbs end a phrase. The rest must look like one
noun phrase. If that is not certain, ConceptsNotFound asks for the box.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from .concept_words import (  # isort: skip
    ADJECTIVE, ADJECTIVES, BETWEEN, COMMA, DETERMINERS, DRINKS, MEDIA, NO_MEDIUM, NUMBERS, OBJECTS, OF, ON_A_WALL,
    POSSESSIVE, PREPOSITIONS, SINGULAR, STYLE, STYLE_HEADS, TAGS, VERB_FORM, WITH,
)  # fmt: skip
from .noun_phrases import ConceptsNotFound, Phrase, ask, ask_twice, doubt, find_things, is_plural, read_tokens
from .strengths import parse_number

__all__ = [
    "Concept", "ConceptsNotFound", "concepts_of", "describe", "find_concepts", "on_one_line", "parse_concepts",
    "shared_strength",
]

#: Longer lists are usually lists of tags.
MAX_CONCEPTS = 8
#: The strength was measured for three concepts. Ten at 0.1 each gave 36 % correct images, ten at 0.03 each 61 %
#: (docs/alignment.md).
MEASURED_CONCEPTS = 3
#: The largest alpha of EBCA Edit Context.
MAX_STRENGTH = 10.0


@dataclass(frozen=True)
class Concept:
    """What the image should show, and its strength; None is the strength of the node."""

    text: str
    strength: float | None = None

    def strength_or(self, shared: float) -> float:
        """Its own strength or, if it has none, the shared one."""
        return shared if self.strength is None else self.strength


def concepts_of(prompt: str, box: str) -> list[Concept]:
    """The concepts in the box or, if it is empty, in the prompt. Raises ValueError as the two functions do."""
    return parse_concepts(box) if box.strip() else [Concept(text) for text in find_concepts(prompt)]


def parse_concepts(box: str) -> list[Concept]:
    """Parse the `concepts` box: lines such as `a red balloon` or `a red balloon = 0.15`. Blank lines are skipped.

    Raises ValueError if there is no line, if a line cannot be parsed, or if two lines have the same concept.
    """
    concepts = [_parse_line(line.strip()) for line in box.splitlines() if line.strip()]
    if not concepts:
        raise ValueError("The `concepts` box is empty. Write one concept per line, such as `a red balloon`.")
    if twice := _repeated([concept.text for concept in concepts]):
        raise ValueError(f"`{twice}` is in two lines of the `concepts` box. Remove one of them.")
    return concepts


def _parse_line(line: str) -> Concept:
    if "=" not in line:
        return Concept(line)
    text, _, number = (part.strip() for part in line.rpartition("="))
    if not text:
        raise ValueError(f"The line `{line}` names no concept. Write it as in `a red balloon = 0.15`.")
    strength = parse_number(number, MAX_STRENGTH)
    if strength is None:
        raise ValueError(
            f"The strength `{number}` of `{text}` is not a number from 0 to {MAX_STRENGTH:g}. "
            "Write it as in `a red balloon = 0.15`."
        )
    return Concept(text, strength)


def describe(concepts: list[Concept], strength: float) -> str:
    """A table for the user: each concept with its own strength or, if it has none, with `strength`."""
    rows = [f"{c.strength_or(strength):<8g}  {c.text}" for c in concepts]
    return "\n".join(["strength  concept", *rows])


def on_one_line(concepts: list[Concept], strength: float) -> str:
    """The same as `describe` for the text on a node, of which classic nodes show two lines and Nodes 2.0 no breaks."""
    return " · ".join(f"{c.text} {c.strength_or(strength):g}" for c in concepts)


def shared_strength(strength: float, count: int) -> float:
    """The strength of each of `count` concepts; above MEASURED_CONCEPTS: strength * MEASURED_CONCEPTS / count."""
    return strength * min(1.0, MEASURED_CONCEPTS / max(count, 1))


def find_concepts(prompt: str) -> list[str]:
    """The concepts that a prompt names, in the order and the words of the prompt.

    Weights are removed: `(a red car:1.3)` gives `a red car`. They are weights of the words in the prompt; the strength
    of a concept is a different number, which can be set in the `concepts` box.

    Raises ConceptsNotFound if the prompt is empty, a list of tags or not in English, or if it cannot be split with
    certainty.
    """
    text = _without_style(_without_markup(prompt))
    things = find_things(read_tokens(text))
    _check_list(things)
    texts = [text[thing.start : thing.end] for thing in things]
    if twice := _repeated([text.lower() for text in texts]):
        ask_twice(twice)
    return texts


def _repeated(texts: list[str]) -> str | None:
    return next((text for i, text in enumerate(texts) if text in texts[:i]), None)


# --- the text ---------------------------------------------------------------------------------------------------------


def _without_markup(prompt: str) -> str:
    """The prompt without weights, brackets, LoRAs, line breaks and BREAK. Raises ConceptsNotFound for lists of tags."""
    if not prompt.strip():
        ask("The prompt is empty")
    if re.search(r"[{}|]|__\S+__", prompt):
        ask("The prompt has alternatives or wildcards, and what they become is not known here")
    if any(c.isalpha() and not unicodedata.name(c, "LATIN").startswith("LATIN") for c in prompt):
        ask("The prompt is not in English, the one language that is split into concepts")
    text = re.sub(r"<[^<>]*>", " ", prompt)
    text = re.sub(r"(?<!\\):\s*[\d.]+\s*(?=[)\]])", "", text)
    text = re.sub(r"(?<!\\)[()\[\]]", "", text)
    text = re.sub(r"\bBREAK\b|[\n\r;]|\.(?=\s)", ", ", text)
    text = re.sub(r"\s[&+]\s", " and ", text)
    if TAGS.search(re.sub(r"embedding:[^\s,]+", "", text.lower())):
        ask("The prompt is a list of tags, and which of them are concepts is not known here")
    return " ".join(text.split()).rstrip(" .,!")


_MEDIA = "|".join(sorted(MEDIA | {"close up", "still life", "still", "photography"}))
_BEGINNING = re.compile(rf"(?i)((?:black and white |[\w-]+ ){{0,5}}?)({_MEDIA})s? (?:of|(?<=scene |image )with) (?=\w)")
_MANNER = re.compile(r"(?i)\s*\b(?:(?:painted |drawn )?in the (?:style|manner) of|inspired by|art by)\b(.*)$")
_ARTIST = re.compile(r"(?<!ing)(?<!ed)\s\bby ((?:[A-Z][\w.'-]*|[\w.-]+ [\w.-]+)(?: [\w.'-]+)*)$")
_STYLE_WORD = re.compile(r"\d+(mm|k|th|s)?$|embedding:|\w+ism$")


def _without_style(text: str) -> str:
    """The text without descriptions of the style: "a photo of", "oil painting", "in the style of ..."."""
    begin = _BEGINNING.match(text)
    before = begin[1].lower().replace("black and white", "").split() if begin else []
    if begin and not (set(before) & NO_MEDIUM or set(before[1:]) & DETERMINERS or any(map(VERB_FORM.match, before))):
        rest = text[begin.end() :]
        is_object = begin[2].lower() in OBJECTS and set(rest.lower().split()) & ON_A_WALL
        twice = re.search(rf"(?i)\b({_MEDIA})s? of\b", rest)  # "a photo of a cat and a photo of a dog"
        if twice or is_object or rest.split()[0].lower() in DRINKS:
            doubt(begin[2])
        text = rest
    parts, artists = [], False
    for part in map(str.strip, text.split(",")):
        plain = _without_artist(part)
        words = plain.lower().split()
        style = _is_style(words, first=not parts and not artists)
        if artists and not style and not set(words) & DETERMINERS:
            doubt(part)  # another artist, or a thing
        artists |= plain != part or words[:1] == ["by"]
        parts += [] if style else [plain]
    return ", ".join(parts)


def _without_artist(part: str) -> str:
    """A part between commas without "in the style of ..." or "by ..." at its end. Raises ConceptsNotFound if that end
    may contain a thing."""
    end = _MANNER.search(part) or _ARTIST.search(part)
    if not end:
        return part
    words = end[1].lower().split()
    if end.re is _ARTIST and (words[0] in DETERMINERS or is_plural(words[-1])):  # "a house by the lake"
        return part
    if set(words) & (PREPOSITIONS | WITH | ADJECTIVES) or set(words[1:]) & DETERMINERS - {"the"}:
        doubt(words[0])
    return part[: end.start()]


def _is_style(words: list[str], first: bool) -> bool:
    """Whether a part between commas describes the style, or consists of embeddings."""
    if all(word in STYLE or _STYLE_WORD.match(word) for word in words):
        return True
    if set(words) & DETERMINERS:
        return False
    if words[0] == "by" and len(words) < 5:
        return True
    if not (words[-1] in MEDIA | STYLE_HEADS or words[-1].endswith("ism")) or set(words) & (BETWEEN | OF):
        return False
    return not first or doubt(words[-1])


# --- the list ---------------------------------------------------------------------------------------------------------


def _check_list(things: list[Phrase]) -> None:
    """Raises ConceptsNotFound if the list as a whole is not certain."""
    if not things:
        ask("The prompt names no concept")
    if len(things) > MAX_CONCEPTS:
        ask(f"The prompt has {len(things)} parts, more than the {MAX_CONCEPTS} that are split")
    for before, thing, after in zip(things, things[1:], [*things[2:], None]):
        if thing.link not in {COMMA, "and"}:
            continue
        bare, head = not thing.determiner, thing.head
        if before.of_determiner or (bare and before.of):
            doubt(head)  # "a statue of a lion and a tiger", "a bowl of apples and oranges"
        if thing.link == COMMA and bare:  # tags, unless "and" ends the list; "a rickety, old bridge"
            ends_by_and = after and after.link in {COMMA, "and"} and not after.determiner
            adjective = before.determiner and len(before.words) == 1 and ADJECTIVE.match(before.head)
            if not ends_by_and or adjective:
                doubt(head)
        if thing.link == "and" and bare and before.determiner in NUMBERS:  # "two cats and dogs"
            doubt(head)
        one = not before.determiner and len(before.words) == 1 and not is_plural(before.head)
        if thing.link == "and" and bare and (one or before.determiner in SINGULAR | POSSESSIVE):
            compound = len(thing.words) > 1 and thing.words[0] not in ADJECTIVES  # "a ham and cheese sandwich"
            shared = len(thing.words) == 1 and not is_plural(head) and len(before.words) > 1  # "a black cat and dog"
            if compound or shared:
                doubt(head)
