"""What is chosen among, on each trained model: methods, sets of captions, noises, and ways to choose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from alignment.settings import (
    AVERAGED,
    AVERAGED_HIGHEST,
    AWAY,
    AWAY_HIGHEST,
    EXCITE_HIGHER,
    HIGHEST,
    PLAIN,
    UNET,
    Method,
)

#: Captions of a set.
IMAGES = {
    "two objects": 250, "three objects": 500, "two objects, one a rare pair": 250, "two objects, left of / above": 250,
}  # fmt: skip
SETS = tuple(IMAGES)
#: The sets that thresholds are of, their captions and noises.
TUNED, TUNING_IMAGES, TUNING_NOISES = ("three objects", "two objects"), 200, 2
#: Captions of this set are also judged on previews.
PREVIEWED_CAPTIONS, PREVIEWED_IMAGES = "three objects", 250
#: Some captions have more noises than the others.
MANY_CAPTIONS, MANY_IMAGES, MANY_NOISES = "three objects", 100, 16
#: Of the ten calls, those whose scores are kept, and the one that choices are made after.
CALLS, CHOICE = (3, 4, 5, 6, 8, 10), 5
STEPS = CALLS[-1]
#: The scores of the maps' mean over all calls, which is what EBCA Trace keeps.
MEAN = "mean of all calls"
CHOSEN, LOSS = "one place each", "Attend-and-Excite's loss"
#: Rows and columns of the maps that both are read from.
FINE = 8


@dataclass(frozen=True)
class Choice:
    """tries: the most runs; share: of the tuning pictures, those below the threshold; 1 for the best of `tries`."""

    tries: int
    share: float
    score: str = CHOSEN
    call: int = CHOICE

    @property
    def name(self) -> str:
        what = f"best of {self.tries}" if self.share == 1 else f"lowest {100 * self.share:.0f} %, {self.tries} tries"
        by = "" if self.score == CHOSEN else f", by {self.score}"
        return what + by + (f", call {self.call}" if self.call != CHOICE else "")


@dataclass(frozen=True)
class Setting:
    """A method whose runs are chosen among, on some sets of captions.

    previews: steps of the short runs that noises are also judged on; has_many: whether MANY_NOISES are sampled.
    """

    method: Method
    choices: Sequence[Choice]
    sets: Sequence[str] = SETS
    noises: int = 4
    previews: Sequence[int] = ()
    has_many: bool = False

    @property
    def is_tuned(self) -> bool:
        """Whether a choice has a threshold."""
        return any(choice.share < 1 for choice in self.choices)


@dataclass(frozen=True)
class Study:
    """One trained model. images: captions of each of its sets; comments, picture: as of alignment.settings.Study."""

    settings: Mapping[str, Setting]
    images: Mapping[str, int] = field(default_factory=IMAGES.copy)
    comments: str = ""
    picture: str = ""


_PLAIN = [
    Choice(2, 0.2), Choice(2, 0.35), Choice(4, 0.2), Choice(4, 0.35), Choice(4, 0.5), Choice(2, 1), Choice(4, 1),
    Choice(4, 0.35, call=4), Choice(4, 0.35, call=6), Choice(4, 0.35, LOSS), Choice(4, 1, LOSS),
]  # fmt: skip
_EBCA = [
    Choice(2, 0.05), Choice(2, 0.1), Choice(2, 0.2), Choice(2, 0.35), Choice(4, 0.2), Choice(4, 0.35), Choice(4, 0.5),
    Choice(2, 1), Choice(3, 1), Choice(4, 1), Choice(4, 0.35, LOSS), Choice(4, 1, LOSS),
]  # fmt: skip
_RIVAL = [Choice(2, 1, LOSS), Choice(4, 1, LOSS), Choice(2, 1), Choice(4, 1)]
_THREE = ("three objects",)
#: Attend-and-Excite takes nearly twice the time, and is for U-Nets. On the transformer a higher cfg costs points: each
#: method has the cfg at which docs/alignment.md has the most right pictures of it.
STUDIES = {
    UNET: Study({
        "cfg 3": Setting(HIGHEST, _PLAIN, previews=(4,), has_many=True),
        "EBCA": Setting(AWAY_HIGHEST, _EBCA, previews=(4,), has_many=True),
        "Attend-and-Excite": Setting(EXCITE_HIGHER, _RIVAL, _THREE, noises=2),
        "averaged predictions": Setting(AVERAGED_HIGHEST, _RIVAL, _THREE),
    }),
    "transformer": Study(
        {
            "cfg 1.25": Setting(PLAIN, _PLAIN),
            "EBCA": Setting(AWAY, _EBCA),
            "averaged predictions": Setting(AVERAGED, _RIVAL, _THREE),
        },
        comments="transformer ",
        picture="_transformer",
    ),
}  # fmt: skip
