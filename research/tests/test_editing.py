"""Edits counted on small models: marks are what the pictures show, and what has been sampled is kept."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

import editing
from alignment.results import Results
from authors_edits import Edit
from edits import OBJECT, PAPER
from json_lines import read_lines
from shapes.cases import cases
from shapes.drawing import draw
from things.grammar import Wanted, parse
from worlds import MODELS, THINGS


def drawn(case, thing):
    """The case's picture with another thing in the place of its object."""
    (old,) = case.picture.things
    new = type(old)(*thing, old.x, old.y, old.radius)
    return draw(type(case.picture)((new,), case.picture.ground))


SHAPES_CASES, CASES = cases(12, 5), OBJECT["object"].cases(12, 5)
ORIGINALS = [case.image for case in CASES]


def test_unchanged_pictures_score_nothing():
    marks, moved = editing.score(CASES, ORIGINALS)
    assert not marks.any()
    assert not moved.any()


def test_perfect_edits_score_everything():
    marks, moved = editing.score(CASES, [drawn(case, case.new) for case in SHAPES_CASES])
    assert marks.shape == (12, 4)
    assert marks.all()
    assert moved.max() < 1e-4


def test_moved_background_is_its_mean_absolute_difference():
    _, moved = editing.score(CASES, [np.clip(image - 0.01, 0, 1) for image in ORIGINALS])
    assert moved.mean() == pytest.approx(0.01, rel=0.01)


def test_object_lies_within_its_box():
    for case in CASES:
        ground = case.image[0, 0]
        assert np.abs(case.image - ground)[case.outside].max() < 0.1  # the soft tip of a star
        assert case.outside.mean() > 0.3


@pytest.mark.parametrize("kind", [*OBJECT.values(), *PAPER.values()], ids=[*OBJECT, *PAPER])
def test_settings_are_tuned_on_other_pictures_than_are_scored(kind):
    tuned, scored = (kind.cases(20, seed) for seed in (editing.TUNING_SEED, editing.SCORED_SEED))
    assert not {case.image.tobytes() for case in tuned} & {case.image.tobytes() for case in scored}
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scored, kind.cases(3, editing.SCORED_SEED)))


@pytest.mark.parametrize("name", PAPER)
def test_edits_of_things_are_judged_by_what_is_there(name):
    made = PAPER[name].cases(20, 7)
    has_other = np.array([len(parse(case.before).things) == 2 for case in made])
    assert has_other.sum() == 10
    unchanged, moved = editing.score(made, [case.image for case in made])
    assert not moved.any()
    assert np.array_equal(np.isnan(unchanged[:, 1]), ~has_other)
    assert np.nanmean(unchanged, axis=0) == pytest.approx([0, 1, 0], abs=0.11)
    edited, _ = editing.score(made, THINGS.drawn([parse(case.after) for case in made], 1))
    assert np.nanmean(edited, axis=0) == pytest.approx([1, 1, 1], abs=0.11)
    alone = [parse(case.after).things[0].words() for case in made]
    emptied, _ = editing.score(made, THINGS.drawn([parse(one) for one in alone], 1))
    assert np.nanmean(emptied, axis=0) == pytest.approx([1, 0, 0.5], abs=0.11)


@pytest.mark.parametrize("name", PAPER)
def test_only_the_thing_to_change_lies_inside(name):
    made = PAPER[name].cases(20, 7)
    for case in made[::2]:  # those of one thing
        assert np.abs(case.image - case.image[0, 0])[case.outside].max() < 0.02
    for case in made[1::2]:
        assert np.abs(case.image - case.image[0, 0])[case.outside].max() > 0.2


def test_glasses_are_added_to_the_cat_that_is_there():
    (case,) = PAPER["cat_with_glasses"].cases(1, 0)
    assert (case.before, case.added) == ("a cat", "a cat with a glasses")
    (wanted,) = parse(case.after).things
    assert wanted == Wanted("cat", worn="glasses")


def bench(path, **changed):
    of = {"model": "things", "name": "cat_to_dog", "images": 6, "seed": 1, "steps": 25} | changed
    return editing.Bench(**of, results=Results(path))


def rows(model="things", name="cat_to_dog"):
    study = editing.STUDIES[model]
    return editing.methods(study.kinds[name], study.tuned[name], 1.5)


