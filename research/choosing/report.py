"""The tables of docs/choosing.md, from the runs that were recorded."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from alignment.columns import is_right, percent
from alignment.results import Cell, Results, time_key
from bootstrap import mean_of, statistic_of
from choosing.policies import Cost, auc, auc_within, ranked, rerolled
from choosing.runs import RunCell, Runs, cell, recorded
from choosing.settings import (
    CALLS,
    CHOICE,
    CHOSEN,
    LOSS,
    MANY_CAPTIONS,
    MANY_IMAGES,
    MANY_NOISES,
    MEAN,
    PREVIEWED_IMAGES,
    STEPS,
    STUDIES,
    TUNED,
    TUNING_IMAGES,
    TUNING_NOISES,
    Choice,
    Setting,
)
from worlds import SHAPES

FEWEST = 10  # pictures with an error, for a figure of it
THRESHOLDS = (-0.2, -0.1, 0.0, 0.1, 0.2, 0.4, 0.6)
PREVIEWED = (2, 4)  # noises of which the best is chosen by previews
FEW = 4  # pictures at a time, of the captions that have more


class Recordings:
    """What the results files hold of one trained model, and what follows of it."""

    def __init__(self, model: str, results: Results, alignment: Results, noises: int, images: int | None = None):
        """images: captions of every set, by default those of the study."""
        self._model, self._results, self._alignment = model, results, alignment
        self._noises, self._images = noises, images
        self._study = STUDIES[model]
        self.settings: Mapping[str, Setting] = self._study.settings
        self.sets = tuple(self._study.images)

    def runs(self, setting: str, captions: str) -> Runs | None:
        return self._recorded(setting, captions, self._count(captions), range(self._noises))

    def previews(self, setting: str, captions: str, steps: int) -> Runs | None:
        """Runs of so few steps, which only judge, of the first captions."""
        images = min(self._count(captions), PREVIEWED_IMAGES)
        return self._recorded(setting, captions, images, range(self._noises), preview=steps)

    def many(self, setting: str) -> Runs | None:
        """Of MANY_CAPTIONS, the first with MANY_NOISES, or those that there are, FEW at a time; None for FEW alone."""
        images, few = self._count(MANY_CAPTIONS), self.settings[setting].noises
        first = self._cells(setting, MANY_CAPTIONS, images, range(few))
        further = self._cells(setting, MANY_CAPTIONS, min(MANY_IMAGES, images), range(few, MANY_NOISES))
        runs = recorded(self._results, first + further, MANY_IMAGES)
        noises = runs.noises // FEW * FEW if runs else 0
        return runs.first(noises) if noises > FEW else None

    def tuning(self, setting: str, captions: str) -> Runs | None:
        return self._recorded(setting, captions, TUNING_IMAGES, range(TUNING_NOISES), is_tuning=True)

    def _recorded(self, setting: str, captions: str, images: int, noises: Sequence[int], **of) -> Runs | None:
        return recorded(self._results, self._cells(setting, captions, images, noises, **of))

    def _cells(self, setting: str, captions: str, images: int, noises: Sequence[int], **of) -> list[RunCell]:
        method = self.settings[setting].method
        return [cell(method, captions, images, noise, model=self._model, **of) for noise in noises]

    def cost(self, setting: str, call: int) -> Cost:
        """What a method does beyond the plain model, it does in the first half of the steps."""
        extra = self._time(setting) - 1
        return Cost(call / STEPS + extra * min(1, 2 * call / STEPS), 1 + extra)

    def preview_cost(self, setting: str, steps: int) -> Cost:
        """Of a run of so few steps, and of one in full, which begins anew."""
        whole = self._time(setting)
        return Cost(steps / STEPS * whole, whole, goes_on=False)

    def _time(self, setting: str) -> float:
        """Of one run, in those of the plain model; NaN where it was not measured."""
        method = self.settings[setting].method
        timed = self._alignment.get(time_key(method, self._model))
        return 1.0 if method.kind == "plain" else float(np.median(timed["ratios"])) if timed else np.nan

    def threshold(self, setting: str, captions: str, choice: Choice) -> float:
        """Of tuning pictures of so many objects; infinite for the best of all tries. NaN where there are none."""
        if choice.share == 1:
            return np.inf
        tuning = self.tuning(setting, captions if captions in TUNED else TUNED[1])
        return float(np.quantile(tuning.scores[choice.score][choice.call], choice.share)) if tuning else np.nan

    def _one_run(self, setting: str, captions: str) -> np.ndarray | None:
        """Right or not [caption, 1], as `bench alignment` sampled it with noise 0."""
        method = self.settings[setting].method
        line = self._alignment.get(Cell(captions, method.kind, method.settings, False, 500, self._model).key)
        return None if line is None else is_right(line["labels"])[: self._count(captions), None]

    def _count(self, captions: str) -> int:
        return self._images or self._study.images[captions]

    def rivals(self, captions: str) -> Iterator[tuple[str, np.ndarray]]:
        """Right or not [caption, noise] of one run of each method but the plain one, with all noises that there are."""
        for name, setting in self.settings.items():
            runs = self.runs(name, captions)
            found = runs.right if runs else self._one_run(name, captions)
            if found is not None and setting.method.kind != "plain":
                yield name, found


def prediction(recordings: Recordings) -> str:
    """How well the score tells right pictures from others, after each call."""
    head = ["captions", "method", "pictures", "right", *(f"call {call}" for call in CALLS[:-1]), "end", MEAN,
            f"call {CHOICE}, within a caption", f"call {CHOICE}, by error: missing, extra, unreadable",
            f"call {CHOICE}, {LOSS}"]  # fmt: skip
    rows = []
    for captions in recordings.sets:
        for setting in recordings.settings:
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
    for letter in (SHAPES.errors[name] for name in ("missing", "extra", "unreadable")):
        others = runs.letters == letter
        of = (runs.right > 0) | others
        yield f"{auc(runs.scores[CHOSEN][CHOICE][of], runs.right[of]):.2f}" if others.sum() >= FEWEST else "-"


def candidates(recordings: Recordings) -> str:
    """The same for all scores, on the tuning captions."""
    rows = []
    for captions in TUNED:
        for setting in recordings.settings:
            runs = recordings.tuning(setting, captions)
            for name, scores in runs.scores.items() if runs else ():
                right = runs.right
                rows.append([captions, f"{setting}, {100 * right.mean():.1f} % right", name,
                             *aucs(scores, right, CALLS)])  # fmt: skip
    return markdown(["captions", "method", "score", *(f"call {call}" for call in CALLS[:-1]), "end"], rows)


def thresholds(recordings: Recordings) -> str:
    """What two tries give below each of some thresholds, on the tuning captions."""
    rows = []
    for captions in TUNED:
        for setting in recordings.settings:
            runs = recordings.tuning(setting, captions)
            for threshold in THRESHOLDS if runs and runs.noises > 1 else ():
                scores, cost = runs.scores[CHOSEN][CHOICE], recordings.cost(setting, CHOICE)
                right, time = rerolled(scores, runs.right, 2, threshold, cost)
                is_below, of = scores < threshold, f"{setting}, {100 * runs.right.mean():.1f} % right"
                row = [captions, of, f"{threshold:.1f}", f"{100 * is_below.mean():.1f} %"]
                if is_below.any():
                    gain, more = right.mean() - runs.right.mean(), time.mean() - cost.whole
                    row += [f"{100 * runs.right[is_below].mean():.1f} %", f"{100 * gain:+.1f}", _known(more, ".2f"),
                            _known(100 * gain / more, ".0f")]  # fmt: skip
                rows.append(row)
    head = ["captions", "method", "threshold", "runs below it", "right among these", "gain of 2 tries, points",
            "added time", "points per added run"]  # fmt: skip
    return markdown(head, rows)


def choices(recordings: Recordings, captions: str) -> str:
    """A line for each way to choose among the runs of one set of captions."""
    rivals = dict(recordings.rivals(captions))
    head = ["method", "choice", "right", "time", "over one run", *(f"over {name}" for name in rivals)]
    rows = []
    for setting in recordings.settings:
        runs = recordings.runs(setting, captions)
        if runs is None:
            continue
        others, cost = {"": runs.right} | rivals, recordings.cost(setting, CHOICE)
        rows.append([setting, "one run", *_line(runs.right, cost.whole, others)])
        ways = [*_among(recordings, setting, captions, runs), *_previewed(recordings, setting, captions, runs)]
        rows += [[setting, name, *_line(right, time.mean(), others)] for name, right, time in ways]
        rows += [[setting, f"*a perfect judge, best of {tries}*", f"{100 * best:.1f} %"]
                 for tries, best in _perfect(recordings, setting, runs)]  # fmt: skip
    shown = {row[0] for row in rows}
    once = [[name, "one run", f"{100 * found.mean():.1f} %", _known(recordings.cost(name, CHOICE).whole, ".2f")]
            for name, found in rivals.items() if name not in shown]  # fmt: skip
    return markdown(head, rows + once)


def _among(
    recordings: Recordings, setting: str, captions: str, runs: Runs
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The name of each choice among runs that are stopped, and what `rerolled` gives."""
    for choice in recordings.settings[setting].choices:
        threshold = recordings.threshold(setting, captions, choice)
        if runs.noises >= choice.tries and not np.isnan(threshold):
            scores, cost = runs.scores[choice.score][choice.call], recordings.cost(setting, choice.call)
            name = choice.name if choice.share == 1 else f"{choice.name} (below {threshold:.2f})"
            yield name, *rerolled(scores, runs.right, choice.tries, threshold, cost)


