"""Whether what was found on the shapes U-Net holds on the things model: one table."""

from __future__ import annotations

from dataclasses import dataclass

from alignment import columns
from alignment import settings as s
from alignment.columns import RIGHT, percent
from alignment.results import Results
from alignment.settings import STUDIES, UNET, Method
from bootstrap import Estimate

REPEATED_ON = "things"

Pair = tuple[Method, Method]
"""A method and what it is compared with."""


@dataclass(frozen=True)
class Claim:
    """A finding of docs/alignment.md.

    expected: 1 for a gain, -1 for a loss, 0 where no difference is shown. shapes, things: the methods of either model,
    the second of which the first is compared with. letters: of the pictures that are counted; by default the right
    ones.
    """

    text: str
    expected: int
    shapes: Pair
    things: Pair
    letters: str = RIGHT

    def holds(self, found: Estimate) -> str:
        """What an interval says of it."""
        if found.side == self.expected:
            return "yes" if self.expected else "none shown here either"
        return "no" if found.is_clear else "not shown"


CLAIMS = [
    Claim("A higher cfg gains", 1, (s.HIGHEST, s.PLAIN), (s.THINGS_HIGHER, s.PLAIN)),
    Claim("EBCA Concepts gains on the same cfg", 1,
          (s.AWAY_HIGHEST, s.HIGHEST), (s.THINGS_CONCEPTS, s.THINGS_HIGHER)),
    Claim("EBCA Concepts leaves fewer images with something extra than the same cfg (share of these)", -1,
          (s.AWAY_HIGHEST, s.HIGHEST), (s.THINGS_CONCEPTS, s.THINGS_HIGHER), letters="e"),
    Claim("Each object composed in gains on the same cfg", 1,
          (s.COMPOSED, s.HIGHER), (s.THINGS_COMPOSED, s.THINGS_HIGHER)),
    Claim("The empty prompt removed as well, in the first half: no difference shown", 0,
          (s.AWAY, s.COMPOSED), (s.THINGS_CONCEPTS, s.THINGS_COMPOSED)),
    Claim("The norm term in the first half gains on the same cfg", 1,
          (s.NORM_EARLY, s.HIGHER), (s.THINGS_NORM, s.THINGS_HIGHER)),
    Claim("The norm term loses at the usual cfg", -1, (s.NORM, s.PLAIN), (s.NORM, s.PLAIN)),
    Claim("The attention term loses at 0.1", -1, (s.ATTENTION, s.PLAIN), (s.ATTENTION, s.PLAIN)),
    Claim("The update with the authors' gammas: no difference shown", 0,
          (s.AUTHORS, s.PLAIN), (s.AUTHORS, s.PLAIN)),
    Claim("EBCA Concepts compared with Attend-and-Excite: no difference shown", 0,
          (s.AWAY_HIGHEST, s.EXCITE_HIGHER), (s.THINGS_CONCEPTS, s.THINGS_EXCITE)),
    Claim("EBCA Concepts compared with averaged predictions: no difference shown", 0,
          (s.AWAY_HIGHEST, s.AVERAGED_HIGHEST), (s.THINGS_CONCEPTS, s.THINGS_AVERAGED)),
    Claim("Prompt weighting loses to the same cfg", -1,
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
    """What columns.change says of a pair over all sets; None where one is not sampled."""
    both = [sampled.results.labels(one, model, STUDIES[model].scored.sets, sampled.images) for one in pair]
    return None if None in both else columns.change(*both, letters)
