"""The shapes models in a real ComfyUI: loader, sizes, hooks, and what they draw."""

from pathlib import Path

import comfy.model_base
import comfy.model_detection
import comfy.sample
import comfy.sd
import comfy.supported_models
import comfy.utils
import latent_preview
import numpy as np
import pytest
import torch
from comfy.ldm.cosmos.predict2 import MiniTrainDIT
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP

from shapes.grammar import WORDS
from shapes.world import COLOURS, GROUNDS
from support import shapes as shapes_model
from support.host import node
from support.sampling import sample

CLASSES = {"unet": UNetModel, "transformer": MiniTrainDIT, "joint": Flux}
TIMESTEPS = {"unet": 999, "transformer": 1000, "joint": 1}  # at the most noise


@pytest.fixture(scope="module", params=list(CLASSES))
def architecture(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(comfy, architecture) -> Path:
    return shapes_model.CHECKPOINTS[architecture]


@pytest.fixture(scope="module")
def loaded(comfy, checkpoint):
    return shapes_model.load(comfy, checkpoint)


@pytest.fixture(scope="module")
def model(loaded):
    return loaded[0]


@pytest.fixture(scope="module")
def clip(loaded):
    return loaded[1]


@pytest.fixture(scope="module")
def vae(loaded):
    return loaded[2]


@pytest.fixture(scope="module")
def stored(checkpoint) -> dict[str, torch.Tensor]:
    return comfy.utils.load_torch_file(str(checkpoint))


def encode(comfy, clip, caption: str):
    return node(comfy, "CLIPTextEncode").execute(clip=clip, text=caption)[0]


def pixels(height: int, width: int, batch: int = 1) -> dict[str, torch.Tensor]:
    return {"samples": torch.zeros(batch, 3, height, width)}


def test_checkpoint_is_small_and_holds_no_embedding_table(stored, checkpoint):
    assert checkpoint.stat().st_size <= 20e6
    assert max(value.numel() for value in stored.values()) < 49408 * 8


def test_only_the_companion_pack_makes_the_checkpoint_known(loaded, stored, architecture, monkeypatch):
    def recognised():
        return comfy.model_detection.model_config_from_unet(dict(stored), "model.diffusion_model.")

    known = {"unet": "Shapes", "transformer": "ShapesTransformer", "joint": "ShapesJoint"}
    families = comfy.supported_models.models
    assert type(recognised()).__name__ == known[architecture]
    assert all([family.__name__ for family in families].count(name) == 1 for name in known.values())
    others = [family for family in families if family.__name__ not in known.values()]
    monkeypatch.setattr(comfy.supported_models, "models", others)
    assert recognised() is None or architecture == "joint"  # which ComfyUI takes for a Flux


def test_the_model_is_made_of_comfyuis_classes(model, architecture):
    network = model.model.diffusion_model
    assert isinstance(model.model, comfy.model_base.BaseModel)
    assert isinstance(network, CLASSES[architecture])
    if architecture == "unet":
        assert model.model.model_type is comfy.model_base.ModelType.V_PREDICTION
        places = [n.split(".")[0] for n, module in network.named_modules() if isinstance(module, SpatialTransformer)]
        assert set(places) == {"input_blocks", "middle_block", "output_blocks"}
        assert len(places) >= 5
        return
    assert model.model.model_type is comfy.model_base.ModelType.FLOW
    if architecture == "transformer":
        assert {type(block) for block in network.blocks} == {comfy.ldm.cosmos.predict2.Block}
    else:
        blocks = [type(block).__name__ for block in (*network.double_blocks, *network.single_blocks)]
        assert blocks == ["DoubleStreamBlock"] * 2 + ["SingleStreamBlock"] * 4


def test_transformers_match_flows_by_comfyuis_own_equations(model, architecture):
    """x = (1 - sigma) image + sigma noise, v = noise - image, sigma from 0 to 1; pure noise at the start."""
    if architecture == "unet":
        pytest.skip("the U-Net predicts v of a diffusion")
    sampling = model.model.model_sampling
    image, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    for sigma in (torch.tensor([1.0, 0.25]), sampling.sigmas[[0, -1]]):
        x = sampling.noise_scaling(sigma, noise, image)
        s = sigma.view(-1, 1, 1, 1)
        assert torch.allclose(x, (1 - s) * image + s * noise)
        assert torch.allclose(sampling.calculate_denoised(sigma, noise - image, x), image, atol=1e-6)
        assert torch.allclose(sampling.timestep(sigma), TIMESTEPS[architecture] * sigma)
    assert sampling.sigma_max == 1


def test_words_of_the_grammar_are_trained_and_other_tokens_come_from_the_seed(clip):
    table = clip.cond_stage_model.clip_l.transformer.text_model.embeddings.token_embedding.weight
    seeded = torch.randn(49408, 128, generator=torch.Generator().manual_seed(0)).to(table.dtype)
    changed = {i for i in range(49408) if not torch.equal(table[i], seeded[i])}
    vocabulary = clip.tokenizer.clip_l.tokenizer.get_vocab()
    assert changed == {vocabulary[word + "</w>"] for word in WORDS} | {49406, 49407}


def test_any_prompt_runs_weighted_and_long(comfy, clip, architecture):
    joint = architecture == "joint"  # whose texts have less padding
    plain, weighted = (encode(comfy, clip, f"a {word} circle")[0][0] for word in ("red", "(red:1.3)"))
    assert plain.shape == (1, 28 if joint else 77, 128)
    assert not torch.equal(plain, weighted)
    long = encode(comfy, clip, "a red circle and " * 30)[0][0]
    assert long.shape == (1, 30 * 4 + 4 if joint else 154, 128)  # two chunks, each with a start and an end
    assert long[:, -1].any() == joint
    assert encode(comfy, clip, "Ein Löwe mit Krone, 8k, (masterpiece:1.2)")[0][0].isfinite().all()


def test_empty_latent_of_512_becomes_64_pixels(comfy, loaded):
    model, clip, vae = loaded
    latent = node(comfy, "EmptyLatentImage").execute(width=768, height=512, batch_size=2)[0]
    positive, negative = (encode(comfy, clip, c) for c in ("a red circle", ""))
    (out,) = node(comfy, "KSampler").execute(
        model=model, positive=positive, negative=negative, latent_image=latent, steps=2, seed=1, cfg=4.0, denoise=1.0)
    (image,) = node(comfy, "VAEDecode").execute(samples=out, vae=vae)
    assert image.shape == (2, 64, 96, 3)


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (40, 24), (62, 75)])
def test_sizes_and_images_of_a_batch_are_independent(comfy, model, clip, size):
    positive, negative = (encode(comfy, clip, c) for c in ("a red circle", ""))
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    both, second = (sample_noise(model, n, positive, negative) for n in (noise, noise[1:]))
    assert both.shape == (2, 3, *size)
    assert torch.allclose(both[1:], second, atol=1e-4)