def test_what_is_there_is_not_sampled_again(tmp_path, monkeypatch):
    class Unchanged:
        def __init__(self, small, cases, steps, precision):
            self._cases = cases

        def apply(self, method):
            return np.stack([case.image for case in self._cases])

    monkeypatch.setattr(editing, "Editor", Unchanged)
    bench(tmp_path / "a").fill(None, rows())
    monkeypatch.setattr(editing, "Editor", None)
    again = bench(tmp_path / "a")
    again.fill(None, rows())
    table = again.table(rows())
    assert f"| {editing.EXACT} | 0.0 % (0.0 to 0.0) | 100.0 % (100.0 to 100.0) | 0.0 % (0.0 to 0.0) | 0.0000 |" in table
    assert table.count(f"{editing.EXACT} against") == 4  # img2img twice, the swapped prompt, the other negative prompt
    assert table.count(f"{editing.EXACT}, both masks against") == 3
    assert table.count(f"{editing.CAPTIONED}, both masks against") == 2
    with pytest.raises(TypeError):
        bench(tmp_path / "a", images=7).fill(None, rows())


def test_every_setting_of_a_method_is_in_the_key(tmp_path):
    keys = [bench(tmp_path / "a", **of).key(method) for method in rows()
            for of in ({}, {"model": "unet"}, {"name": "object"}, {"seed": 2}, {"steps": 9})]  # fmt: skip
    assert len(set(keys)) == len(keys)


def test_results_that_are_not_in_float32_name_their_precision(tmp_path):
    method, *_ = rows()
    for precision, named in ((torch.float32, None), (torch.bfloat16, "bfloat16")):
        kept = json.loads(bench(tmp_path / "a", precision=precision).key(method))
        assert kept.get("precision") == named


def test_what_varies_an_edit_stands_in_a_table_of_its_own(tmp_path):
    (compared, first), (varied, second) = editing.tables_of(bench(tmp_path / "a", images=500), rows())
    assert (compared.images, varied.images) == (500, 80)
    img2img = "img2img with the new prompt, denoise 0.6"
    assert [method.name for method in first] == [
        "img2img with the new prompt, denoise 0.55", img2img, editing.SWAPPED,
        "EBCA, the authors' cat -> dog, inversion as in the paper", editing.EXACT,
    ]  # fmt: skip
    assert [method.name for method in second] == [
        "no edit, fixed-point inversion", editing.EXACT, editing.CAPTIONED, f"{editing.EXACT}, mask on the edits",
        f"{img2img}, noise mask", f"{editing.SWAPPED}, noise mask", f"{editing.EXACT}, both masks",
        f"{editing.CAPTIONED}, both masks",
    ]  # fmt: skip
    shapes = bench(tmp_path / "a", model="unet", name="object", images=200)
    assert editing.tables_of(shapes, rows("unet", "object")) == [(shapes, rows("unet", "object"))]


def test_only_edits_tuned_with_the_paper_s_inversion_are_made_with_it():
    (of_the_authors,) = (method for method in rows() if method.fixed_point_iterations == 0)
    assert of_the_authors.edit == PAPER["cat_to_dog"].authors[1]
    assert sum(method.fixed_point_iterations == 0 for method in rows("unet", "object")) == 4


def test_every_kept_result_is_of_a_method():
    """A result whose key no method has would never be shown, and its method sampled again."""
    wanted = set()
    for name, is_tuning in product(PAPER, (False, True)):
        made = editing.bench_of("things", name, Results(editing.RESULTS), is_tuning)
        wanted |= {part.key(method) for part, some in editing.tables_of(*made) for method in some}
    kept = {json.dumps(line["of"], sort_keys=True) for line in read_lines(editing.RESULTS)}
    assert not kept - wanted


@pytest.mark.parametrize("model", editing.STUDIES)
def test_methods_and_candidates_have_names_of_their_own(model):
    study, cfg = editing.STUDIES[model], MODELS[model].world.cfg
    for tried in ([*editing.candidates(study, cfg)], *(rows(model, name) for name in study.kinds)):
        assert len({method.name for method in tried}) == len(tried)
        for method in tried:
            assert method.edit is None or (method.edit.alphas[0] > 0 and isinstance(method.edit, Edit))


def test_rows_with_the_caption_as_negative_prompt_differ_in_that_alone():
    for name in PAPER:
        made = {method.name: method for method in rows("things", name)}
        masked = (f"{one}, both masks" for one in (editing.CAPTIONED, editing.EXACT))
        for one, other in ((editing.CAPTIONED, editing.EXACT), masked):
            assert replace(made[one], name=other, negative="") == made[other]
    for model in set(editing.STUDIES) - {"things"}:
        assert all(method.negative == "caption" for method in rows(model, "object") if method.edit)


def test_every_edit_with_a_noise_mask_differs_from_one_without_in_masks_alone():
    for model, study in editing.STUDIES.items():
        for name in study.kinds:
            made = {method.name: method for method in rows(model, name)}
            masked = [method for method in made.values() if method.noise_masked]
            assert len(masked) == (4 if model == "things" else 3)
            for method in masked:
                without = made[method.name.removesuffix(", both masks").removesuffix(", noise mask")]
                assert replace(method, name=without.name, masked=False, noise_masked=False) == without
                assert method.masked == (method.edit is not None)
