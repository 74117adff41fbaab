"""The files in workflows/ for transformers, run by a server on tiny models with random weights."""

import io

import av
import numpy as np
import pytest

from devtools.twins import OFF, SMALL, TRANSFORMERS, prompt_of, shown, steps
from devtools.workflows import node_ids
from support.stand_ins import replace_loaders
from support.workflow_runs import unsampled

pytestmark = pytest.mark.server
every_file = pytest.mark.parametrize("name", TRANSFORMERS)


@pytest.fixture
def run(server, object_info):
    """A function that runs a file, small, with substitutions: {title: frames [t h w 3], one of an image}."""

    def run(name: str, *tables, change=lambda prompt: None) -> dict[str, np.ndarray]:
        prompt = prompt_of(name, object_info, SMALL, *tables)
        replace_loaders(prompt)
        change(prompt)
        return {title: frames(file) for title, (file,) in shown(server, prompt).items()}

    return run


def frames(file: bytes) -> np.ndarray:
    with av.open(io.BytesIO(file)) as opened:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in opened.decode(video=0)])


@every_file
def test_it_runs_as_shipped_on_random_weights(run, object_info, name):
    made = run(name)
    prompt = prompt_of(name, object_info)
    is_video, is_photo = node_ids(prompt, "SaveVideo"), node_ids(prompt, "EBCAInvert")
    assert set(made) == ({"With EBCA"} if is_photo else {"With EBCA", "Without EBCA"})
    without = run(name, OFF)["With EBCA"] if is_photo else made["Without EBCA"]
    assert without.shape == made["With EBCA"].shape
    assert len(without) == (5 if is_video else 1)
    assert all(each.std() > 1 for each in (*without, *made["With EBCA"]))  # not one plain colour, as of a latent of NaN
    assert not np.array_equal(without, made["With EBCA"])


@pytest.mark.nightly  # tests/test_transformer_off.py and test_joint_off.py have shown it without a server
@pytest.mark.parametrize("name", [name for name in TRANSFORMERS if "Photo" not in name])
def test_strengths_of_zero_give_one_result(run, name):
    made = run(name, OFF)
    assert np.array_equal(made["Without EBCA"], made["With EBCA"])


def test_photo_comes_back_from_its_inversion(run):
    (name,) = (name for name in TRANSFORMERS if "Photo" in name)
    exact = steps(20) | {("EBCAInvert", "reg_steps"): 0, ("EBCAInvert", "fixed_point_iterations"): 8}
    photo = run(name, change=unsampled)["With EBCA"].astype(int)
    back = run(name, OFF, exact)["With EBCA"].astype(int)
    edited = run(name, exact)["With EBCA"].astype(int)
    # Measured: 0.02 of 255, and 1.5 with the edits.
    assert np.abs(back - photo).mean() < 0.1 * np.abs(edited - photo).mean()


@every_file
def test_comfyui_offers_the_type_of_its_text_encoder(object_info, name):
    prompt = prompt_of(name, object_info)
    (loader,) = (prompt[node]["inputs"] for node in node_ids(prompt, "CLIPLoader"))
    assert loader["type"] in object_info["CLIPLoader"]["input"]["required"]["type"][0]
