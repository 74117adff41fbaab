"""The tables of docs/choosing.md, from the runs that were recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignment.report import ERRORS, is_right, percent
from alignment.results import Cell, Results, time_key
from alignment.settings import AVERAGED_HIGHEST, EXCITE_HIGHER, HIGHEST, Method
from bootstrap import mean_of, statistic_of
from choosing.policies import Cost, auc, auc_within, ranked, rerolled
from choosing.runs import CALLS, CHOICE, IMAGES, MEAN, SETTINGS, Runs, recorded
from choosing.scores import ALTERNATIVES, CHOSEN, LOSS, SCORES

TUNED = ("three objects", "two objects")
TUNING_IMAGES, TUNING_NOISES = 200, 2
STEPS = CALLS[-1]
FEWEST = 10  # pictures with an error, for a figure of it


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


CHOICES = {
    "cfg 3": [
        Choice(2, 0.2), Choice(2, 0.35), Choice(4, 0.2), Choice(4, 0.35), Choice(4, 0.5), Choice(2, 1), Choice(4, 1),
        Choice(4, 0.35, call=4), Choice(4, 0.35, call=6), Choice(4, 0.35, LOSS), Choice(4, 1, LOSS),
    ],
    "EBCA": [
        Choice(2, 0.1), Choice(2, 0.2), Choice(2, 0.35), Choice(4, 0.2), Choice(4, 0.35), Choice(4, 0.5), Choice(2, 1),
        Choice(3, 1),
        Choice(4, 1), Choice(4, 0.35, LOSS), Choice(4, 1, LOSS),
    ],
    "Attend-and-Excite": [Choice(2, 1, LOSS), Choice(4, 1, LOSS), Choice(2, 1), Choice(4, 1)],
}  # fmt: skip


class Recordings:
    """What the results files hold, and what follows of it."""

    def __init__(self, results: Results, alignment: Results, noises: int, images: int | None = None):
        """images: captions of every set, by default IMAGES."""
        self._results, self._alignment, self._noises, self._images = results, alignment, noises, images

    def runs(self, setting: str, captions: str) -> Runs | None:
        return recorded(self._results, SETTINGS[setting], captions, self._count(captions), self._noises)

    def tuning(self, setting: str, captions: str) -> Runs | None:
        return recorded(self._results, SETTINGS[setting], captions, TUNING_IMAGES, TUNING_NOISES, is_tuning=True)

    def cost(self, setting: str, call: int) -> Cost:
        """What a method does beyond the plain model, it does in the first half of the steps."""
        extra = 0.0 if SETTINGS[setting] is HIGHEST else self._time(SETTINGS[setting]) - 1
        return Cost(call / STEPS + extra * min(1, 2 * call / STEPS), 1 + extra)

    def _time(self, method: Method) -> float:
        return float(np.median(self._alignment.get(time_key(method))["ratios"]))

    def threshold(self, setting: str, captions: str, choice: Choice) -> float:
        """Of tuning pictures of so many objects; infinite for the best of all tries. NaN where there are none."""
        if choice.share == 1:
            return np.inf
        tuning = self.tuning(setting, captions if captions in TUNED else TUNED[1])
        return float(np.quantile(tuning.scores[choice.score][choice.call], choice.share)) if tuning else np.nan

    def one_run(self, method: Method, captions: str) -> np.ndarray | None:
        """Right or not [caption, 1], as `bench alignment` sampled it with noise 0."""
        line = self._alignment.get(Cell(captions, method.kind, method.settings, False, 500).key)
        return None if line is None else is_right(line["labels"])[: self._count(captions), None]

    def _count(self, captions: str) -> int:
        return self._images or IMAGES[captions]

    def rivals(self, captions: str) -> Iterator[tuple[str, np.ndarray]]:
        """Right or not [caption, noise] of one run of each other method, with all noises that there are."""
        for name, method in (("EBCA", SETTINGS["EBCA"]), ("Attend-and-Excite", EXCITE_HIGHER),
                             ("averaged predictions", AVERAGED_HIGHEST)):  # fmt: skip
            runs = self.runs(name, captions) if name in SETTINGS else None
            found = runs.right if runs else self.one_run(method, captions)
            if found is not None:
                yield name, found


def prediction(recordings: Recordings, sets: Sequence[str]) -> str:
    """How well the score tells right pictures from others, after each call."""
    head = ["captions", "method", "pictures", "right", *(f"call {call}" for call in CALLS[:-1]), "end", MEAN,
            f"call {CHOICE}, within a caption", f"call {CHOICE}, by error: missing, extra, unreadable",
            f"call {CHOICE}, {LOSS}"]  # fmt: skip
    rows = []
    for captions in sets:
        for setting in SETTINGS:
            runs = recordings.runs(setting, captions)
            if runs is None:
                continue
            right, scores = runs.right, runs.scores[CHOSEN]
            cells = aucs(scores, right, (*CALLS, MEAN))
            within = f"{auc_within(scores[CHOICE], right):.2f}" if runs.noises > 1 else "-"
            loss = f"{auc(runs.scores[LOSS][CHOICE].ravel(), right.ravel()):.2f}"
            errors = ", ".join(by_error(runs))
            rows.append(
                [captions, setting, str(right.size), f"{100 * right.mean():.1f} %", *cells, within, errors, loss]
            )
    return markdown(head, rows)


def aucs(scores: Mapping[int | str, np.ndarray], right: np.ndarray, calls: Sequence[int | str]) -> list[str]:
    """After each call, with an interval after CHOICE: captions are drawn again, with all their noises."""
    cells = {call: f"{auc(scores[call].ravel(), right.ravel()):.2f}" for call in calls}
    found = statistic_of(lambda drawn: auc(scores[CHOICE][drawn].ravel(), right[drawn].ravel()), len(right))
    cells[CHOICE] += f" ({found.low:.2f} to {found.high:.2f})"
    return list(cells.values())


def by_error(runs: Runs) -> Iterator[str]:
    """After CHOICE, right pictures against those with one kind of error alone; a dash where there are few."""
    for letter in (ERRORS[name] for name in ("missing", "extra", "unreadable")):
        others = runs.letters == letter
        of = (runs.right > 0) | others
        yield f"{auc(runs.scores[CHOSEN][CHOICE][of], runs.right[of]):.2f}" if others.sum() >= FEWEST else "-"


def candidates(recordings: Recordings) -> str:
    """The same for all scores, on the tuning captions."""
    rows = []
    for captions in TUNED:
        for setting in SETTINGS:
            runs = recordings.tuning(setting, captions)
            for name in (*SCORES, *ALTERNATIVES) if runs else ():
                right, scores = runs.right, runs.scores[name]
                cells = aucs(scores, right, CALLS)
                rows.append([captions, f"{setting}, {100 * right.mean():.1f} % right", name, *cells])
    return markdown(["captions", "method", "score", *(f"call {call}" for call in CALLS[:-1]), "end"], rows)


def choices(recordings: Recordings, captions: str) -> str:
    """A line for each way to choose among the runs of one set of captions."""
    rivals = dict(recordings.rivals(captions))
    head = ["method", "choice", "right", "time", "over one run", *(f"over {name}" for name in rivals)]
    rows = []
    for setting, among in CHOICES.items():
        runs = recordings.runs(setting, captions)
        if runs is None:
            continue
        once = runs.right
        rows.append([setting, "one run", *_line(once, recordings.cost(setting, CHOICE).whole, {"": once} | rivals)])
        for choice in among:
            threshold = recordings.threshold(setting, captions, choice)
            if runs.noises < choice.tries or np.isnan(threshold):
                continue
            scores, cost = runs.scores[choice.score][choice.call], recordings.cost(setting, choice.call)
            right, time = rerolled(scores, runs.right, choice.tries, threshold, cost)
            name = choice.name if choice.share == 1 else f"{choice.name} (below {threshold:.2f})"
            rows.append([setting, name, *_line(right, time.mean(), {"": once} | rivals)])
        if runs.noises > 1:
            best = runs.right.max(1)
            rows.append([setting, f"*a perfect judge, best of {runs.noises}*", f"{100 * best.mean():.1f} %"])
    once = [[name, "one run", f"{100 * found.mean():.1f} %"] for name, found in rivals.items() if name not in SETTINGS]
    return markdown(head, rows + once)


def _line(right: np.ndarray, time: float, others: Mapping[str, np.ndarray]) -> list[str]:
    """Share, time, and the differences to others; a dash where there is none.

    right and others [caption, noise]: pairs have the caption and the noise of the first try in common.
    """
    compared = []
    for other in others.values():
        shared = min(right.shape[1], other.shape[1])
        difference = (right[:, :shared] - other[:, :shared]).mean(1)
        compared.append(percent(mean_of([difference])) if difference.any() else "-")
    return [f"{100 * right.mean():.1f} %", f"{time:.2f}", *compared]


def ranking(recordings: Recordings, sets: Sequence[str]) -> str:
    """How often the first and the last of all finished pictures of a caption are right."""
    rows = []
    for captions in sets:
        for setting in SETTINGS:
            runs = recordings.runs(setting, captions)
            if runs is None or runs.noises < 2:
                continue
            by = {"end": runs.scores[CHOSEN][STEPS], MEAN: runs.scores[CHOSEN][MEAN], LOSS: runs.scores[LOSS][STEPS]}
            first = [f"{100 * ranked(scores, runs.right).mean():.1f} %" for scores in by.values()]
            last = f"{100 * ranked(by[MEAN], runs.right, -1).mean():.1f} %"
            rows.append([captions, setting, str(runs.noises), f"{100 * runs.right.mean():.1f} %", *first, last,
                         f"{100 * runs.right.max(1).mean():.1f} %"])  # fmt: skip
    head = ["captions", "method", "pictures of a caption", "at random", "first, by the last call",
            f"first, by the {MEAN}", f"first, by {LOSS}", f"last, by the {MEAN}", "a perfect judge"]  # fmt: skip
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what a row lacks is a dash."""
    lines = [head, ["---"] * len(head), *([*row, *["-"] * (len(head) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
