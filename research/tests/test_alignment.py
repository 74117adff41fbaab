"""The alignment benchmark: its intervals, its image statistics, its results file and its tables."""

import argparse
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from alignment import claims, compare, parts_figure, report
from alignment.columns import Columns, change
from alignment.image_statistics import ImageStatistics, distance
from alignment.methods import KINDS
from alignment.results import PATH, Cell, Results
from alignment.settings import CANDIDATES, IMAGES, METHODS, PLAIN, SETS, STUDIES, TUNING, UNET, Method
from bootstrap import Estimate, mean_of, statistic_of
from worlds import MODELS, SHAPES, THINGS

# --- intervals -------------------------------------------------------------------------------------------------------


def test_interval_is_as_wide_as_the_normal_approximation():
    values = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=500, p=[0.1, 0.75, 0.15])
    found = mean_of([values])
    assert found.mean == pytest.approx(values.mean())
    half_width = 1.96 * values.std() / 500**0.5
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.06)


def test_interval_of_several_sets_is_that_of_their_mean():
    rng = np.random.default_rng(1)
    sets = [rng.normal(mean, 1.0, 400) for mean in (0.0, 1.0, 2.0, 3.0)]
    found = mean_of(sets)
    half_width = 1.96 * (sum(values.var() for values in sets) / 400) ** 0.5 / 4
    assert found.mean == pytest.approx(np.mean([values.mean() for values in sets]))
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.06)
    assert found.is_clear
    assert not mean_of([np.array([1.0, -1.0] * 50)]).is_clear


