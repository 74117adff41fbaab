"""The noun phrases of an English text, and which of them are things: word lists and rules.

Commas, "and", "with", prepositions, verbs and the next article end a phrase. There is no dictionary of nouns: the rest
must look like one noun phrase. If that is not certain, ConceptsNotFound is raised.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, NoReturn

from .concept_words import (  # isort: skip
    ABSTRACT, ABSTRACTION, ADJECTIVE, ADJECTIVES, ADVERB, ADVERBS, AFTER_VERBS, AND, ATMOSPHERE, BARE_OBJECT, BETWEEN,
    BUILDINGS, COLOUR_NOUNS, COMMA, CONTAINERS, CONTRACTION, DETERMINERS, ED_NOUNS, FACING, FOREIGN, GROUNDS, ING_NAMES,
    ING_NOUNS, LINKS, LOOKING, MATERIALS, MEDIA, NO_NOUN, NO_PLURAL, NUMBERS, OF, PAIRED, PAIRS, PARTICIPLES, PARTS,
    PLACES_OF_THINGS, PLURALS, POSSESSIVE, PREPOSITIONS, PRONOUNS, SHADES, SINGULAR, STYLE, STYLE_HEADS, SURE_ADJECTIVE,
    UNSURE, VAGUE, VERBS, VERB_NOUNS, VIEWER, WITH,
)  # fmt: skip


class ConceptsNotFound(ValueError):
    """The prompt cannot be split with certainty."""


def ask(reason: str) -> NoReturn:
    """Raises ConceptsNotFound. reason: what is wrong with the prompt."""
    raise ConceptsNotFound(
        f"{reason}. Write the concepts in the `concepts` box, one per line, such as `a red balloon`."
    )


def doubt(word: str) -> NoReturn:
    """Raises ConceptsNotFound for a word whose role is not certain."""
    ask(f"The prompt cannot be split into concepts with certainty at `{word}`")


def ask_twice(name: str) -> NoReturn:
    """Raises ConceptsNotFound for a name that occurs twice."""
    ask(f"The prompt names `{name}` twice, and whether that is one concept is not certain")


class WordToken(NamedTuple):
    word: str  # lower case; several words for "next to" and the like
    start: int
    end: int
    capital: bool


_SEVERAL = sorted((w for w in BETWEEN | OF | ADVERBS | PRONOUNS if " " in w), key=len, reverse=True)
_TOKEN = re.compile(rf"\b(?:{'|'.join(_SEVERAL)})\b|,|embedding:[^\s,]+|\\\([^)]*\)|[\w'\u2019-]+|\S", re.IGNORECASE)


def read_tokens(text: str) -> list[WordToken]:
    tokens = [WordToken(m[0].lower(), *m.span(), m[0][0].isupper()) for m in _TOKEN.finditer(text)]
    for word, *_ in tokens:
        if word in FOREIGN:
            ask(f"The prompt is not in English, the one language that is split into concepts (`{word}`)")
        if not re.match(r",|\\\(|\d+$|[\w'\u2019-]*[^\W\d_]", word) or word[0] in "'\u2019-":
            doubt(word)
    return tokens


@dataclass
class Phrase:
    """A noun phrase. link: what precedes it, one of `start`, `verb`, `look` and the keys of LINKS."""

    link: str
    start: int
    end: int = 0
    determiner: str = ""
    words: list[str] = field(default_factory=list)  # up to the first "of"
    of: list[str] | None = None  # words after it
    of_determiner: str = ""
    proper: bool = True  # every word begins with a capital
    has_part: bool = False

    @property
    def head(self) -> str:
        return self.words[-1]


def _form(verb: str, ending: str) -> str:
    """The form of a verb in `ing` or `s`: sit, tie, ride, carry give sitting, tying, riding, carries."""
    if ending == "s":
        return re.sub(r"(?<![aeiou])y$", "ie", verb) + ("es" if re.search(r"(s|x|ch|sh)$", verb) else "s")
    double = len(verb) < 5 and re.search(r"(?<![aeiou])[aeiou][bdgmnprt]$", verb)
    return re.sub(r"ie$", "y", verb).removesuffix("e") + (verb[-1] if double else "") + "ing"


_ING = {_form(verb, "ing") for verb in VERBS}
_FINITE = {_form(verb, "s") for verb in VERBS}


def _is_determiner(word: str) -> bool:
    return word in DETERMINERS or word.isdigit()


def is_plural(word: str) -> bool:
    return word in PLURALS or (word.endswith("s") and not NO_PLURAL.match(word))


def _is_adverb(word: str) -> bool:
    return word in ADVERBS or bool(ADVERB.match(word))


def _is_adjective(word: str) -> bool:
    return word in ADJECTIVES or word in MATERIALS or bool(ADVERB.match(word))


def _may_be_adjective(word: str) -> bool:
    return _is_adjective(word) or bool(ADJECTIVE.match(word))


def _word(tokens: list[WordToken], i: int) -> str:
    return tokens[i].word if i < len(tokens) else ""


def _ends(tokens: list[WordToken], i: int) -> bool:
    """Whether a noun phrase without an article cannot begin at token i."""
    word = _word(tokens, i)
    return not word or word in BETWEEN | OF | PRONOUNS | AFTER_VERBS or _is_determiner(word) or _is_adverb(word)


def _is_verb(tokens: list[WordToken], i: int, subject: Phrase | None) -> bool:
    """Whether the word is a verb. subject: the noun phrase directly before it, if any."""
    word, following = _word(tokens, i), _word(tokens, i + 1)
    object_follows = _is_determiner(following)
    ends = _ends(tokens, i + 1)
    if word in {"is", "are"}:
        goes_on = following in PREPOSITIONS or (following not in {"is", "are"} and _is_verb(tokens, i + 1, subject))
        return goes_on or doubt(word)
    if word.endswith("ing") and len(word) > 4 and "-" not in word and word not in ING_NOUNS:
        if ING_NAMES.match(f"{word} {following}"):
            return False
        if (word in _ING or (object_follows and subject)) if ends else BARE_OBJECT.match(f"{word} {following}"):
            return True
        return bool(subject or object_follows) and doubt(word)  # ", illuminating the scene"
    if word in PARTICIPLES or (word.endswith("ed") and word not in ED_NOUNS and "-" not in word):
        after = following in PREPOSITIONS | WITH or (following in AFTER_VERBS and _is_determiner(_word(tokens, i + 2)))
        return after or (bool(subject) and doubt(word))
    if subject and word in _FINITE and subject.determiner in SINGULAR | POSSESSIVE:
        return (ends if subject.determiner in SINGULAR else object_follows) or doubt(word)
    if subject and word in VERBS and is_plural(subject.head):
        return object_follows or following in PREPOSITIONS or doubt(word)
    return False


def _noun_phrase(tokens: list[WordToken], i: int, link: str) -> tuple[Phrase, int]:
    """The noun phrase that starts at token i, and the index after it."""
    phrase = Phrase(link, tokens[i].start)
    while _is_determiner(_word(tokens, i)) and (not phrase.determiner or _word(tokens, i) in NUMBERS):  # "the two cats"
        phrase.determiner, i = tokens[i].word, i + 1
    words = phrase.words
    while word := _word(tokens, i):
        noun = bool(words) and (not all(map(_is_adjective, words)) or words[-1] in MATERIALS)
        ends = word in BETWEEN | PRONOUNS | AFTER_VERBS or _is_determiner(word)
        can = word == "can" and (words or phrase.determiner) and _ends(tokens, i + 1)  # "a watering can"
        if (word in UNSURE and not (noun and word in AFTER_VERBS) and not can) or CONTRACTION.match(word):
            doubt(word)
        if word in _ING and words and not (noun or phrase.determiner) and link == "verb":
            doubt(word)  # "wearing red playing tennis"
        if word in OF:
            if not words or phrase.of is not None:
                doubt(word)
            words = phrase.of = []
            if _is_determiner(_word(tokens, i + 1)):
                phrase.of_determiner, i = tokens[i + 1].word, i + 1
        elif word == COMMA or word in AND:
            if not _joins(tokens, i, words):
                break
        elif word in {"is", "are"} and not noun:
            doubt(word)
        elif ends or (noun and (_is_adverb(word) or _is_verb(tokens, i, phrase))):
            break
        else:
            words.append(word)
            phrase.proper &= tokens[i].capital
        i += 1
    phrase.end = tokens[i - 1].end
    _check_phrase(phrase)
    return phrase, i


def _joins(tokens: list[WordToken], i: int, words: list[str]) -> bool:
    """Whether the comma or "and" at token i is inside a noun phrase: "a small, fluffy dog", "a black and white cat"."""
    joint, following, after = (_word(tokens, j) for j in range(i, i + 3))
    if joint in AND and PAIRS.search(f"{' '.join(words[-2:])} and {following}"):
        return True
    if not words or _is_determiner(following) or following in BETWEEN:
        return False
    if not all(map(_is_adjective, words)):  # "drooping orange and red flowers"
        colours = all(map(_may_be_adjective, words)) and _is_adjective(words[-1]) and _is_adjective(following)
        return colours and doubt(following)
    if joint == COMMA:
        return words[-1] in ADJECTIVES or doubt(words[-1])  # "a glass, red ..."
    if words[-1] in MATERIALS:
        if not _is_adjective(following):
            return _may_be_adjective(following) and not _ends(tokens, i + 2) and doubt(following)
        if following not in MATERIALS and (len(words) > 1 or words[-1] not in COLOUR_NOUNS):
            doubt(following)  # "a green square and red rectangle"
    ends = not after or after in BETWEEN - {COMMA} - AND
    return _may_be_adjective(following) and (not ends or doubt(following))


def _check_phrase(phrase: Phrase) -> None:
    """Raises ConceptsNotFound if the words do not look like one noun phrase."""
    for words in [phrase.words] if phrase.of is None else [phrase.words, phrase.of]:
        if not words or len(words) > 6:
            doubt(" ".join([phrase.determiner, *words]).strip())
        if len(words) == 1 and words[0].endswith("ing") and len(words[0]) > 4 and words[0] not in ING_NOUNS:
            doubt(words[0])
        no_noun = words[-1] in (ADJECTIVES | _ING | PARTICIPLES) - GROUNDS or NO_NOUN.match(words[-1])
        if no_noun and not phrase.proper:
            doubt(words[-1])
        for before, word in pairwise(words):
            if word in ADJECTIVES - GROUNDS and not (_may_be_adjective(before) or before in SHADES):
                doubt(word)  # "a woman red dress"
            if is_plural(before) and (word in VERBS or not (phrase.determiner or phrase.proper)):  # "dogs chase cats"
                doubt(word)
    words, head, determiner = phrase.words, phrase.head, phrase.determiner
    plural = is_plural(head)
    unknown = [word for word in words if not _is_adjective(word) and not word.startswith("\\")]
    plural_only = plural and not (head in PLURALS or PAIRED.match(head) or words[0] in {"few", "dozen"})
    if determiner in SINGULAR and plural_only:  # "a dog yawns"
        doubt(head)
    if (determiner in NUMBERS or (determiner.isdigit() and determiner != "1")) and not plural:
        doubt(head)
    if not determiner and (len(unknown) > 2 or (len(words) > 1 and head in _FINITE)):
        doubt(head)
    verbs = VERBS - VERB_NOUNS | {"set"}
    if (len(unknown) > 1 and head in verbs) or (phrase.of and phrase.of[-1] in verbs):
        doubt(head)  # "a man and a dog paddle on a surfboard"
    listed = phrase.link in {COMMA, "and"} and not determiner
    if listed and (re.match(r"\w{2,}ing$", words[0]) or words[0] in _FINITE):
        doubt(words[0])  # "people walking and flying kites"
    if head in PLACES_OF_THINGS:  # "on a counter top", "on the side of the sofa"
        compound = head not in GROUNDS and len(words) > 1
        if compound or (phrase.of and phrase.of[-1] not in GROUNDS | BUILDINGS | ATMOSPHERE):
            doubt(head)
    if determiner in POSSESSIVE and len(words) > 1 and (plural or head in VERBS) and not (
        _is_adjective(words[-2]) or SURE_ADJECTIVE.match(words[-2])
    ):
        doubt(head)  # "the dog yawns"
    if phrase.link == "verb" and head in VERBS - VERB_NOUNS:  # "taking a walk"
        doubt(head)
    abstract = head in ABSTRACT if head not in VAGUE else len(unknown) < 2
    if abstract or (ABSTRACTION.match(head) and head not in GROUNDS | ATMOSPHERE):
        doubt(head)


# --- the things -------------------------------------------------------------------------------------------------------


def first_phrase(tokens: list[WordToken]) -> Phrase:
    """The noun phrase that a text begins with."""
    return _noun_phrase(tokens, 0, "start")[0] if tokens else ask("It is empty")


def find_things(tokens: list[WordToken]) -> list[Phrase]:
    """The noun phrases that are things, in order."""
    things: list[Phrase] = []
    last: Phrase | None = None  # the previous noun phrase
    link, ground = "start", False  # of the next phrase, "" directly after one; whether the last was left out
    i = 2 if [token.word for token in tokens[:2]] in (["there", "is"], ["there", "are"]) else 0
    while i < len(tokens):
        word, previous = tokens[i].word, _word(tokens, i - 1) if link == "verb" else ""
        kind = next((kind for kind, words in LINKS.items() if word in words), None)
        if kind:
            if link == COMMA != kind and kind != "and" and things and things[-1].link == COMMA and not ground:
                doubt(word)  # "a dog, a golden retriever, on a sofa"
            if word == "by" and previous in {"painted", "drawn", "written", "made"}:
                doubt(word)
            looked_at = word == "at" and previous in LOOKING
            kind = "with" if word == "by" and previous.endswith("ed") else kind  # "surrounded by", as "filled with"
            link = "look" if looked_at else "verb" if kind == "with" and previous else kind
        elif word in AFTER_VERBS and (previous or (last and not link and last.link == "verb")):
            link = "over" if _is_determiner(_word(tokens, i + 1)) else doubt(word)
        elif _is_adverb(word) and (not link or (previous and (word in ADVERBS or _ends(tokens, i + 1)))):
            if not (link or word in ADVERBS or _is_verb(tokens, i + 1, last)):  # "golden wheat sways gently"
                doubt(word)
        elif last and _is_verb(tokens, i, None if link else last):
            link = "look" if word in FACING else "verb"
            i += word in {"is", "are"} and _word(tokens, i + 1) not in PREPOSITIONS
        elif word in PRONOUNS and link not in {"", "start", COMMA, "and"}:
            if len(things) < 2 and word in {"it", "them"}:
                doubt(word)
            link = ""
        elif not link:
            doubt(word)
        else:
            last, i = _noun_phrase(tokens, i, link)
            role, link = _role(last, things, ground), ""
            ground = role == "ground"
            if role == "part":
                things[-1].end, things[-1].has_part = last.end, True
            elif role == "thing":
                again = last.determiner in {"the", "another"} or (len(last.words) == 1 and not last.of)
                if again and last.head in {thing.head for thing in things}:  # "a red car, the car ..."
                    ask_twice(last.head)
                things.append(last)
            continue
        i += 1
    if tokens and link not in {"", "verb", "look", COMMA}:
        doubt(tokens[-1].word)
    return things


def _role(phrase: Phrase, things: list[Phrase], ground: bool) -> str:
    """`thing`, `part` of the previous thing, or `ground`, which is left out.

    ground: whether the previous phrase is one.
    """
    head, link, bare = phrase.head, phrase.link, not phrase.determiner
    listed, before = link in {COMMA, "and"}, things[-1] if things and not ground else None
    if head in PARTS:
        owner = before and before.link in {"start", COMMA, "and", "above", "beside"} and things[-2:][0].link != "with"
        if owner and (link == "with" or (listed and before.has_part)):
            return "part"
        compound = sum(not _is_adjective(word) for word in phrase.words) > 1  # "a tree trunk"
        return _thing(phrase, phrase.determiner in SINGULAR | NUMBERS and (compound or link in {"start", "beside"}))
    if head in VIEWER and phrase.determiner == "the":
        return "ground" if link == "look" else doubt(head)
    if head in MEDIA and (bare or link in {COMMA, "verb"} or (link == "start" and phrase.of)):
        return "ground" if link == "in" and set(phrase.words) <= STYLE else doubt(head)
    if head in ATMOSPHERE:
        if link == "start":
            return _thing(phrase, not bare)
        return "ground" if not listed or (ground and bare) else doubt(head)
    if head == "background" or (link == "with" and head in STYLE_HEADS):
        return "ground"
    if head in GROUNDS or (head in BUILDINGS and link == "in") or (phrase.words == ["moon"] and link == "on"):
        if link in {"in", "on"} or (link == "over" and (not bare or is_plural(head))) or (ground and listed and bare):
            return "ground"
        near = link == "beside" and (not bare or is_plural(head))
        return _thing(phrase, near or link in {"start", "with"} or (listed and not (bare or ground)))
    proper = phrase.proper and bare and not (things and things[-1].proper)
    if proper and link in {"in", "on", "over"}:  # "in Paris"
        return "ground"
    if link == "in":
        return _thing(phrase, head in CONTAINERS)
    if link in {"on", "over", "above", "beside"}:
        return _thing(phrase, not bare or proper or is_plural(head))
    return "thing"


def _thing(phrase: Phrase, certain: bool) -> str:
    return "thing" if certain else doubt(phrase.head)