def sample_noise(model, noise, positive, negative):
    """Three steps from a noise of one's own."""
    with torch.inference_mode():
        return comfy.sample.sample(model, noise, 3, 4.0, "euler", "normal", positive, negative,
                                   torch.zeros_like(noise), disable_pbar=True, seed=0)  # fmt: skip


def test_edits_are_composed_in(comfy, model, clip):
    """An edit equal to the prompt changes nothing, one with alpha 0 no bit; another one changes the image."""
    positive, negative, other = (encode(comfy, clip, c) for c in ("a red circle", "", "a blue square"))

    def drawn(text, alpha: float) -> torch.Tensor:
        (edit,) = node(comfy, "EBCAEditContext").execute(
            conditioning=text, direction="add", alpha=alpha, start_percent=0.0, end_percent=1.0, gamma_attn=0.0,
            gamma_norm=0.0, gamma_start_percent=0.0, gamma_end_percent=1.0)  # fmt: skip
        (composed,) = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})
        return sample(composed, positive, negative, pixels(64, 64), steps=2)

    plain = sample(model, positive, negative, pixels(64, 64), steps=2)
    assert torch.equal(drawn(other, 0.0), plain)
    assert torch.allclose(drawn(positive, 0.5), plain, atol=1e-5)
    assert (drawn(other, 0.5) - plain).abs().max() > 0.1


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m_sde", "uni_pc", "ddim"])
def test_samplers_run(comfy, model, clip, sampler):
    out = sample(model, encode(comfy, clip, "a red circle"), encode(comfy, clip, ""), pixels(64, 64), sampler=sampler)
    assert out.shape == (1, 3, 64, 64)
    assert out.isfinite().all()


