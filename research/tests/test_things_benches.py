"""What the commands count on in the things world."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer

import comfy_host
import train
import train_vae
from alignment import claims, methods
from things import captions
from things.grammar import RELATIONS, parse
from worlds import THINGS


def test_the_276_prompts_are_three_sets_and_come_again_in_their_order():
    sets = {split: captions.prompts(split) for split in captions.SPLITS}
    assert {split: len(set(scenes)) for split, scenes in sets.items()} == {
        "animal-animal": 66, "animal-object": 144, "object-object": 66
    }  # fmt: skip
    for split, scenes in sets.items():
        assert THINGS.scenes(split, 2 * len(scenes)) == [*scenes, *scenes]


@pytest.mark.parametrize("row", THINGS.rows)
def test_captions_are_of_the_grammar_and_the_first_ones_stay_the_first(row):
    scenes = THINGS.scenes(row, 40)
    assert scenes[:7] == THINGS.scenes(row, 7)
    assert all(parse(scene.caption()) == scene for scene in scenes)
    if row in captions.RANDOM:
        count = {"o": 1, "t": 3 if row == "three things" else 2}[row[0]]
        assert {len(scene.things) for scene in scenes} == {count}
        assert all((scene.relation in RELATIONS) == ("left of" in row) for scene in scenes)


@pytest.mark.parametrize("split", captions.SPLITS)
def test_settings_are_tuned_on_pairs_that_no_prompt_has(split):
    prompts = {frozenset(scene.things) for name in captions.SPLITS for scene in captions.prompts(name)}
    tuned = captions.tuning_scenes(split, 200, 10**6)
    assert not prompts & {frozenset(scene.things) for scene in tuned}
    assert len({scene.caption() for scene in tuned}) >= 40
    kinds = captions.SPLITS[split][1]
    assert all(thing.kind in of for scene in tuned for thing, of in zip(scene.things, kinds, strict=True))


def test_what_an_animal_wears_is_a_thing_of_its_own_for_methods():
    worn, apart = parse("a cat with a glasses"), parse("a elephant and a orange bow")
    assert THINGS.texts["objects"](worn) == ["a cat", "a glasses"]
    assert THINGS.words["nouns"](worn) == ["cat", "glasses"]
    assert THINGS.texts["objects"](apart) == ["a elephant", "a orange bow"]
    assert THINGS.words["content"](apart) == ["elephant", "orange", "bow"]
    prompts = [scene for split in captions.SPLITS for scene in captions.prompts(split)]
    assert all(len(set(THINGS.words["nouns"](scene))) == 2 for scene in prompts)


def test_weighted_words_are_whole_words():
    untouched = SimpleNamespace(world=THINGS, model=None, encode=list)
    way = methods.weighted_words(untouched, [parse("a red bowl and a red bow")], 1.3, cfg=1.0)
    assert way.positive == ["a (red bowl:1.3) and a (red bow:1.3)"]


RESEARCH = Path(methods.__file__).parents[1]
MARKS = ("scores", "claims", "edit cat_with_glasses")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    """A checkpoint of the things model with random weights."""
    torch.manual_seed(0)
    architecture, family = train.ARCHITECTURES["things", "unet"], comfy_host.family()
    vocabulary = SD1Tokenizer().clip_l.tokenizer.get_vocab()
    ids = [*(vocabulary[word + "</w>"] for word in architecture.world.words), train.START, train.END]
    model, vae = train.Model(family, architecture, ids), train_vae.build()
    train.initialise(model, architecture)
    train_vae.initialise(vae)
    path = tmp_path_factory.mktemp("things") / "things.safetensors"
    train.export(model, family, ids, path, vae)
    return path


@pytest.mark.slow
@pytest.mark.nightly  # tier 1 samples the same commands on the shapes model
@pytest.mark.parametrize(
    ("script", "options", "rows"),
    [
        ("alignment/compare.py", ["--captions", "animal-object", "--method", "side 8, cfg", "NAG", "0.5, cfg 4"], 6),
        ("editing.py", ["--edit", "cat_with_glasses", "--steps", "2", "--method", "tuned", "mask"], 5),
    ],
)
def test_commands_sample_an_untrained_model_and_write_their_tables(
    comfyui_root, untrained, tmp_path, script, options, rows
):
    document = tmp_path / "things.md"
    document.write_text("".join(f"<!-- {name}: written by the command above -->\n<!-- end of {name} -->\n"
                                for name in MARKS))  # fmt: skip
    call = [sys.executable, RESEARCH / script, "--comfyui", comfyui_root, "--threads", "1", "--model", "things",
            "--checkpoint", untrained, "--images", "2", *options, "--results", tmp_path / "results",
            "--document", document]  # fmt: skip
    subprocess.run(call, capture_output=True, text=True, timeout=600, check=True)
    text = document.read_text()
    findings = text[text.index("<!-- claims") : text.index("<!-- end of claims")]
    lines = [line for line in text.replace(findings, "").splitlines()
             if line.startswith("| ") and "| method" not in line]  # fmt: skip
    assert len(lines) == rows, lines
    assert all("%" in line for line in lines)
    # A finding is of all three sets, of which one was sampled.
    assert findings.count("| - | - |") == (len(claims.CLAIMS) if script == "alignment/compare.py" else 0)
