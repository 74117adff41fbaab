"""Whether what was found on the shapes model holds on the things model: one table."""

from __future__ import annotations

from dataclasses import dataclass

from alignment import settings as s
from alignment.columns import RIGHT, is_one_of, percent
from alignment.results import Cell, Results
from alignment.settings import STUDIES, UNET, Method
from bootstrap import Estimate, mean_of

REPEATED_ON = "things"

Pair = tuple[Method, Method]
"""A method and what it is compared with."""


@dataclass(frozen=True)
class Claim:
    """A finding of docs/alignment.md.

    expected: 1 for a gain, -1 for a loss, 0 for no difference. shapes, things: what shows it on either model.
    letters: of the pictures that are counted; by default the right ones.
    """

    text: str
    expected: int
    shapes: Pair
    things: Pair
    letters: str = RIGHT

    def holds(self, found: Estimate) -> str:
        """What an interval says of it."""
        sign = (found.low > 0) - (found.high < 0)
        if sign == self.expected:
            return "yes" if sign else "no difference here either"
        return "no" if sign else "not shown"


CLAIMS = [
    Claim("A higher cfg helps", 1, (s.HIGHEST, s.PLAIN), (s.THINGS_HIGHER, s.PLAIN)),
    Claim("EBCA Concepts helps, compared with the same cfg", 1,
          (s.AWAY_HIGHEST, s.HIGHEST), (s.THINGS_CONCEPTS, s.THINGS_HIGHER)),
    Claim("... with fewer things that nobody asked for (share of images)", -1,
          (s.AWAY_HIGHEST, s.HIGHEST), (s.THINGS_CONCEPTS, s.THINGS_HIGHER), letters="e"),
    Claim("Each object composed in helps by itself", 1,
          (s.COMPOSED, s.HIGHER), (s.THINGS_COMPOSED, s.THINGS_HIGHER)),
    Claim("The empty prompt removed as well makes no difference to that", 0,
          (s.AWAY, s.COMPOSED), (s.THINGS_CONCEPTS, s.THINGS_COMPOSED)),
    Claim("The norm term in the first half helps, compared with the same cfg", 1,
          (s.NORM_EARLY, s.HIGHER), (s.THINGS_NORM, s.THINGS_HIGHER)),
    Claim("The update with the authors' gammas makes no difference", 0,
          (s.AUTHORS, s.PLAIN), (s.AUTHORS, s.PLAIN)),
    Claim("Attend-and-Excite does as well as EBCA Concepts", 0,
          (s.AWAY_HIGHEST, s.EXCITE_HIGHER), (s.THINGS_CONCEPTS, s.THINGS_EXCITE)),
    Claim("Averaged predictions do as well as EBCA Concepts", 0,
          (s.AWAY_HIGHEST, s.AVERAGED_HIGHEST), (s.THINGS_CONCEPTS, s.THINGS_AVERAGED)),
    Claim("Prompt weighting loses, compared with the same cfg", -1,
          (s.WORDS_HIGHER, s.HIGHER), (s.THINGS_WORDS, s.THINGS_HIGHER)),
]  # fmt: skip


@dataclass(frozen=True)
class Sampled:
    """Results of one model, and how many images a cell has."""

    results: Results
    images: int


def table(on_shapes: Sampled, on_things: Sampled) -> str:
    """A line for each claim: the changes in percentage points on both models, and whether it holds on things."""
    lines = ["| found on shapes | shapes | things | holds on things |", "|---|---|---|---|"]
    for claim in CLAIMS:
        first = change(claim.letters, UNET, claim.shapes, on_shapes)
        repeated = change(claim.letters, REPEATED_ON, claim.things, on_things)
        cells = [percent(found) if found else "-" for found in (first, repeated)]
        lines.append(f"| {claim.text} | {' | '.join(cells)} | {claim.holds(repeated) if repeated else '-'} |")
    return "\n".join(lines)


def change(letters: str, model: str, pair: Pair, sampled: Sampled) -> Estimate | None:
    """The share with these letters, less that of the other method on the same captions and noise: mean over all
    sets; None where one is not sampled."""
    differences = []
    for captions in STUDIES[model].scored.sets:
        cells = [Cell(captions, one.kind, one.settings, False, sampled.images, model) for one in pair]
        found = [sampled.results.get(cell.key) for cell in cells]
        if None in found:
            return None
        ours, other = (is_one_of(line["labels"], letters) for line in found)
        differences.append(ours - other)
    return mean_of(differences)
