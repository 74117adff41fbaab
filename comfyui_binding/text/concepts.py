"""The concepts of a prompt, the things that its picture has to show: found by rules, or read from the `concepts` box.

A concept is a part of the prompt in the prompt's own words, so that its tokens can be found there again:

    a red fox on a wooden table next to a vase of tulips, oil painting  ->  a red fox | a wooden table | a vase of tulips

There is no dictionary of nouns. A phrase ends at words that are no part of it: commas, "and", "with", prepositions and
verbs. What is left has to look like one noun phrase. Where that is in doubt, ConceptsNotFound asks for the box.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from .concept_words import *  # placeholder

#: A longer list is more often a list of tags than of things.
MAX_CONCEPTS = 8
#: The largest alpha of EBCA Edit Context.
MAX_STRENGTH = 10.0


@dataclass(frozen=True)
class Concept:
    """A thing that the picture has to show, and how strongly; None is the strength of the node."""

    text: str
    strength: float | None = None


class ConceptsNotFound(ValueError):
    """The prompt cannot be split with certainty."""


def concepts_of(prompt: str, box: str) -> list[Concept]:
    """The concepts in the box; where it is empty, those found in the prompt. Raises ValueError as these two do."""
    return parse_concepts(box) if box.strip() else [Concept(text) for text in find_concepts(prompt)]


def parse_concepts(box: str) -> list[Concept]:
    """The lines of the `concepts` box, `a red balloon` or `a red balloon = 0.15`; blank ones are skipped.

    Raises ValueError: no line, a line that cannot be read, a concept in two lines.
    """
    concepts = [_parse_line(line.strip()) for line in box.splitlines() if line.strip()]
    if not concepts:
        raise ValueError("The `concepts` box is empty. Write one thing a line, such as `a red balloon`.")
    if twice := _repeated([concept.text for concept in concepts]):
        raise ValueError(f"`{twice}` is in two lines of the `concepts` box. Remove one of them.")
    return concepts


def _parse_line(line: str) -> Concept:
    if "=" not in line:
        return Concept(line)
    text, _, number = (part.strip() for part in line.rpartition("="))
    if not text:
        raise ValueError(f"The line `{line}` names no concept. Write it as in `a red balloon = 0.15`.")
    try:
        strength = float(number)
    except ValueError:
        strength = math.nan
    if not 0 <= strength <= MAX_STRENGTH:  # False for nan too
        raise ValueError(
            f"The strength `{number}` of `{text}` is not a number from 0 to {MAX_STRENGTH:g}. "
            "Write it as in `a red balloon = 0.15`."
        )
    return Concept(text, strength)


def describe(concepts: list[Concept], strength: float) -> str:
    """A table to be read: each concept with its strength, which is `strength` where it has none of its own."""
    rows = [f"{strength if c.strength is None else c.strength:<8g}  {c.text}" for c in concepts]
    return "\n".join(["strength  concept", *rows])


def find_concepts(prompt: str) -> list[str]:
    """The things that a prompt names, in its order and its words.

    Weights are dropped: `(a red car:1.3)` is `a red car`. They say how loud words are in the prompt; how strong a concept
    is composed in is said in the `concepts` box.

    Raises ConceptsNotFound: the prompt is empty, a list of tags, not in English, or cannot be split with certainty.
    """
    text = _without_style(_without_markup(prompt))
    things = _things(_tokens(text))
    _check_list(things)
    texts = [text[thing.start : thing.end] for thing in things]
    if twice := _repeated([text.lower() for text in texts]):
        _ask(f"The prompt names `{twice}` twice, and concepts have to differ")
    return texts


def _repeated(texts: list[str]) -> str | None:
    return next((text for i, text in enumerate(texts) if text in texts[:i]), None)


def _ask(reason: str) -> NoReturn:
    raise ConceptsNotFound(f"{reason}. Write the concepts in the `concepts` box, one a line, such as `a red balloon`.")


def _doubt(word: str) -> NoReturn:
    _ask(f"The prompt cannot be split into concepts with certainty at `{word}`")


# --- the text ---------------------------------------------------------------------------------------------------------


def _without_markup(prompt: str) -> str:
    """The prompt without weights, brackets, LoRAs, line breaks and BREAK. Asks where it is a list of tags."""
    if not prompt.strip():
        _ask("The prompt is empty")
    if re.search(r"[{}|]|__\S+__", prompt):
        _ask("The prompt has alternatives or wildcards, and what they become is not known here")
    if any(c.isalpha() and not unicodedata.name(c, "LATIN").startswith("LATIN") for c in prompt):
        _ask("The prompt is not in English, the one language that is split into concepts")
    text = re.sub(r"<[^<>]*>", " ", prompt)
    text = re.sub(r"(?<!\\):\s*[\d.]+\s*(?=[)\]])", "", text)
    text = re.sub(r"(?<!\\)[()\[\]]", "", text)
    text = re.sub(r"\bBREAK\b|[\n\r;]|\.(?=\s)", ", ", text)
    text = re.sub(r"\s[&+]\s", " and ", text)
    if TAGS.search(re.sub(r"embedding:[^\s,]+", "", text.lower())):
        _ask("The prompt is a list of tags, and which of them are things is not known here")
    return " ".join(text.split()).rstrip(" .,!")


_MEDIA = "|".join(sorted(MEDIA | {"close up", "still life"}))
_BEGINNING = re.compile(rf"(?i)((?:black and white |[\w-]+ ){{0,5}}?)({_MEDIA})s? (?:of|(?<=scene |image )with) (?=\w)")
_MANNER = re.compile(r"(?i)\s*\b(in the (style|manner) of|inspired by|art by)\b(?!.*\b(and|with) (a|an|the)\b).*$")
_ARTIST = re.compile(r"\s*\bby( (and|van|von|der|de|da|of|the)\b| [A-Z][\w.'-]*)+$")


def _without_style(text: str) -> str:
    """The text without what says how the picture is made: "a photo of", "oil painting", "in the style of ..."."""
    begin = _BEGINNING.match(text)
    if begin and not set(begin[1].lower().replace("black and white", "").split()) & (BETWEEN | OF | UNSURE):
        rest = text[begin.end() :]
        is_object = begin[2].lower() in OBJECTS and set(rest.lower().split()) & ON_A_WALL
        if is_object or re.search(rf"(?i)\b({_MEDIA})s? of\b", rest):  # "a photo of a cat and a photo of a dog"
            _doubt(begin[2])
        text = rest
    parts = [_ARTIST.sub("", _MANNER.sub("", part)).strip() for part in text.split(",")]
    return ", ".join(part for i, part in enumerate(parts) if not _is_style(part.lower().split(), first=i == 0))


def _is_style(words: list[str], first: bool) -> bool:
    """Whether a part between commas says how the picture is made, or is nothing but embeddings."""
    if all(word in STYLE or word.rstrip("mk").isdigit() or word.startswith("embedding:") for word in words):
        return True
    if set(words) & DETERMINERS:
        return False
    if words[0] == "by" and len(words) < 5:
        return True
    if words[-1] not in MEDIA | STYLE_HEADS or set(words) & (BETWEEN | OF):
        return False
    return not first or _doubt(words[-1])


class Token(NamedTuple):
    word: str  # lower case; several words where they mean one, as "next to"
    start: int
    end: int
    capital: bool


_SEVERAL = (w for w in BETWEEN | OF | ADVERBS | PRONOUNS if " " in w)
_TOKEN = re.compile(
    rf"\b(?:{'|'.join(sorted(_SEVERAL, key=len, reverse=True))})\b|,|embedding:[^\s,]+|\\\([^)]*\)|[\w'’-]+|\S", re.I
)


def _tokens(text: str) -> list[Token]:
    tokens = [Token(m[0].lower(), *m.span(), m[0][0].isupper()) for m in _TOKEN.finditer(text)]
    for word, *_ in tokens:
        if word in FOREIGN:
            _ask(f"The prompt is not in English, the one language that is split into concepts (`{word}`)")
        if not re.match(r",|\\\(|[\w'’-]", word):
            _doubt(word)
    return tokens


# --- the grammar ------------------------------------------------------------------------------------------------------


@dataclass
class Phrase:
    """A noun phrase. link is what it hangs on: `start`, `verb` or a key of LINKS."""

    link: str
    start: int
    end: int = 0
    determiner: str = ""
    words: list[str] = field(default_factory=list)  # up to the first "of"
    of: list[str] | None = None  # and behind it
    of_determiner: str = ""
    proper: bool = True  # every word begins with a capital
    has_part: bool = False

    @property
    def head(self) -> str:
        return self.words[-1]


def _form(verb: str, ending: str) -> str:
    """sit, tie, ride, carry with `ing` or `s`: sitting, tying, riding, carries."""
    if ending == "s":
        return re.sub(r"(?<![aeiou])y$", "ie", verb) + ("es" if re.search(r"(s|x|ch|sh)$", verb) else "s")
    double = len(verb) < 5 and re.search(r"(?<![aeiou])[aeiou][bdgmnprt]$", verb)
    return re.sub(r"ie$", "y", verb).removesuffix("e") + (verb[-1] if double else "") + "ing"


_ING = {_form(verb, "ing") for verb in VERBS}
_FINITE = {_form(verb, "s") for verb in VERBS}


def _is_determiner(word: str) -> bool:
    return word in DETERMINERS or word.isdigit()


def _is_plural(word: str) -> bool:
    return word in PLURALS or (word.endswith("s") and not NO_PLURAL.match(word))


def _is_adverb(word: str) -> bool:
    return word in ADVERBS or bool(ADVERB.match(word))


def _is_adjective(word: str) -> bool:
    return word in ADJECTIVES or word in MATERIALS or bool(ADVERB.match(word))


def _may_be_adjective(word: str) -> bool:
    return _is_adjective(word) or bool(ADJECTIVE.match(word))


def _word(tokens: list[Token], i: int) -> str:
    return tokens[i].word if i < len(tokens) else ""


def _is_verb(tokens: list[Token], i: int, subject: Phrase | None) -> bool:
    """Whether the word says what a thing does; subject is the noun phrase right before it, if there is one."""
    word, following = _word(tokens, i), _word(tokens, i + 1)
    object_follows = _is_determiner(following)
    ends = object_follows or not following or following in BETWEEN | PRONOUNS | AFTER_VERBS or _is_adverb(following)
    if word in {"is", "are"}:
        return following in PREPOSITIONS or following.endswith(("ing", "ed")) or _doubt(word)
    if word.endswith("ing") and len(word) > 4 and "-" not in word and (word not in ING_NOUNS or (word in _ING and ends)):
        if word in BARE_OBJECT or (ends and word in _ING) or (object_follows and subject):
            return True
        return bool(subject or object_follows) and _doubt(word)  # ", illuminating the scene"
    if word in PARTICIPLES or (word.endswith("ed") and word not in ED_NOUNS and "-" not in word):
        after = following in PREPOSITIONS | WITH or (following in AFTER_VERBS and _is_determiner(_word(tokens, i + 2)))
        return after or (bool(subject) and _doubt(word))
    if subject and word in _FINITE and subject.determiner in SINGULAR | POSSESSIVE:
        return ends if subject.determiner in SINGULAR else object_follows or _doubt(word)
    if subject and word in VERBS and _is_plural(subject.head):
        return object_follows or following in PREPOSITIONS or _doubt(word)
    return False


def _noun_phrase(tokens: list[Token], i: int, link: str) -> tuple[Phrase, int]:
    """The noun phrase that begins at token i, and the index after it."""
    phrase = Phrase(link, tokens[i].start)
    while _is_determiner(_word(tokens, i)) and (not phrase.determiner or _word(tokens, i) in NUMBERS):  # "the two cats"
        phrase.determiner, i = tokens[i].word, i + 1
    words = phrase.words
    while word := _word(tokens, i):
        noun = bool(words) and (not all(map(_is_adjective, words)) or words[-1] in MATERIALS)
        if word in UNSURE and not (noun and word in AFTER_VERBS) or CONTRACTION.match(word):
            _doubt(word)
        if word in OF:
            if not words or phrase.of is not None:
                _doubt(word)
            words = phrase.of = []
            if _is_determiner(_word(tokens, i + 1)):
                phrase.of_determiner, i = tokens[i + 1].word, i + 1
        elif word == COMMA or word in AND:
            if not _joins(tokens, i, words):
                break
        elif word in BETWEEN | PRONOUNS | AFTER_VERBS or _is_determiner(word):
            break
        elif noun and (_is_adverb(word) or _is_verb(tokens, i, phrase)):
            break
        else:
            words.append(word)
            phrase.proper &= tokens[i].capital
        i += 1
    phrase.end = tokens[i - 1].end
    _check_phrase(phrase)
    return phrase, i


def _joins(tokens: list[Token], i: int, words: list[str]) -> bool:
    """Whether the comma or "and" at token i is inside a noun phrase: "a small, fluffy dog", "a black and white cat"."""
    joint, following, after = (_word(tokens, j) for j in range(i, i + 3))
    if joint in AND and PAIRS.search(f"{' '.join(words[-2:])} and {following}"):
        return True
    if not words or not all(map(_is_adjective, words)) or _is_determiner(following) or following in BETWEEN:
        return False
    if joint == COMMA:
        return words[-1] in ADJECTIVES or _doubt(words[-1])  # "a glass, red ..."
    if words[-1] in MATERIALS and not _is_adjective(following):
        return False
    ends = not after or after in BETWEEN - {COMMA} - AND
    return _may_be_adjective(following) and (not ends or _doubt(following))


def _check_phrase(phrase: Phrase) -> None:
    """Asks where the words do not look like one noun phrase."""
    for words in [phrase.words] if phrase.of is None else [phrase.words, phrase.of]:
        if not words or len(words) > 6:
            _doubt(" ".join([phrase.determiner, *words]).strip())
        if not phrase.proper and (words[-1] in (ADJECTIVES | _ING) - GROUNDS or NO_NOUN.match(words[-1])):
            _doubt(words[-1])
        for before, word in zip(words, words[1:]):
            if word in ADJECTIVES - GROUNDS and not (_may_be_adjective(before) or before in SHADES):  # "a woman red dress"
                _doubt(word)
            if _is_plural(before) and (word in VERBS or not phrase.determiner):  # "dogs chase cats"
                _doubt(word)
    words, head, determiner = phrase.words, phrase.head, phrase.determiner
    plural = _is_plural(head)
    unknown = [word for word in words if not _is_adjective(word) and not word.startswith("\\")]
    if determiner in SINGULAR and plural and head not in PLURALS and words[0] not in {"few", "dozen"}:  # "a dog yawns"
        _doubt(head)
    if (determiner in NUMBERS or (determiner.isdigit() and determiner != "1")) and not plural:
        _doubt(head)
    if not determiner and (len(unknown) > 2 or (len(unknown) == 2 and head in VERBS)):
        _doubt(head)
    if determiner in POSSESSIVE and plural and len(words) > 1 and not _may_be_adjective(words[-2]):  # "the dog yawns"
        _doubt(head)
    if head in ABSTRACT and len(unknown) < 2:
        _doubt(head)


# --- the things -------------------------------------------------------------------------------------------------------


def _things(tokens: list[Token]) -> list[Phrase]:
    """The noun phrases that are things, in order."""
    things: list[Phrase] = []
    last: Phrase | None = None  # the noun phrase read last
    link, ground = "start", False  # what the next one hangs on, "" right after one; whether the last one was left out
    i = 2 if [token.word for token in tokens[:2]] in (["there", "is"], ["there", "are"]) else 0
    while i < len(tokens):
        word, previous = tokens[i].word, _word(tokens, i - 1) if link == "verb" else ""
        kind = next((kind for kind, words in LINKS.items() if word in words), None)
        if kind:
            if link == COMMA != kind and kind != "and" and things and things[-1].link == COMMA and not ground:
                _doubt(word)  # "a dog, a golden retriever, on a sofa"
            looked_at = (word == "at" and previous in LOOKING) or (word == "by" and previous.endswith("ed"))
            link = "verb" if looked_at else kind
        elif previous and word in AFTER_VERBS and _is_determiner(_word(tokens, i + 1)):
            link = "over"
        elif (not link and _is_adverb(word)) or (previous and word in ADVERBS):
            pass
        elif last and _is_verb(tokens, i, None if link else last):
            link = "verb"
        elif word in PRONOUNS and link not in {"", "start", COMMA, "and"} and (len(things) > 1 or word not in {"it", "them"}):
            link = ""
        elif not link:
            _doubt(word)
        else:
            last, i = _noun_phrase(tokens, i, link)
            role, link = _role(last, things, ground), ""
            ground = role == "ground"
            if role == "part":
                things[-1].end, things[-1].has_part = last.end, True
            elif role == "thing":
                if last.determiner in {"the", "another"} and last.head in {thing.head for thing in things}:
                    _doubt(last.head)
                things.append(last)
            continue
        i += 1
    if link not in {"", "verb", COMMA}:
        _doubt(tokens[-1].word if tokens else "")
    return things


def _role(phrase: Phrase, things: list[Phrase], ground: bool) -> str:
    """`thing`, `part` of the thing before it, or `ground`, which is left out. ground: the phrase before was one."""
    head, link, bare = phrase.head, phrase.link, not phrase.determiner
    listed, before = link in {COMMA, "and"}, things[-1] if things and not ground else None
    if head in PARTS:
        owner = before and (before.link in {"start", COMMA, "and", "above", "beside"})
        if owner and (link == "with" or (listed and before.has_part)):
            return "part"
        return _thing(phrase, phrase.determiner in SINGULAR | NUMBERS and link in {"start", "beside"})
    if head in VIEWER and link in {"in", "verb"}:
        return "ground"
    if head in ATMOSPHERE:
        if link == "start":
            return _thing(phrase, not bare)
        return "ground" if not listed or (ground and bare) else _doubt(head)
    if (link == "with" and head in STYLE_HEADS) or (link == "in" and bare and head in MEDIA):
        return "ground"
    if head in GROUNDS or (head in BUILDINGS and link == "in") or (head == "moon" and link == "on"):
        if link in {"in", "on", "over"} or (ground and listed and bare):
            return "ground"
        return _thing(phrase, link not in {"verb", "above"} and not (listed and (bare or ground)))
    proper = phrase.proper and bare and not (things and things[-1].proper)
    if proper and link in {"in", "on", "over"}:  # "in Paris"
        return "ground"
    if link == "in":
        return _thing(phrase, head in CONTAINERS)
    if link in {"on", "over", "above", "beside"}:
        return _thing(phrase, not bare or proper or _is_plural(head))
    return "thing"


def _thing(phrase: Phrase, certain: bool) -> str:
    return "thing" if certain else _doubt(phrase.head)


def _check_list(things: list[Phrase]) -> None:
    """Asks where the things as a whole are not certain."""
    if not things:
        _ask("The prompt names no thing")
    if len(things) > MAX_CONCEPTS:
        _ask(f"The prompt has {len(things)} parts, more than the {MAX_CONCEPTS} that are split")
    for before, thing, after in zip(things, things[1:], [*things[2:], None]):
        if thing.link not in {COMMA, "and"}:
            continue
        bare, head = not thing.determiner, thing.head
        if before.of_determiner or (bare and before.of):
            _doubt(head)  # "a statue of a lion and a tiger", "a bowl of apples and oranges"
        if thing.link == COMMA and bare:  # tags, unless "and" ends the list; "a rickety, old bridge"
            ends_by_and = after and after.link in {COMMA, "and"} and not after.determiner
            adjective = before.determiner and len(before.words) == 1 and ADJECTIVE.match(before.head)
            if not ends_by_and or adjective:
                _doubt(head)
        if thing.link == "and" and bare and before.determiner in SINGULAR | POSSESSIVE:
            compound = len(thing.words) > 1 and thing.words[0] not in ADJECTIVES  # "a ham and cheese sandwich"
            shared = len(thing.words) == 1 and not _is_plural(head) and len(before.words) > 1  # "a black cat and dog"
            if compound or shared:
                _doubt(head)
