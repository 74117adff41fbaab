"""Training of the small models: reproducible, resumable, and the same networks that ComfyUI loads."""

from dataclasses import replace

import comfy.model_base
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.sd1_clip import SD1Tokenizer

import comfy_host
import train
import train_vae


@pytest.fixture(scope="module")
def tokenizer():
    return SD1Tokenizer()


@pytest.fixture(params=list(train.ARCHITECTURES), ids="-".join)
def architecture(request, monkeypatch) -> train.Architecture:
    """One of the architectures, with small batches."""
    small = replace(train.ARCHITECTURES[request.param], batch=4)
    monkeypatch.setitem(train.ARCHITECTURES, request.param, small)
    return small


def words_of(tokenizer, world: train.World) -> dict[str, int]:
    vocabulary = tokenizer.clip_l.tokenizer.get_vocab()
    return {word: vocabulary[word + "</w>"] for word in world.words}


@pytest.fixture
def words(tokenizer, architecture) -> dict[str, int]:
    return words_of(tokenizer, architecture.world)


@pytest.fixture(scope="module")
def untrained_vae() -> torch.nn.Module:
    torch.manual_seed(0)
    vae = train_vae.build().requires_grad_(False)
    train_vae.initialise(vae)
    vae.vae_scale.data, vae.vae_shift.data = torch.tensor(0.5), torch.tensor(0.25)
    for parameter in vae.parameters():  # as the checkpoint stores them
        parameter.data = parameter.data.half().float()
    return vae


@pytest.fixture
def sampling(architecture):
    config = getattr(comfy_host.family(), architecture.family)
    return comfy.model_base.model_sampling(config({}), config.prediction)


def new_model(words, architecture) -> train.Model:
    torch.manual_seed(0)
    model = train.Model(comfy_host.family(), architecture, [*words.values(), train.START, train.END])
    train.initialise(model, architecture)
    for parameter in model.parameters():  # as the checkpoint stores them; and no layer is left at zero
        parameter.data = (parameter.data + 0.02 * torch.randn_like(parameter)).half().float()
    return model.requires_grad_(False)


@pytest.mark.parametrize("world", [train.SHAPES, train.THINGS], ids=["shapes", "things"])
def test_captions_have_the_tokens_of_the_real_tokenizer(tokenizer, world):
    rng, words = np.random.default_rng(0), words_of(tokenizer, world)
    for index in range(200):
        caption = world.caption(world.picture(rng, 1 + index % 3), rng)
        (line,) = tokenizer.tokenize_with_weights(caption)["l"]
        assert train.token_ids(caption, words, []) == [token for token, _ in line]
        assert sum(token != train.END for token, _ in line) + 1 + 3 <= train.SPOKEN  # 3 that make no sense


def test_batch_depends_on_seed_and_step_alone(words, architecture):
    first, again, later = (train.make_batch(3, step, words, architecture) for step in (7, 7, 8))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.noise, again.noise)
    assert torch.equal(first.levels, again.levels)
    assert not torch.equal(first.noise, later.noise)


def test_latents_of_pictures_that_come_again_are_kept(tokenizer, untrained_vae):
    architecture = replace(train.ARCHITECTURES["things", "unet"], batch=2)
    words, step = words_of(tokenizer, train.THINGS), train.FRESH + 7
    made = train.Latents(untrained_vae, 3, words, architecture)
    first, again, other = (made.batch(at) for at in (step, step + 2 * train.CYCLE, step + 1))
    drawn = train.make_batch(3, step, words, architecture)
    assert torch.equal(first.images, train_vae.encode(untrained_vae, drawn.images))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.tokens, drawn.tokens)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.noise, again.noise)
    assert not torch.equal(first.levels, again.levels)
    assert not torch.equal(first.images, other.images)
    anew = train.Latents(untrained_vae, 3, words, architecture).batch(step + 2 * train.CYCLE)
    assert all(torch.equal(*pair) for pair in zip(vars(anew).values(), vars(again).values(), strict=True))
    late = next(at for at in range(train.OTHERS, 2 * train.OTHERS) if (at - step) % train.CYCLE == 0)
    others = train.make_batch(3, step + train.CYCLE, words, architecture)
    assert torch.equal(made.batch(late).images, train_vae.encode(untrained_vae, others.images))


