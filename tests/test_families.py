"""Every supported family in its full size is accepted and its layers are found; every other family is refused."""
from __future__ import annotations

import functools
import importlib

import comfy.model_detection
import comfy.supported_models
import pytest
import torch

from support import toy, toy_dit_more
from support.host import node
from support.sampling import relative_error, sample

pytestmark = pytest.mark.interface

META = torch.device("meta")


def config(channels, context, **options):
    """A U-Net's configuration as ComfyUI detects it in a checkpoint."""
    return dict(
        image_size=32, in_channels=4, out_channels=4, model_channels=channels, use_spatial_transformer=True,
        use_checkpoint=False, legacy=False, use_temporal_attention=False, use_temporal_resblock=False,
        context_dim=context, use_linear_in_transformer=True, adm_in_channels=None, **options,
    )  # fmt: skip


def depths(down, middle, up, channel_mult):
    """Transformers' depths; `up` in the order of the model's output blocks reversed, as configurations have it."""
    return dict(
        num_res_blocks=[len(down) // len(channel_mult)] * len(channel_mult), channel_mult=channel_mult,
        transformer_depth=down, transformer_depth_middle=middle, transformer_depth_output=up,
    )  # fmt: skip


_FOUR = depths([1, 1, 1, 1, 1, 1, 0, 0], 1, [1] * 9 + [0] * 3, [1, 2, 4, 4])
SD1 = config(320, 768, **_FOUR) | dict(use_linear_in_transformer=False)
SD2 = config(320, 1024, **_FOUR)


def sdxl(down=(0, 0, 2, 2, 10, 10), middle=10, up=(0, 0, 0, 2, 2, 2, 10, 10, 10), channels=320, context=2048, adm=2816,
         mult=(1, 2, 4)):  # fmt: skip
    return config(channels, context, **depths(list(down), middle, list(up), list(mult))) | dict(
        adm_in_channels=adm, num_classes="sequential"
    )


WAN = dict(image_model="wan2.1", dim=1536, ffn_dim=8960, in_dim=16, out_dim=16, num_heads=12, num_layers=30)
PREDICT2 = dict(
    max_img_h=240, max_img_w=240, max_frames=128, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
    model_channels=2048, concat_padding_mask=True, crossattn_emb_channels=1024, pos_emb_cls="rope3d",
    pos_emb_learnable=True, pos_emb_interpolation="crop", min_fps=1, max_fps=30, use_adaln_lora=True,
    adaln_lora_dim=256, num_blocks=28, num_heads=16,
)  # fmt: skip
REFINER = sdxl((0, 0, 4, 4, 4, 4, 0, 0), 4, (0, 0, 0, 4, 4, 4, 4, 4, 4, 0, 0, 0), 384, 1280, 2560, (1, 2, 4, 4))
SVD = dict(in_channels=8, use_temporal_attention=True, use_temporal_resblock=True, num_classes="sequential",
           use_spatial_context=True, extra_ff_mix_layer=True, merge_strategy="learned_with_images", merge_factor=0.0,
           video_kernel_size=[3, 1, 1])  # fmt: skip

#: name: (ComfyUI's class, configuration, layers of the blocks on the way down, in the middle, up)
SUPPORTED = {
    "SD 1.5": ("SD15", SD1, [1] * 6, [1], [1] * 9),
    "SD 1.5 inpainting": ("SD15", SD1 | dict(in_channels=9), [1] * 6, [1], [1] * 9),
    "SD 1.5 InstructPix2Pix": ("SD15_instructpix2pix", SD1 | dict(in_channels=8), [1] * 6, [1], [1] * 9),
    "SD 2.x": ("SD20", SD2, [1] * 6, [1], [1] * 9),
    "SD 2.x inpainting": ("SD20", SD2 | dict(in_channels=9), [1] * 6, [1], [1] * 9),
    "SD 2.1 unCLIP": ("SD21UnclipH", SD2 | dict(adm_in_channels=2048, num_classes="sequential"), [1] * 6, [1], [1] * 9),
    "SDXL": ("SDXL", sdxl(), [2, 2, 10, 10], [10], [10, 10, 10, 2, 2, 2]),
    "SDXL inpainting": ("SDXL", sdxl() | dict(in_channels=9), [2, 2, 10, 10], [10], [10, 10, 10, 2, 2, 2]),
    "SDXL InstructPix2Pix": (
        "SDXL_instructpix2pix", sdxl() | dict(in_channels=8), [2, 2, 10, 10], [10], [10, 10, 10, 2, 2, 2]
    ),
    "SDXL refiner": ("SDXLRefiner", REFINER, [4] * 4, [4], [4] * 6),
    "SSD-1B": (
        "SSD1B", sdxl((0, 0, 2, 2, 4, 4), -1, (0, 0, 0, 1, 1, 2, 10, 4, 4)), [2, 2, 4, 4], [], [4, 4, 10, 2, 1, 1]
    ),
    "Segmind Vega": (
        "Segmind_Vega", sdxl((0, 0, 1, 1, 2, 2), -1, (0, 0, 0, 1, 1, 1, 2, 2, 2)), [1, 1, 2, 2], [], [2, 2, 2, 1, 1, 1]
    ),
    "KOALA 700M": ("KOALA_700M", sdxl((0, 2, 5), -2, (0, 0, 2, 2, 5, 5)), [2, 5], [], [5, 5, 2, 2]),
    "KOALA 1B": ("KOALA_1B", sdxl((0, 2, 6), 6, (0, 0, 2, 2, 6, 6)), [2, 6], [6], [6, 6, 2, 2]),
    "SDXS": ("SD15", SD1 | depths([0, 1, 1], -2, [0, 0, 1, 1, 1, 1], [1, 2, 4]), [1, 1], [], [1] * 4),
}  # fmt: skip
TOTALS = {"SD 1.5": 16, "SD 2.x": 16, "SDXL": 70, "SDXL refiner": 44, "SSD-1B": 34, "Segmind Vega": 15,
          "KOALA 700M": 21, "KOALA 1B": 30, "SDXS": 6}  # fmt: skip
#: name: (ComfyUI's class, configuration, what the message says besides the class's name)
REFUSED = {
    "SVD": ("SVD_img2vid", SD2 | SVD | dict(adm_in_channels=768), "makes videos from an image, without text"),
    "SV3D_u": ("SV3D_u", SD2 | SVD | dict(adm_in_channels=256), "makes videos from an image, without text"),
    "SV3D_p": ("SV3D_p", SD2 | SVD | dict(adm_in_channels=1280), "makes videos from an image, without text"),
    "x4 upscaler": (
        "SD_X4Upscaler",
        config(256, 1024, **depths([0, 0, 1, 1, 1, 1, 1, 1], 1, [1] * 9 + [0] * 3, [1, 2, 2, 4])) | dict(in_channels=7),
        "self-attention layers read the text too",
    ),
    "SDXS 0.9": (
        "SD20",
        SD2 | depths([1, 1, 1], -2, [1] * 6, [1, 2, 4]) | dict(disable_self_attentions=[True, False, False]),
        "self-attention layers read the text too",
    ),
    "Stable Zero123": ("Stable_Zero123", SD1 | dict(in_channels=8), "an image and a camera position, not text"),
    "Lotus": ("LotusD", SD2 | dict(adm_in_channels=4), "always reads an empty prompt"),
    "no transformers": ("SDXL", sdxl([0] * 6, 0, [0] * 9), "no cross-attention layers"),
    "HunyuanVideo": ("HunyuanVideo", dict(
        image_model="hunyuan_video", in_channels=16, patch_size=[1, 2, 2], out_channels=16, vec_in_dim=32,
        context_in_dim=64, hidden_size=32, mlp_ratio=2.0, num_heads=2, depth=1, depth_single_blocks=1,
        axes_dim=[4, 6, 6], theta=256, qkv_bias=True, guidance_embed=False, byt5=False, meanflow=False,
        use_cond_type_embedding=False, vision_in_dim=None, meanflow_sum=False,
    ), "averages its text"),
    "SD 3 with another text": ("SD3", dict(
        in_channels=16, patch_size=2, out_channels=16, depth=2, input_size=None, adm_in_channels=64,
        pos_embed_max_size=8, pos_embed_scaling_factor=None, context_processor_layers=1, context_size=64,
        context_embedder_config=dict(target="torch.nn.Linear", params=dict(in_features=64, out_features=128)),
    ), "changes its text as a whole"),
    "Wan, autoregressive": (
        "WAN21_CausalAR_T2V", WAN | dict(model_type="t2v", causal_ar=True), "keeps the keys of its text"
    ),
}  # fmt: skip
#: name: (ComfyUI's class, configuration, layers, width of the text, None where it has several)
TRANSFORMERS = {
    "Wan 2.1 1.3B": ("WAN21_T2V", WAN | dict(model_type="t2v"), [f"b{i}.0" for i in range(30)], 4096),
    "Wan 2.1 VACE": (
        "WAN21_Vace", WAN | dict(model_type="vace", vace_layers=15, vace_in_dim=96),
        [f"{part}.0" for i in range(15) for part in (f"b{2 * i}", f"v{i}", f"b{2 * i + 1}")], 4096,
    ),
    "Anima": ("Anima", PREDICT2 | dict(image_model="anima"), [f"b{i}.0" for i in range(28)], 1024),
    "Cosmos-Predict2 2B": ("CosmosT2IPredict2", PREDICT2 | dict(image_model="cosmos_predict2"),
                           [f"b{i}.0" for i in range(28)], 1024),
    "LTX-2": ("LTXAV", dict(image_model="ltxav", in_channels=128),
              [f"{part}{i}.0" for i in range(48) for part in "ba"], None),
    "PixArt": ("PixArtAlpha", dict(
        image_model="pixart_alpha", hidden_size=1152, num_heads=16, depth=28, model_max_length=120,
        caption_channels=4096, in_channels=4, pred_sigma=True, input_size=64, micro_condition=False, patch_size=2,
    ), [f"b{i}.0" for i in range(28)], 4096),
    "Stable Audio": ("StableAudio", dict(audio_model="dit1.0"), [f"b{i}.0" for i in range(24)], 768),
    "ACE-Step": ("ACEStep", dict(audio_model="ace"), [f"b{i}.0" for i in range(28)], 768),
}  # fmt: skip


def built(class_name, settings):
    """The MODEL on the meta device: every layer, no weights."""
    if not hasattr(comfy.supported_models, class_name):
        pytest.skip("this ComfyUI does not have the family")
    made = getattr(comfy.supported_models, class_name)(dict(settings))
    made.set_inference_dtype(torch.float16, None)
    with torch.no_grad():
        return toy.patcher(made.get_model(weights_of(class_name), device=META))


def weights_of(class_name):
    """Weights that a class asks for outside its network."""
    if class_name == "StableAudio":
        return toy_dit_more.outside_weights(class_name)
    if class_name != "Stable_Zero123":
        return {}
    shapes = {"cc_projection.weight": (768, 772), "cc_projection.bias": (768,)}
    return {name: torch.empty(*shape, device=META) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def model_of():
    """A function that gives the MODEL of one of SUPPORTED or REFUSED. It is built once: no test changes it."""
    return functools.cache(lambda name: built(*(SUPPORTED | REFUSED)[name][:2]))


def named(side, layers_per_block):
    return {f"{side}{block}.{depth}" for block, layers in enumerate(layers_per_block) for depth in range(layers)}


@pytest.fixture(scope="module")
def unets(pack):
    return importlib.import_module(f"{pack.__name__}.comfyui_binding.architectures.unet")


@pytest.fixture(scope="module")
def registry(pack):
    return importlib.import_module(f"{pack.__name__}.comfyui_binding.architectures.registry")


@pytest.fixture(scope="module")
def parse_blocks(pack):
    return importlib.import_module(f"{pack.__name__}.comfyui_binding.architectures.layer_selection").parse_blocks


# --- supported -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPPORTED)
def test_configuration_is_the_family_that_comfyui_detects(name):
    class_name, settings, *_ = SUPPORTED[name]
    assert type(comfy.model_detection.model_config_from_unet_config(settings, {})).__name__ == class_name


@pytest.mark.parametrize("name", SUPPORTED)
def test_supported_family_is_accepted_with_all_its_layers(comfy, unets, registry, model_of, name):
    _, settings, down, middle, up = SUPPORTED[name]
    model = model_of(name)
    names = registry.layer_names(model)

    assert set(names) == named("d", down) | named("m", middle) | named("u", up)
    keys = unets.cross_attention_layers(registry.network_of(model))
    assert len(keys) == len(set(names)) == len(names) == TOTALS.get(name, len(names))
    assert registry.context_width(model) == settings["context_dim"]
    assert_accepted(comfy, model, settings["context_dim"])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformer_is_accepted_with_all_its_layers(comfy, registry, name):
    class_name, settings, layers, width = TRANSFORMERS[name]
    model = built(class_name, settings)
    assert registry.layer_names(model) == tuple(layers)
    assert registry.context_width(model) == width
    assert_accepted(comfy, model, width or 7680)


def assert_accepted(comfy, model, width):
    (updated,) = node(comfy, "EBCAContextUpdate").execute(model=model)
    conditioning = [[torch.zeros(1, 77, width), {}]]
    (edit,) = node(comfy, "EBCAEditContext").execute(conditioning=conditioning)
    (composed,) = node(comfy, "EBCACompose").execute(model=updated, edits={"edit0": edit})
    assert composed is not updated is not model


@pytest.mark.parametrize(("name", "blocks", "count"), [
    ("SD 1.5", "", None), ("SD 1.5", "d0", 1), ("SD 1.5", "d0-d5", 6), ("SD 1.5", "d0-d5,m0,u0-u8", 16),
    ("SD 1.5", "d5-u0", 3), ("SD 1.5", "u8", 1), ("SD 1.5", "d0,d0,d0-d1", 2), ("SD 1.5", " d1 , m0 ", 2),
    ("SD 1.5", "d1 m0\nu3", 3), ("SDXL", "d0", 2), ("SDXL", "m0", 10), ("SDXL", "u0.4", 1), ("SDXL", "u0.4-u1.2", 9),
    ("SDXL", "u0-u2", 30), ("SDXL", "d0-u5", 70), ("KOALA 700M", "d1.4", 1), ("KOALA 700M", "d0-u3", 21),
    ("SSD-1B", "u2", 10), ("SDXL refiner", "m0.0-m0.3", 4),
])  # fmt: skip
def test_blocks_name_layers(registry, parse_blocks, model_of, name, blocks, count):
    layers = parse_blocks(registry.layer_names(model_of(name)), blocks)
    assert layers is None if count is None else len(layers) == count


def test_block_names_are_comfyui_s_own_layers(unets, registry, parse_blocks, model_of):
    model = model_of("SDXL")
    key_of = {name: key for key, name in unets.names_of_layers(registry.network_of(model)).items()}
    chosen = {text: parse_blocks(registry.layer_names(model), text) for text in ("d1.1", "m0.9", "u0.4", "u5")}
    found = {text: {key_of[name] for name in names} for text, names in chosen.items()}
    assert found == {"d1.1": {("input", 5, 1)}, "m0.9": {("middle", 0, 9)}, "u0.4": {("output", 0, 4)},
                     "u5": {("output", 5, 0), ("output", 5, 1)}}  # fmt: skip


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_layers_are_in_the_order_of_a_model_call(unets, registry, family):
    model, passed = toy.model(family).clone(), []

    def note(n, context, value, extra_options):
        passed.append((*extra_options["block"], extra_options["block_index"]))
        return n, context, value

    model.set_model_attn2_patch(note)
    sample(model, toy.conditioning(1), steps=1, cfg=1.0, latent=toy.latent(1, 8, 8))
    assert passed == list(unets.cross_attention_layers(registry.network_of(model)))


@pytest.mark.parametrize("family", toy.FAMILIES)
def test_every_family_samples_with_both_methods(comfy, family):
    model, latent = toy.model(family), toy.latent(1, 8, 8)
    (updated,) = node(comfy, "EBCAContextUpdate").execute(model=model)
    (edit,) = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2), start_percent=0.0)
    (composed,) = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})
    plain, *changed = (
        sample(m, toy.conditioning(1), steps=2, latent=latent) for m in (model, updated, composed)
    )
    for out in changed:
        assert torch.isfinite(out).all()
        assert relative_error(out, plain) > 1e-5


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.01, 0.0], ids=["on", "off"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_family_is_refused_by_name_at_both_nodes(comfy, model_of, name, gamma):
    *_, reason = REFUSED[name]
    model = model_of(name)
    (edit,) = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2), alpha=gamma)
    for node_id, inputs in (("EBCAContextUpdate", dict(gamma_attn=gamma, gamma_norm=gamma)),
                            ("EBCACompose", dict(edits={"edit0": edit}))):  # fmt: skip
        with pytest.raises(ValueError) as refusal:
            node(comfy, node_id).execute(model=model, **inputs)
        message = str(refusal.value)
        assert type(model.model).__name__ in message
        assert reason in message
        assert "EBCA works with models that read text through cross-attention: SD 1.x, SD 2.x, SDXL" in message


@pytest.mark.parametrize("family", toy.REFUSED)
def test_refused_toy_family_is_refused(comfy, family):
    with pytest.raises(ValueError, match="EBCA works with models that read text"):
        node(comfy, "EBCAContextUpdate").execute(model=toy.model(family))


@pytest.mark.parametrize(("module", "reason"), [
    ("comfy.ldm.wan.model", "no cross-attention to text that EBCA can reach"),
    ("comfy.ldm.qwen_image21.model", "keeps the text's keys from step to step"),
    ("comfy.ldm.minimax.model", "attends to text and image in one softmax"),
])  # fmt: skip
def test_network_that_only_looks_like_a_supported_one_is_refused(comfy, module, reason):
    model = built(*TRANSFORMERS["Wan 2.1 1.3B"][:2])
    network = model.model.diffusion_model
    network.__class__ = type("Newer", (type(network),), {"__module__": module})
    with pytest.raises(ValueError, match=reason):
        node(comfy, "EBCAContextUpdate").execute(model=model)
