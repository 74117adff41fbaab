"""What the commands on ComfyUI servers share, without a server."""

import json

import numpy as np
import pytest
from PIL import Image

import server_runs
from devtools.server import ServerError
from kept_scores import kept_scores
from picture_sheet import GAP, HEAD, SIDE, sheet

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers there


def test_pictures_of_other_settings_are_not_mixed(tmp_path):
    class Bear(server_runs.Task):
        name = label = "seed 1/a bear"

    server_runs.keep_settings(tmp_path, {"steps": 3})
    server_runs.keep_settings(tmp_path, {"steps": 4})  # no picture was made with the former
    picture = Bear().file(tmp_path, "plain")
    picture.parent.mkdir()
    picture.touch()
    server_runs.keep_settings(tmp_path, {"steps": 4})
    with pytest.raises(SystemExit, match="other settings"):
        server_runs.keep_settings(tmp_path, {"steps": 5})


def test_without_a_server_that_answers_it_says_so(tmp_path):
    class Empty(server_runs.Task):
        name = label = "empty"

        def of(self, task):
            return {}

    with pytest.raises(ServerError, match="1 prompts are missing"):
        server_runs.sample([NOBODY], Empty(), [Empty()], tmp_path, 1)
    parser = server_runs.argument_parser("", tmp_path / "workflow.json", tmp_path)
    with pytest.raises(SystemExit, match=f"none answers.\n{NOBODY}: "):
        server_runs.api_prompt(parser.parse_args(["--servers", NOBODY, "--checkpoint", "x"]))


def test_what_is_known_is_not_measured_again(tmp_path):
    path, measured = tmp_path / "scores.jsonl", []

    def wanted(*photos):
        return [({"measure": "size", "photo": p}, lambda p=p: measured.append(p) or {"value": len(p)}) for p in photos]

    assert kept_scores(path, []) == []
    first = kept_scores(path, wanted("cat", "horse"))
    second = {"measure": "size", "photo": "giraffe", "value": 7}
    assert kept_scores(path, wanted("horse", "giraffe")) == [first[1], second]
    assert measured == ["cat", "horse", "giraffe"]
    # Another measure has other names: what another line lacks is not taken for it.
    masked = {"measure": "size", "photo": "cat", "mask": "m"}
    assert kept_scores(path, [(masked, lambda: {"value": 0.5})]) == [masked | {"value": 0.5}]
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == [3, 5, 7, 0.5]


def test_sheet_has_a_row_for_each_label_and_pictures_in_their_proportion():
    red, blue = (Image.new("RGB", size, colour) for size, colour in (((512, 256), "red"), ((64, 64), "blue")))
    page = np.asarray(sheet(["A", "B"], {"first": [red, blue], "second": [blue, red]}))
    assert page.shape == (HEAD + 2 * (HEAD + SIDE), 2 * (SIDE + GAP), 3)
    is_red, is_blue = ((page == colour).all(-1) for colour in ((255, 0, 0), (0, 0, 255)))
    assert is_red.sum() == 2 * 256 * 128
    assert is_blue.sum() == 2 * 64 * 64
    assert is_red[2 * HEAD, 0]
    assert is_blue[2 * HEAD, SIDE + GAP]
    assert is_blue[3 * HEAD + SIDE, 0]