def test_trained_network_is_the_one_that_comfyui_loads(words, architecture, untrained_vae, tmp_path):
    family, model = comfy_host.family(), new_model(words, architecture)
    own_vae = untrained_vae if architecture.vae else None
    family.register()
    path = tmp_path / "shapes.safetensors"
    train.export(model, family, [*words.values(), train.START, train.END], path, own_vae)
    patcher, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    assert type(patcher.model.model_config).__name__ == architecture.family
    if architecture.world is train.SHAPES:
        caption = "a small red circle, a blue star and a yellow cross on a grey background"
    else:
        caption = "a cat with a glasses, a grey clock and a zebra"
    with torch.inference_mode():
        context = model.context(torch.tensor([train.token_ids(caption, words, [])]))
        encoded = clip.encode_from_tokens(clip.tokenize(caption))
        assert (encoded[:, : train.SPOKEN] - context).abs().max() < 1e-4
        assert not encoded[:, train.SPOKEN :].any()
        noise = torch.Generator().manual_seed(1)
        x, levels = torch.randn(2, *architecture.world.latent, generator=noise), torch.tensor([0.9, 0.03])
        levels = levels * (1 if architecture.joint else 1000)
        with train.differentiable_kernels():
            expected = model(x, levels, torch.tensor([train.token_ids(caption, words, [])] * 2))
        got = patcher.model.diffusion_model(x, levels, context=encoded.repeat(2, 1, 1), transformer_options={})
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    world = architecture.world
    images = torch.from_numpy(world.draw(world.picture(np.random.default_rng(0), 2)))[None]
    latents = vae.encode(images)
    assert latents.shape[1:] == world.latent
    assert vae.decode(latents).shape == images.shape
    if own_vae:
        learnt = train_vae.encode(own_vae, images.movedim(-1, 1) * 2 - 1)
        assert (latents - learnt).abs().max() < 0.1 * latents.std()  # training encodes in bfloat16
    else:
        assert torch.equal(latents, images.movedim(-1, 1) * 2 - 1)


#: One that starts from another model, and one that reads pictures by a VAE; the others differ by their networks alone.
@pytest.mark.parametrize("architecture", [
    pytest.param(names, id="-".join(names), marks=() if known.vae or names[1] == "transformer" else pytest.mark.nightly)
    for names, known in train.ARCHITECTURES.items()
], indirect=True)  # fmt: skip
def test_stopping_and_going_on_changes_nothing(architecture, untrained_vae, monkeypatch, tmp_path):
    ((world, name),) = (names for names, known in train.ARCHITECTURES.items() if known is architecture)
    train_vae.export(untrained_vae, tmp_path / "vae.safetensors")
    command = ["--world", world, "--architecture", name, "--steps", "2", "--threads", "1"]
    command += ["--vae", str(tmp_path / "vae.safetensors")]
    threads = torch.get_num_threads()
    monkeypatch.setattr(comfy_host, "start", lambda *_: None)

    def run(folder: str, *lengths: int) -> dict:
        path = tmp_path / folder / "state.pt"
        for length in lengths:
            # The planned number of steps shapes the learning rate: stop in the middle of one plan of two.
            monkeypatch.setattr(train, "range", lambda a, _b, n=length: range(a, n), raising=False)
            out = str(path.with_name("out.safetensors"))
            train.main([*command, "--save-every", "1", "--state", str(path), "--out", out])
        return torch.load(path, weights_only=True)

    whole, parts = run("whole", 2), run("parts", 1, 2)
    assert whole["step"] == parts["step"] == 2
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][key]) for key, value in whole[part].items())
    with pytest.raises(SystemExit, match="of seed 0, not 1"):
        train.main([*command, "--seed", "1", "--state", str(tmp_path / "whole" / "state.pt")])
    assert torch.get_num_threads() == threads


def test_learning_rate_rises_stays_and_falls_to_nothing():
    early, warm, flat, falling, last = (train.rate_at(step, 4000, 1e-3) for step in (0, 199, 2600, 3300, 4000))
    assert early < warm == flat == 1e-3
    assert falling == pytest.approx(5e-4)
    assert last == 0


def test_both_optimisers_move_all_parameters(words, architecture, sampling):
    model = new_model(words, architecture).requires_grad_(True)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimiser = train.Optimiser(model, architecture.outer)
    with train.differentiable_kernels():
        batch = train.make_batch(0, 0, words, architecture)
        batch.images = batch.images if architecture.vae is None else batch.noise.flip(0)
        train.loss_of(model, batch, sampling).backward()
    unused = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    optimiser.step(1e-3)
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still == unused
    assert all(parameter.grad is None for parameter in model.parameters())


def test_loss_is_the_weighted_error_of_the_image(words, architecture, sampling):
    """Computed by hand from what the denoiser gives, one picture at a time."""
    batch = train.make_batch(0, 5000, words, architecture)
    batch.images = torch.randn(batch.noise.shape, generator=torch.Generator().manual_seed(2))  # or latents
    family, given = architecture.family, []

    def network(x, timesteps, tokens):
        given.append((x, timesteps))
        return 0.3 * x

    loss = train.loss_of(network, batch, sampling)
    errors = []
    for b in range(4):
        sigma = float(sampling.sigmas[int(batch.levels[b] * 1000)])
        image, noise = batch.images[b], batch.noise[b]
        if family in ("Shapes", "Things"):  # v = alpha noise - beta image, with alpha^2 + beta^2 = 1
            alpha = (1 + sigma**2) ** -0.5
            x, ratio = alpha * (image + sigma * noise), sigma
            found = alpha * x - alpha * sigma * 0.3 * x
        else:
            x, ratio = (1 - sigma) * image + sigma * noise, sigma / (1 - sigma)
            found = x - sigma * 0.3 * x
        assert torch.allclose(given[0][0][b], x, atol=1e-5)
        errors.append(10 / (0.5 + ratio**0.8) * (found - image).square().mean())
    assert loss == pytest.approx(float(sum(errors)) / 4, rel=1e-4)