def test_interval_of_any_statistic_is_as_wide_as_the_normal_approximation():
    values = np.random.default_rng(2).normal(3.0, 2.0, 400)
    found = statistic_of(lambda drawn: values[drawn].mean(), 400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_change_is_paired_by_picture_wherever_objects_lie():
    plain, ours = {"a": "RrmseuRR", "b": "mm"}, {"a": "RRRseumR", "b": "Rm"}
    right = [sum(x in "rR" for x in labels) for labels in ("RrmseuRR", "RRRseumR")]
    assert change(ours, plain).mean == pytest.approx(((right[1] - right[0]) / 8 + 0.5) / 2)
    assert change(plain, plain).mean == 0


# --- image statistics ------------------------------------------------------------------------------------------------


def test_distance_of_normal_distributions_in_closed_form():
    reference = ImageStatistics(np.zeros(2), np.diag([4.0, 9.0]))
    shifted = ImageStatistics(np.array([2.0, 0.0]), np.diag([4.0, 9.0]))
    wider = ImageStatistics(np.zeros(2), np.diag([4.0, 36.0]))
    assert distance(reference, reference) == pytest.approx(0, abs=1e-9)
    assert distance(shifted, reference) == pytest.approx(1)  # one deviation
    assert distance(wider, reference) == pytest.approx((2 - 1) ** 2)  # deviations 2 and 1


def test_drawn_pictures_are_close_to_others_of_their_captions_and_spoilt_ones_are_not():
    wanted = SHAPES.scenes("two objects", 150)

    def found(pictures):
        return ImageStatistics.of(pictures, SHAPES.palette)

    reference, others = (found(SHAPES.drawn(wanted, seed)) for seed in (1, 2))
    floor = distance(others, reference)
    noise = np.random.default_rng(0).normal(0, 0.04, (150, 64, 64, 3))
    pictures = SHAPES.drawn(wanted, 2)
    assert distance(found(np.clip(pictures + noise, 0, 1)), reference) > 5 * floor
    assert distance(found([0.6 * image + 0.2 for image in pictures]), reference) > 5 * floor


@pytest.mark.parametrize(
    ("world", "rows", "least"),
    [(SHAPES, ["two objects, left of / above", "three objects"], 1.0),
     (THINGS, ["two things, left of / above", "animal-object", "object-object", "three things"], 0.95)],
    ids=["shapes", "things"],
)  # fmt: skip
def test_drawn_pictures_show_what_their_captions_say(world, rows, least):
    wanted = [scene for row in rows for scene in world.scenes(row, 20)]
    judged = [world.verdict(image, scene) for image, scene in zip(world.drawn(wanted, 3), wanted)]
    letters = [world.letter(one) for one in judged]
    assert letters.count("R") == sum(one.complete for one in judged) >= least * len(wanted)
    assert len({*world.letters, "R"}) == len(world.labels) + 1


@pytest.mark.parametrize(
    ("expected", "interval", "answer"),
    [(1, (0.01, 0.05), "yes"), (1, (-0.01, 0.05), "not shown"), (1, (-0.05, -0.01), "no"), (-1, (-0.05, -0.01), "yes"),
     (-1, (0.01, 0.05), "no"), (0, (-0.01, 0.05), "none shown here either"), (0, (0.01, 0.05), "no"),
     (0, (-0.05, -0.01), "no")],
)  # fmt: skip
def test_a_finding_holds_where_the_interval_lies_on_its_side_of_zero(expected, interval, answer):
    claim = claims.Claim("", expected, (PLAIN, PLAIN), (PLAIN, PLAIN))
    assert claim.holds(Estimate(sum(interval) / 2, *interval)) == answer


def test_kept_results_of_shapes_show_each_finding():
    shapes = claims.Sampled(Results(PATH), IMAGES)
    found = {claim.text: claims.change(claim.letters, "unet", claim.shapes, shapes) for claim in claims.CLAIMS}
    assert {text: one.side for text, one in found.items()} == {
        claim.text: claim.expected for claim in claims.CLAIMS
    }  # fmt: skip


def test_a_finding_is_read_from_the_pictures_of_both_methods(tmp_path):
    results, sets = Results(tmp_path / "results"), STUDIES["things"].scored.sets
    ours, other = PLAIN, Method("other", "plain", {"cfg": 7.0})
    made = [(PLAIN, ("RRee", "Remm", "ReRR")), (other, ("RRRR", "eeee", "mmmm"))]
    for method, labels_of_sets in made:
        assert claims.change("e", "things", (ours, other), claims.Sampled(results, 4)) is None
        for captions, labels in zip(sets, labels_of_sets, strict=True):
            results.add(Cell(captions, method.kind, method.settings, False, 4, "things").key, labels=labels)
    found = {letters: claims.change(letters, "things", (ours, other), claims.Sampled(results, 4)).mean
             for letters in ("rR", "e")}  # fmt: skip
    assert found == pytest.approx({"rR": (-2 + 1 + 3) / 12, "e": (2 - 3 + 1) / 12})


# --- cells and their results -----------------------------------------------------------------------------------------


def cell(**changed):
    settings = {"captions": "two objects", "kind": "plain", "settings": {}, "is_tuning": False, "images": 4}
    return Cell(**settings | changed)


def test_what_is_there_is_not_sampled_again(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        compare, "run", lambda shapes, cell, method: ran.append(cell.key) or {"labels": "RRmm", "seconds": 0.1}
    )
    wanted = [(cell(captions=captions), PLAIN) for captions in SETS]
    compare.fill(None, Results(tmp_path / "results"), wanted[:2])
    again = Results(tmp_path / "results")
    compare.fill(None, again, wanted)
    assert ran == [each.key for each, _ in wanted]
    assert again.get(wanted[0][0].key)["labels"] == "RRmm"


def test_a_line_that_was_cut_off_is_sampled_again(tmp_path):
    path = tmp_path / "results"
    first, second = cell().key, cell(images=5).key
    results = Results(path)
    results.add(first, labels="RRRR")
    path.write_text(path.read_text() + '{"of": {"captions": "two obj')
    results = Results(path)
    assert results.get(first)["labels"] == "RRRR"
    results.add(second, labels="mmmmm")
    assert Results(path).get(second)["labels"] == "mmmmm"


@pytest.mark.parametrize(
    "changed",
    [{"captions": "three objects"}, {"kind": "ebca"}, {"settings": {"cfg": 2.0}}, {"is_tuning": True}, {"images": 5},
     {"model": "transformer"}],
)
def test_every_setting_is_in_the_key(changed):
    assert cell().key != cell(**changed).key


def test_tuning_has_other_captions_and_other_noise():
    for captions in TUNING.sets:
        tuned, scored = (cell(captions=captions, is_tuning=is_tuning, images=200) for is_tuning in (True, False))
        assert not set(tuned.seeds()) & set(scored.seeds())
        same = [a.caption() == b.caption() for a, b in zip(tuned.scenes(), scored.scenes())]
        assert np.mean(same) < 0.05


def tuning_cell(method):
    (captions,) = TUNING.sets
    return Cell(captions, method.kind, method.settings, True, STUDIES[UNET].tuning_images)


def test_methods_whose_code_was_removed_are_in_the_results_and_are_not_sampled(tmp_path, monkeypatch, capsys):
    recorded = [method for method in CANDIDATES if method.is_recorded_only]
    assert recorded
    results = Results(PATH)
    assert all(results.get(tuning_cell(method).key) for method in recorded)
    ran, found = [], {"labels": "R", "seconds": 0.1}
    monkeypatch.setattr(compare, "run", lambda shapes, cell, method: ran.append(method) or found)
    compare.fill(None, Results(tmp_path / "results"), [(tuning_cell(method), method) for method in CANDIDATES])
    assert ran == [method for method in CANDIDATES if not method.is_recorded_only]
    said = capsys.readouterr().out
    assert all(method.name in said.splitlines()[0] for method in recorded)


def test_settings_are_arguments_of_their_method_and_words_and_texts_of_their_world():
    for model, method in [(model, m) for model, s in STUDIES.items() for m in (*s.methods, *s.candidates)]:
        if not method.is_recorded_only:
            inspect.signature(KINDS[method.kind]).bind("shapes", "scenes", **{"cfg": 1.0} | method.settings)
            world = MODELS[model].world
            assert method.settings.get("subjects", "words") in world.words
            assert {part["of"] for part in method.settings.get("parts", [])} <= set(world.texts)


def test_names_and_settings_are_unique():
    for methods in [methods for study in STUDIES.values() for methods in (study.candidates, study.methods)]:
        assert len({method.name for method in methods}) == len(methods)
        assert len({json.dumps([method.kind, method.settings], sort_keys=True) for method in methods}) == len(methods)


def test_table_stands_between_its_comments(tmp_path):
    path = tmp_path / "a.md"
    begin, end = "<!-- scores: written by the command above -->", "<!-- end of scores -->"
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    report.write_between(path, "scores", "new")
    assert path.read_text() == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    with pytest.raises(ValueError, match="Expected the comments"):
        report.write_between(path, "candidates", "new")


def test_tables_of_other_settings_are_written_only_where_a_document_is_named(capsys):
    kept, named = Path("kept.md"), Path("named.md")
    for document, images, steps, expected in (
        (None, None, None, kept), (None, 2, None, None), (None, None, 0, None), (named, 2, None, named),
        (named, None, None, named),
    ):  # fmt: skip
        options = argparse.Namespace(document=document, images=images, steps=steps)
        assert report.document_of(options, kept, "images", "steps") == expected
        assert ("--document" in capsys.readouterr().out) == (expected is None)
    assert report.document_of(argparse.Namespace(document=None, images=2), None, "images") is None
    assert not capsys.readouterr().out


@pytest.mark.nightly
@pytest.mark.parametrize("model", STUDIES)
@pytest.mark.parametrize("tune", [[], ["--tune"]], ids=["scored", "tuned"])
def test_document_has_the_tables_of_the_kept_results(model, tune, tmp_path, capsys):
    """Prose is wrapped by hand."""
    study, copy = STUDIES[model], tmp_path / STUDIES[model].document
    written = (compare.DOCS / study.document).read_text()
    copy.write_text(written)
    if f"<!-- {study.comments}{'candidates' if tune else 'scores'}:" not in written:
        pytest.skip("there is no such table")
    compare.main(["--comfyui", ".", "--report", "--model", model, "--document", str(copy), *tune])
    assert copy.read_text().split() == written.split()


def test_row_says_what_the_letters_say():
    columns = Columns(["two", "three"], ["two"], SHAPES.errors, "three")
    plain = {"two": "RRmm", "three": "rRee"}
    ours = {"two": "RRRu", "three": "RRRs"}
    cells = columns.row("ours", ours, plain, "0.10", "1.02").strip("| ").split(" | ")
    assert len(cells) == columns.header().splitlines()[0].count("|") - 1
    assert cells[0] == "ours"
    assert cells[1].startswith("75.0 %, +25.0 (")
    assert cells[2].startswith("75.0 %, +25.0 (")
    assert cells[3] == "75.0 %"
    assert cells[4].startswith("+25.0 (")
    assert cells[5:] == ["0.0 %", "0.0 %", "0.0 %", "25.0 %", "0.10", "1.02"]
    bare = columns.row("plain", {"three": "rRee"}, {"three": "rRee"}, "-", "1").strip("| ").split(" | ")
    assert bare == ["plain", "-", "50.0 %", "25.0 %", "-", "-", "-", "-", "-", "-", "1"]


def test_against_compares_the_sets_that_both_have():
    ours = {"two": "RRRR" * 25, "three": "RR", "rare": "Rm" * 50}
    others = {"two": "RRmm" * 25, "single": "mm", "rare": "mm" * 50}
    text = report.against(ours, others)
    assert text.startswith("two **+50.0 (")
    assert text.count("+50.0") == 3
    assert "together" in text
    assert "three" not in text
    assert "single" not in text


def test_figure_shows_each_part_as_its_paired_change_on_the_models_that_have_all_of_it(tmp_path):
    sets, results = ("two", "three"), Results(tmp_path / "results")
    (name, method, other), (_, absent, _), *_ = STUDIES["unet"].parts
    for labels, one in (("RRRm", method), ("Rmmm", other)):
        for captions in sets:
            results.add(Cell(captions, one.kind, one.settings, False, 4).key, labels=labels)
    results.add(Cell("two", absent.kind, absent.settings, False, 4).key, labels="RRRR")
    (row,) = parts_figure.rows(results, sets, 4)
    assert (row.part, list(row.changes)) == (name, ["unet"])
    assert row.changes["unet"].mean == pytest.approx(0.5)
    left = np.asarray(parts_figure.figure([row], "")) == parts_figure.COLOURS[0]
    assert left.all(2).any(), "the model's dot is drawn"


#: The last method of each kind, but the plain model without a change: others of its kind differ in their numbers.
ONE_OF_EACH_KIND = [*{method.kind: method for method in [*METHODS, PLAIN]}.values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods", [ONE_OF_EACH_KIND, pytest.param(METHODS, marks=pytest.mark.nightly)], ids=["one of each kind", "all"]
)
def test_command_samples_once_and_writes_its_table(comfyui_root, run_command, monkeypatch, capsys, tmp_path, methods):
    document = tmp_path / "alignment.md"
    document.write_text("<!-- scores: written by the command above -->\n<!-- end of scores -->\n")
    options = ["--comfyui", comfyui_root, "--threads", "1", "--images", "2", "--captions", "two objects",
               "--results", tmp_path / "results", "--document", document,
               "--method", *(method.name for method in methods if method is not PLAIN)]  # fmt: skip
    count = len(methods)
    assert f"{count} of {count}" in run_command("alignment/compare.py", *options)
    monkeypatch.setattr(compare, "boot", lambda options: None)
    monkeypatch.setattr(compare, "SmallModel", lambda name, checkpoint: None)  # with it nothing can be sampled
    compare.main(list(map(str, options)))
    assert f"{count} of {count}" not in capsys.readouterr().out
    assert all(f"| {method.name} | " in document.read_text() for method in methods)