def _perfect(recordings: Recordings, setting: str, runs: Runs) -> Iterator[tuple[int, float]]:
    """For each number of runs of which the best is taken, how often one of them is right."""
    counts = {choice.tries for choice in recordings.settings[setting].choices if choice.share == 1}
    for tries in sorted(count for count in counts if count <= runs.noises):
        right, _ = rerolled(runs.right, runs.right, tries, np.inf, recordings.cost(setting, CHOICE))
        yield tries, right.mean()


def _previewed(
    recordings: Recordings, setting: str, captions: str, runs: Runs
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The same where noises are judged on short runs, and the best one is sampled in full."""
    for steps in recordings.settings[setting].previews:
        previews = recordings.previews(setting, captions, steps)
        if previews is None or previews.noises < runs.noises:
            continue
        right = runs.right[: len(previews.right)]
        counts = [tries for tries in PREVIEWED if tries <= runs.noises]
        for tries, call in itertools.product(counts, (steps, MEAN)):
            by = "by the last call" if call == steps else f"by the {MEAN}"
            cost = recordings.preview_cost(setting, steps)
            yield (
                f"best of {tries}, previews of {steps} steps, {by}; {len(right)} captions",
                *rerolled(previews.scores[CHOSEN][call], right, tries, np.inf, cost),
            )


def _line(right: np.ndarray, time: float, others: Mapping[str, np.ndarray]) -> list[str]:
    """Share, time, and the differences to others; a dash where there is none.

    right and others [caption, noise]: pairs have the caption and the noise of the first try in common. One may have
    fewer of both, its first ones.
    """
    compared = []
    for other in others.values():
        captions, noises = np.minimum(right.shape, other.shape)
        difference = (right[:captions, :noises] - other[:captions, :noises]).mean(1)
        compared.append(percent(mean_of([difference])) if difference.any() else "-")
    return [f"{100 * right.mean():.1f} %", _known(time, ".2f"), *compared]


def _known(value: float, form: str) -> str:
    """A number; a dash where it was not measured."""
    return "-" if np.isnan(value) else format(value, form)


def ranking(recordings: Recordings) -> str:
    """How often the first and the last of all finished pictures of a caption are right."""
    rows = []
    for captions in recordings.sets:
        for setting in recordings.settings:
            runs = recordings.runs(setting, captions)
            if runs and runs.noises > 1:
                rows.append([captions, setting, *_ranked(runs, runs.noises)])
    for setting in recordings.settings:
        runs = recordings.many(setting)
        for count in (FEW, runs.noises) if runs else ():
            rows.append([f"{MANY_CAPTIONS}, {len(runs.right)} captions", setting, *_ranked(runs, count)])
    head = ["captions", "method", "pictures of a caption", "at random", "first, by the last call",
            f"first, by the {MEAN}", f"first, by {LOSS}", f"last, by the {MEAN}", "a perfect judge"]  # fmt: skip
    return markdown(head, rows)


def _ranked(runs: Runs, count: int) -> list[str]:
    """The cells of a row: so many pictures at a time are ranked, as often as there are others."""
    by = {"end": runs.scores[CHOSEN][STEPS], MEAN: runs.scores[CHOSEN][MEAN], LOSS: runs.scores[LOSS][STEPS]}
    parts = [slice(start, start + count) for start in range(0, runs.noises, count)]

    def share(score: str, place: int = 0) -> str:
        return f"{100 * np.mean([ranked(by[score][:, part], runs.right[:, part], place) for part in parts]):.1f} %"

    best = np.mean([runs.right[:, part].max(1) for part in parts])
    return [str(count), f"{100 * runs.right.mean():.1f} %", *map(share, by), share(MEAN, -1), f"{100 * best:.1f} %"]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; what a row lacks is a dash."""
    lines = [head, ["---"] * len(head), *([*row, *["-"] * (len(head) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