def test_plain_norm_and_rotation_are_bit_equal_to_the_fused_kernel_and_have_a_gradient():
    ck = getattr(pytest.importorskip("comfy.quant_ops"), "ck", None)
    fused = getattr(ck, "rms_rope_split_half", None)
    if fused is None:
        pytest.skip("this host has no fused kernel")
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 2, 16, 6, 32, generator=generator)
    scale, turn = torch.randn(32, generator=generator), torch.randn(1, 16, 1, 16, 2, 2, generator=generator)
    with train.differentiable_kernels():
        plain = ck.rms_rope_split_half
        (gradient,) = torch.autograd.grad(plain(q.requires_grad_(), k, turn, scale, scale)[0].sum(), q)
    assert ck.rms_rope_split_half is fused
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(plain(q, k, turn, scale, scale), fused(q, k, turn, scale, scale)))


@pytest.mark.parametrize(("name", "older"), [("transformer", "unet"), ("joint", "transformer")])
def test_training_starts_from_the_text_encoder_and_convolutions_of_an_older_model(tokenizer, tmp_path, name, older):
    family, words = comfy_host.family(), words_of(tokenizer, train.SHAPES)
    ids = [*words.values(), train.START, train.END]
    source, model = (new_model(words, train.ARCHITECTURES["shapes", of]) for of in (older, name))
    for parameter in source.parameters():
        parameter.data = (1.5 * parameter.data).half().float()
    train.export(source, family, ids, tmp_path / "older.safetensors")
    train.load_start(model, family, ids, tmp_path / "older.safetensors")
    tokens = torch.tensor([train.token_ids("a small red circle", words, [])])
    assert torch.equal(model.context(tokens), source.context(tokens))
    if name == "joint":
        drawn = source.denoiser.draw.state_dict()
        assert all(torch.equal(drawn[key], value) for key, value in model.denoiser.draw.state_dict().items())
    with pytest.raises(SystemExit, match="knows other words"):
        train.load_start(model, family, ids[::-1], tmp_path / "older.safetensors")


def test_what_cannot_be_trained_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        train.arguments(["--world", "things", "--architecture", "transformer"])
    assert "there is no transformer of things: pass --architecture unet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.arguments(["--world", "things", "--vae", str(tmp_path / "none.safetensors")])
    assert "run research/train_vae.py" in capsys.readouterr().err


# The VAE of the things model


def test_windows_depend_on_seed_and_step_alone():
    first, again, later = (train_vae.windows(3, step, 6) for step in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert first.shape == (6, 3, 64, 64)


def test_exported_vae_has_even_latents_and_the_same_round_trip(untrained_vae, tmp_path):
    train_vae.export(untrained_vae, tmp_path / "vae.safetensors")
    vae = train_vae.load(tmp_path / "vae.safetensors")
    rng = np.random.default_rng(0)
    images = np.stack([train.THINGS.draw(train.THINGS.picture(rng, 1 + i % 3)) for i in range(48)])
    images = torch.from_numpy(images).movedim(-1, 1) * 2 - 1
    latents = train_vae.encode(vae, images)
    assert latents.mean() == pytest.approx(0, abs=0.02)
    assert latents.std() == pytest.approx(1, abs=0.02)
    with torch.inference_mode():
        before, after = (each.decode(each.encode(images[:1])) for each in (untrained_vae, vae))
    assert (before - after).abs().max() < 0.01


def test_vae_training_that_stops_and_goes_on_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(comfy_host, "start", lambda *_: None)
    monkeypatch.setattr(train_vae, "windows", lambda seed, step, _windows=train_vae.windows: _windows(seed, step, 2))

    def run(folder: str, *lengths: int) -> dict:
        path = tmp_path / folder / "state.pt"
        for length in lengths:
            stopped = lambda a, b=None, n=length: range(a) if b is None else range(a, n)  # noqa: E731
            monkeypatch.setattr(train_vae, "range", stopped, raising=False)
            out = str(path.with_name("out.safetensors"))
            train_vae.main(["--steps", "2", "--threads", "1", "--save-every", "1", "--state", str(path), "--out", out])
        return torch.load(path, weights_only=True)

    whole, parts = run("whole", 2), run("parts", 1, 2)
    assert whole["step"] == parts["step"] == 2
    for part in ("model", "average"):
        assert all(torch.equal(value, parts[part][key]) for key, value in whole[part].items())
    moved = [name for name, value in whole["model"].items() if not torch.equal(value, whole["average"][name])]
    assert len(moved) == len([name for name in whole["model"] if "vae_" not in name])
