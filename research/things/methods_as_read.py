"""Edits and prompts of the things model as readers see them, beside the scorer: which findings depend on the scorer?

    .host/venv/bin/python research/things/methods_as_read.py          writes its tables into docs/things.md

The readers are a vision-language model, not people. They saw the first hundred pictures of three methods, mixed and
without their names, each with its caption, and answered two questions about each picture. It is *named right* if one
who has to name each thing with the most similar of the kinds, and objects with their colour, would name what is there
as the caption does, each once and nothing else, however badly drawn. It is *recognised* if one would do so without the
caption. Of each answer readings.json has a string of 1 and 0 for every reader, in the order of the pictures. What the
scorer says of edits is in the kept results; pictures of prompts were sampled in float32, not in bfloat16 as those of
the kept results, so what it says of them is in readings.json. The pictures themselves are not kept.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "research"))

import editing  # noqa: E402
from alignment.report import write_between  # noqa: E402
from alignment.results import Results  # noqa: E402
from bootstrap import mean_of  # noqa: E402
from things.compare_with_readings import check_model  # noqa: E402

COUNT = 100  # pictures of each method
READINGS = Path(__file__).with_name("readings.json")
DOCUMENT = REPO / "docs" / "things.md"
QUESTIONS = ("named right", "recognised")


@dataclass(frozen=True)
class Read:
    """The pictures of a method. answers: to each question, 1 or 0 of every reader [reader picture]. scored: all right
    by the scorer [picture]."""

    answers: Mapping[str, np.ndarray]
    scored: np.ndarray

    def columns(self) -> Iterator[tuple[str, np.ndarray]]:
        """Shares of pictures: by readers, of whom the mean counts, and by the scorer."""
        for question in QUESTIONS:
            yield question, self.answers[question].mean(0)
        yield "scorer", self.scored

    def agreement(self, question: str) -> float:
        return float((self.answers[question] == self.scored).mean())


def edits(of: Mapping[str, Mapping]) -> dict[str, dict[str, Read]]:
    """{edit: {method: what was read}}"""
    out = {}
    for edit, methods in of.items():
        bench, tried = editing.bench_of("things", edit, Results(editing.RESULTS), False)
        right = bench.kind.marks.index("all right")
        out[edit] = {
            method.name: Read(_answers(methods[method.name]), bench.marks(method)[right][:COUNT])
            for method in tried if method.name in methods
        }  # fmt: skip
    return out


def prompts(of: Mapping[str, Mapping]) -> dict[str, dict[str, Read]]:
    """{set of prompts: {method: what was read}}"""
    return {
        captions: {name: Read(_answers(kept), _bits(kept["scorer"])[0]) for name, kept in methods.items()}
        for captions, methods in of.items()
    }


def _answers(kept: Mapping[str, list[str]]) -> dict[str, np.ndarray]:
    return {question: _bits(kept[question]) for question in QUESTIONS}


def _bits(lines: list[str]) -> np.ndarray:
    return np.array([[*map(float, line)] for line in lines])


def table(found: Mapping[str, Mapping[str, Read]]) -> str:
    """A line for each method, then the last one, EBCA, compared with the others on the same captions and noise."""
    titles = ["images", "method", *QUESTIONS, "scorer", *(f"the scorer agrees: {question}" for question in QUESTIONS)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, methods in found.items():
        for method, read in methods.items():
            cells = [f"{100 * values.mean():.1f} %" for _, values in read.columns()]
            agree = [f"{100 * read.agreement(question):.0f} %" for question in QUESTIONS]
            lines.append(f"| {name} | {method} | {' | '.join([*cells, *agree])} |")
    for name, methods in found.items():
        *others, ours = methods
        for other in others:
            pairs = zip(methods[ours].columns(), methods[other].columns(), strict=True)
            changes = [f"{title} {mean_of([a - b]).text('+.1f', 100)}" for (title, a), (_, b) in pairs]
            lines.append(f"\n{name}, {ours} against {other}: {', '.join(changes)}.")
    return "\n".join(lines)


def overall(found: Mapping[str, Mapping[str, Read]]) -> str:
    """How often scorer and readers, and two readers, agree on all of these pictures."""
    reads = [read for methods in found.values() for read in methods.values()]
    said = [f"{question} {100 * np.mean([read.agreement(question) for read in reads]):.1f} %" for question in QUESTIONS]
    count = sum(read.scored.size for read in reads)
    text = f"On these {count} images the scorer agrees with the readers: {', '.join(said)}."
    for question in QUESTIONS:
        alike = [(one == other).mean() for read in reads for one, other in combinations(read.answers[question], 2)]
        if alike:
            text += f" Two readers agree about what is {question} in {100 * np.mean(alike):.1f} %."
    return text


def main() -> None:
    check_model()
    kept = json.loads(READINGS.read_text(encoding="utf-8"))
    for name, found in (("edits", edits(kept["edits"])), ("prompts", prompts(kept["prompts"]))):
        text = f"{table(found)}\n\n{overall(found)}"
        print(f"{name}\n\n{text}\n")
        write_between(DOCUMENT, f"{name} as read", text)


if __name__ == "__main__":
    main()
