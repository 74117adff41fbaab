"""What readers said of pictures of the things model: of which methods, and how it is compared with the scorer."""

import json

import numpy as np
import pytest

from alignment.settings import STUDIES
from edits import PAPER
from things import methods_as_read
from things.methods_as_read import COUNT, QUESTIONS, Read

KEPT = json.loads(methods_as_read.READINGS.read_text(encoding="utf-8"))


def test_every_reading_is_of_the_pictures_of_a_method_that_has_results():
    found = {"edits": methods_as_read.edits(KEPT["edits"]), "prompts": methods_as_read.prompts(KEPT["prompts"])}
    assert set(found["edits"]) == set(PAPER)
    assert set(found["prompts"]) == set(STUDIES["things"].scored.sets)
    names = {method.name for method in STUDIES["things"].methods}
    assert all(set(methods) <= names for methods in found["prompts"].values())
    for name, sets in found.items():
        for title, methods in sets.items():
            assert set(methods) == set(KEPT[name][title])
            assert len(methods) == 3
            for read in methods.values():
                assert read.scored.shape == (COUNT,)
                assert all(read.answers[question].shape[1:] == (COUNT,) for question in QUESTIONS)


def test_table_has_shares_agreement_and_differences_of_the_last_method():
    named, recognised = np.array([[1.0, 1, 1, 0]]), np.array([[1.0, 1, 0, 0], [1, 0, 0, 0]])
    plain = Read({"named right": named, "recognised": recognised}, np.array([1.0, 1, 0, 0]))
    ours = Read({"named right": 1 - named, "recognised": recognised}, np.array([1.0, 1, 1, 1]))
    found = {"cats": {"plain": plain, "ours": ours}}
    text = methods_as_read.table(found)
    assert "| cats | plain | 75.0 % | 37.5 % | 50.0 % | 75 % | 88 % |" in text
    assert "| cats | ours | 25.0 % | 37.5 % | 100.0 % | 25 % | 38 % |" in text
    assert "cats, ours against plain: named right -50.0 (" in text
    assert "recognised +0.0 (+0.0 to +0.0), scorer +50.0 (" in text
    said = methods_as_read.overall(found)
    assert said.startswith("On these 8 images")
    assert "named right 50.0 %, recognised 62.5 %" in said
    assert said.endswith("Two readers agree about what is recognised in 75.0 %.")


@pytest.mark.parametrize("name", ["edits", "prompts"])
def test_document_has_the_tables_of_the_readings(name):
    found = getattr(methods_as_read, name)(KEPT[name])
    text = f"{methods_as_read.table(found)}\n\n{methods_as_read.overall(found)}"
    document = methods_as_read.DOCUMENT.read_text(encoding="utf-8")
    _, written = document.split(f"<!-- {name} as read: written by the command above -->")
    assert written.split(f"<!-- end of {name} as read -->")[0].split() == text.split()