def test_padding_is_cropped_again(model, architecture):
    network, x = model.model.diffusion_model, torch.randn(1, 3, 61, 66)
    context, levels = torch.randn(1, 77, 128), torch.tensor([TIMESTEPS[architecture] / 2])
    with torch.inference_mode():
        right, below = (2, 3) if architecture == "unet" else (6, 3)  # to multiples of 4, or of 8
        padded = torch.nn.functional.pad(x, (0, right, 0, below), mode="replicate")
        whole = network(padded, levels, context=context, transformer_options={})
        part = network(x, levels, context=context, transformer_options={})
    assert torch.allclose(part, whole[..., :61, :66], atol=1e-4)


def test_wrappers_see_the_denoiser_and_the_picture(comfy, model, clip, architecture):
    seen = []

    def wrapper(executor, x, *args, **kwargs):
        options = kwargs.get("transformer_options", args[-1])  # the U-Net gets them by place
        seen.append((type(executor.class_obj).__mro__[1], tuple(x.shape[1:]), set(options)))
        return executor(x, *args, **kwargs)

    wrapped = model.clone()
    wrapped.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    sample(wrapped, encode(comfy, clip, "a red circle"), encode(comfy, clip, ""), pixels(64, 64), steps=1)
    (kind, shape, options) = seen[0]
    assert kind is CLASSES[architecture]
    assert shape == (3, 64, 64)
    assert "sigmas" in options


def test_vae_is_the_identity_and_previews_are_the_picture(model, vae):
    image = torch.rand(1, 64, 64, 3)
    latent = vae.encode(image)
    assert torch.allclose(latent, image.movedim(-1, 1) * 2 - 1, atol=1e-6)
    assert torch.allclose(vae.decode(latent), image, atol=1e-6)
    format_ = model.get_model_object("latent_format")
    previewer = latent_preview.Latent2RGBPreviewer(format_.latent_rgb_factors)
    preview = np.asarray(previewer.decode_latent_to_preview(latent)) / 255.0
    assert np.abs(preview - image[0].numpy()).max() < 0.01


def test_noise_mask_keeps_what_it_covers(comfy, model, clip):
    image, mask = torch.rand(1, 3, 64, 64) * 2 - 1, torch.zeros(1, 1, 512, 512)
    mask[..., 256:] = 1.0
    out = sample(model, encode(comfy, clip, "a red circle"), encode(comfy, clip, ""),
                 {"samples": image, "noise_mask": mask})  # fmt: skip
    assert torch.allclose(out[..., :31], image[..., :31], atol=1e-5)
    assert not torch.allclose(out[..., 33:], image[..., 33:], atol=0.1)


def test_saved_checkpoint_loads_again(loaded, tmp_path):
    model, clip, vae = loaded
    path = tmp_path / "saved.safetensors"
    comfy.sd.save_checkpoint(str(path), model, clip, vae)
    again = comfy.sd.load_checkpoint_guess_config(str(path))
    for new, old in ((again[0].model, model.model), (again[1].cond_stage_model, clip.cond_stage_model)):
        assert all(torch.equal(value, new.state_dict()[key]) for key, value in old.state_dict().items())


@pytest.mark.parametrize(("colour", "ground"), [("red", "white"), ("blue", "grey"), ("yellow", "black")])
def test_colour_and_ground_are_those_of_the_prompt(comfy, loaded, colour, ground):
    """Shapes are for `research/plain_model.py` to count: single pictures may miss them."""
    model, clip, vae = loaded
    positive = encode(comfy, clip, f"a {colour} square on a {ground} background")
    out = sample(model, positive, encode(comfy, clip, ""), pixels(64, 64, 2), steps=25, cfg=4.0)
    for image in vae.decode(out).numpy() * 255:
        palette = {**COLOURS, **GROUNDS}
        names = np.array(list(palette))
        distances = np.stack([np.linalg.norm(image - np.float32(rgb), axis=-1) for rgb in palette.values()])
        near, counts = np.unique(names[distances.argmin(0)[distances.min(0) < 60]], return_counts=True)
        ranking = near[np.argsort(-counts)]
        assert list(ranking[:2]) == [ground, colour]
