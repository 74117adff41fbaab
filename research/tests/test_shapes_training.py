"""Training of the shapes model: reproducible, resumable, and the same network that ComfyUI loads."""

import comfy.clip_model
import comfy.ops
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer

import comfy_host
import train
from shapes.drawing import random_picture
from shapes.grammar import WORDS, training_caption


@pytest.fixture(scope="module")
def tokenizer():
    return SD1Tokenizer()


@pytest.fixture(scope="module")
def words(tokenizer) -> dict[str, int]:
    vocabulary = tokenizer.clip_l.tokenizer.get_vocab()
    return {word: vocabulary[word + "</w>"] for word in WORDS}


@pytest.fixture
def small_batch(monkeypatch):
    monkeypatch.setattr(train, "BATCH", 4)


def new_model(words) -> train.Model:
    torch.manual_seed(0)
    ids = [*words.values(), train.START, train.END]
    model = train.Model(comfy_host.family(), comfy.clip_model.CLIPTextModel, comfy.ops.disable_weight_init, ids)
    train.initialise(model)
    for parameter in model.parameters():  # as the checkpoint stores them; and no layer is left at zero
        parameter.data = (parameter.data + 0.02 * torch.randn_like(parameter)).half().float()
    return model.requires_grad_(False)


def test_captions_have_the_tokens_of_the_real_tokenizer(tokenizer, words):
    rng = np.random.default_rng(0)
    for index in range(200):
        caption = training_caption(random_picture(rng, 1 + index % 3), rng)
        (line,) = tokenizer.tokenize_with_weights(caption)["l"]
        assert train.token_ids(caption, words, []) == [token for token, _ in line]


def test_batch_depends_on_seed_and_step_alone(words, small_batch):
    first, again, later = (train.make_batch(3, step, words, 1000) for step in (7, 7, 8))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.levels, again.levels)
    assert not torch.equal(first.noise, later.noise)


def test_trained_network_is_the_one_that_comfyui_loads(words, tmp_path):
    family, model = comfy_host.family(), new_model(words)
    family.register()
    path = tmp_path / "shapes.safetensors"
    train.export(model, family, [*words.values(), train.START, train.END], path)
    patcher, clip, _vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    caption = "a small red circle, a blue star and a yellow cross on a grey background"
    with torch.inference_mode():
        context = model.context(torch.tensor([train.token_ids(caption, words, [])]))
        encoded = clip.encode_from_tokens(clip.tokenize(caption))
        assert (encoded[:, : train.SPOKEN] - context).abs().max() < 1e-4
        assert not encoded[:, train.SPOKEN :].any()
        x, levels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)), torch.tensor([900.0, 30.0])
        expected = model(x, levels, torch.tensor([train.token_ids(caption, words, [])] * 2))
        got = patcher.model.diffusion_model(x, levels, context=encoded.repeat(2, 1, 1), transformer_options={})
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def test_stopping_and_going_on_changes_nothing(small_batch, monkeypatch, tmp_path):
    monkeypatch.setattr(comfy_host, "start", lambda *_: None)

    def run(name: str, *lengths: int) -> dict:
        path = tmp_path / name / "state.pt"
        for length in lengths:
            # The planned number of steps shapes the learning rate: stop in the middle of one plan of four.
            monkeypatch.setattr(train, "range", lambda a, _b, n=length: range(a, n), raising=False)
            train.main(["--steps", "4", "--threads", "1", "--save-every", "2", "--state", str(path),
                        "--out", str(path.with_name("out.safetensors"))])  # fmt: skip
        return torch.load(path, weights_only=True)

    whole, parts = run("whole", 4), run("parts", 2, 4)
    assert whole["step"] == parts["step"] == 4
    for name in ("model", "average"):
        assert all(torch.equal(value, parts[name][key]) for key, value in whole[name].items())
    with pytest.raises(SystemExit, match="of seed 0, not 1"):
        train.main(["--steps", "4", "--threads", "1", "--seed", "1", "--state", str(tmp_path / "whole" / "state.pt")])


def test_learning_rate_rises_stays_and_falls_to_nothing():
    early, warm, flat, falling, last = (train.rate_at(step, 4000) for step in (0, 199, 2600, 3300, 4000))
    assert early < warm == flat == train.RATE
    assert falling == pytest.approx(train.RATE / 2)
    assert last == 0


def test_both_optimisers_move_all_parameters(words, small_batch):
    model = new_model(words).requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser, sigmas = train.Optimiser(model), comfy_host.family().SIGMAS
    train.loss_of(model, train.make_batch(0, 0, words, len(sigmas)), sigmas).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    optimiser.step(1e-3)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == unused
    assert all(parameter.grad is None for parameter in model.parameters())
