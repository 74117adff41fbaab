"""Tiny transformers as in toy_dit.py, of the families with further texts, streams or inputs. Needs a booted host.

Parts of a network that no test runs (encoders of sound and faces) are dropped, and text adapters of fixed size are
replaced by small ones of the same class.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any

import comfy.nested_tensor
import comfy.ops
import comfy.sample
import comfy.supported_models
import torch
from comfyui_version import __version__
from packaging.version import Version

from support import toy_dit
from support.toy import noise, patcher

WIDTH, TOKENS = 40, 9
#: Of Stable Audio, whose heads are at least 32 wide.
SOUND_WIDTH = 64

_WAN = dict(
    image_model="wan2.1", dim=48, ffn_dim=96, num_heads=2, num_layers=3, text_dim=WIDTH, in_dim=16, out_dim=16,
    freq_dim=32,
)  # fmt: skip
_PREDICT2 = dict(
    in_channels=16, out_channels=16, max_img_h=240, max_img_w=240, max_frames=128, patch_spatial=2, patch_temporal=1,
    num_heads=2, concat_padding_mask=True, pos_emb_cls="rope3d", pos_emb_interpolation="crop", use_adaln_lora=True,
    adaln_lora_dim=16, model_channels=64, num_blocks=3, crossattn_emb_channels=WIDTH,
)  # fmt: skip
_LTXAV = dict(
    image_model="ltxav", in_channels=128, audio_in_channels=128, cross_attention_dim=64, audio_cross_attention_dim=32,
    attention_head_dim=32, num_attention_heads=2, audio_attention_head_dim=16, audio_num_attention_heads=2,
    caption_channels=WIDTH, num_layers=3, connector_attention_head_dim=20, connector_num_attention_heads=2,
    connector_num_layers=1,
)  # fmt: skip
_LTX23 = dict(
    caption_proj_before_connector=True, cross_attention_adaln=True, apply_gated_attention=True,
    caption_projection_first_linear=False, connector_attention_head_dim=32, audio_connector_attention_head_dim=16,
)  # fmt: skip
_STABLE_AUDIO = dict(
    audio_model="dit1.0", io_channels=8, embed_dim=128, num_heads=4, depth=3, cond_token_dim=SOUND_WIDTH,
)  # fmt: skip

#: Where ComfyUI's own attention fails on an older one, here if the text has fewer heads than the sound.
RUNS_SINCE = {"stable_audio3": "0.27"}

_VIDEO = (16, 2, 8, 8)
_BOTH = ("b0.0", "a0.0", "b1.0", "a1.0", "b2.0", "a2.0")


def _nothing(base) -> None:
    pass


@dataclass(frozen=True)
class Toy:
    """The class of comfy.supported_models, its settings, the shape of a latent, and what makes the network small."""

    class_name: str
    settings: dict[str, Any]
    shape: tuple[int, ...] = _VIDEO
    shrink: Callable[[Any], None] = _nothing
    width: int = WIDTH
    #: What a CONDITIONING holds besides the text, by seed.
    options: Callable[[int], dict[str, Any]] = lambda seed: {}
    #: Tokens of the text as the layers read it that are no words, in a text of TOKENS tokens.
    not_words: tuple[int, ...] = ()
    #: Names of the layers, in the order of a call.
    layers: tuple[str, ...] = ("b0.0", "b1.0", "b2.0")
    #: The size of a patch of the latent's last dimensions; tokens in front of the picture's, and behind them.
    patch: tuple[int, ...] = (1, 2, 2)
    before: int = 0
    after: int = 0
    has_mask: bool = False
    #: Of the text, so that it has a share in the result.
    scale: float = 1.0


def _vision(seed: int) -> Any:
    return type("VisionOutput", (), {"penultimate_hidden_states": noise(1, 5, 1280, seed=60 + seed)})


def _image(seed: int) -> dict[str, Any]:
    return {"clip_vision_output": _vision(0)}


def _two_images(seed: int) -> dict[str, Any]:
    return {**_image(seed), "clip_vision_output_ref": _vision(1)}


def _reference(seed: int) -> dict[str, Any]:
    return {"reference_latents": [noise(1, 16, 1, 8, 8, seed=50)]}


def _known(path: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a network's class takes in this ComfyUI."""
    module, name = path.rsplit(".", 1)
    parameters = signature(getattr(import_module(f"comfy.ldm.{module}"), name)).parameters
    return {key: value for key, value in settings.items() if key in parameters}


def _drop(*names: str) -> Callable[[Any], None]:
    def drop(base) -> None:
        for name in names:
            setattr(base.diffusion_model, name, None)

    return drop


def _image_and_reference(seed: int) -> dict[str, Any]:
    return {**_image(seed), **_reference(seed)}


def _small_llm_adapter(base) -> None:
    from comfy.ldm.anima.model import LLMAdapter

    base.diffusion_model.llm_adapter = LLMAdapter(
        WIDTH, WIDTH, 32, num_layers=1, num_heads=2, dtype=base.get_dtype(), operations=comfy.ops.disable_weight_init
    )


def _small_lyric_encoder(base) -> None:
    from comfy.ldm.ace.lyric_encoder import ConformerEncoder

    base.diffusion_model.lyric_encoder = ConformerEncoder(
        input_size=32, output_size=32, attention_heads=2, linear_units=32, num_blocks=1, static_chunk_size=0,
        dtype=base.get_dtype(), operations=comfy.ops.disable_weight_init,
    )  # fmt: skip


def _small_seconds(base) -> None:
    from comfy.ldm.audio.embedders import NumberConditioner

    for name in ("seconds_start_embedder", "seconds_total_embedder"):
        if hasattr(base, name):
            embedder = NumberConditioner(SOUND_WIDTH, min_val=0, max_val=512)
            toy_dit.fill(embedder, 5)
            setattr(base, name, embedder.to(base.get_dtype()))
    if hasattr(base, "padding_embedding"):
        base.model_config.unet_config["max_text_tokens"] = 12
        padding = noise(SOUND_WIDTH, seed=6).to(base.get_dtype())
        base.padding_embedding = torch.nn.Parameter(padding, requires_grad=False)


def _anima_options(seed: int) -> dict[str, Any]:
    ids = torch.randint(1, 32000, (TOKENS,), generator=torch.Generator().manual_seed(70 + seed))
    return {"t5xxl_ids": ids, "t5xxl_weights": torch.ones(TOKENS)}


def _lyrics(seed: int) -> dict[str, Any]:
    return {"conditioning_lyrics": torch.randint(1, 60, (1, 4), generator=torch.Generator().manual_seed(80 + seed))}


def _embedded_lyrics(seed: int) -> dict[str, Any]:
    return {"conditioning_lyrics": noise(1, 4, WIDTH, seed=80 + seed)}


FAMILIES = {
    "wan_22_5b": Toy("WAN22_T2V", dict(_WAN, model_type="t2v", in_dim=48, out_dim=48), (48, 2, 8, 8)),
    "wan_22_i2v": Toy("WAN21_T2V", dict(_WAN, model_type="t2v", in_dim=36), options=_image),
    "wan_i2v": Toy("WAN21_I2V", dict(_WAN, model_type="i2v", in_dim=36), options=_image),
    "wan_fun_control": Toy(
        "WAN21_FunControl2V", dict(_WAN, model_type="i2v", in_dim=48, in_dim_ref_conv=16),
        options=_image_and_reference, before=16,
    ),
    "wan_camera": Toy("WAN21_Camera", dict(_WAN, model_type="camera", in_dim=32), options=_image),
    "wan_22_camera": Toy("WAN22_Camera", dict(_WAN, model_type="camera_2.2", in_dim=36)),
    "wan_humo": Toy(
        "WAN21_HuMo", dict(_WAN, model_type="humo"), shrink=_drop("audio_proj"), options=_reference, after=16
    ),
    "wan_s2v": Toy(
        "WAN22_S2V", dict(_WAN, model_type="s2v", audio_inject_layers=[0], audio_dim=32), options=_reference, after=16
    ),
    "wan_animate": Toy(
        "WAN22_Animate", dict(_WAN, model_type="animate", in_dim=36),
        shrink=_drop("motion_encoder", "face_encoder"), options=_image,
    ),
    "wan_dancer": Toy("WAN22_WanDancer", dict(_WAN, model_type="wandancer", in_dim=36), options=_two_images),
    "wan_scail": Toy("WAN21_SCAIL", dict(_WAN, model_type="scail", in_dim=20), options=_image_and_reference, before=16),
    "wan_scail2": Toy(
        "WAN21_SCAIL2", dict(_WAN, model_type="scail2", in_dim=20), options=_image_and_reference, before=16
    ),
    "anima": Toy(
        "Anima", dict(_PREDICT2, image_model="anima", pos_emb_learnable=True), (16, 1, 8, 8), _small_llm_adapter,
        options=_anima_options, not_words=tuple(range(TOKENS, 512)),
    ),
    "cosmos1": Toy("CosmosT2V", dict(
        _PREDICT2, image_model="cosmos", block_config="FA-CA-MLP", block_x_format="THWBD", affline_emb_norm=True,
        extra_per_block_abs_pos_emb=True, extra_per_block_abs_pos_emb_type="learnable", pos_emb_learnable=False,
    )),
    "ltxv_23": Toy("LTXV", dict(
        image_model="ltxv", in_channels=128, cross_attention_dim=64, attention_head_dim=32, num_attention_heads=2,
        caption_channels=WIDTH, num_layers=3, cross_attention_adaln=True,
    ), (128, 2, 4, 4), has_mask=True, patch=(1, 1, 1)),
    "ltxav": Toy("LTXAV", _LTXAV, (128, 2, 4, 4), width=2 * WIDTH, layers=_BOTH, patch=(1, 1, 1)),
    "ltxav_23": Toy("LTXAV", _LTXAV | _LTX23, (128, 2, 4, 4), width=64 + 32, layers=_BOTH, patch=(1, 1, 1)),
    "stable_audio1": Toy(
        "StableAudio", dict(_STABLE_AUDIO, global_cond_dim=2 * SOUND_WIDTH), (8, 24), _small_seconds, SOUND_WIDTH,
        not_words=(TOKENS, TOKENS + 1), before=1, scale=20.0, patch=(1,),
    ),
    "stable_audio3": Toy(
        "StableAudio3", dict(
            _STABLE_AUDIO, global_cond_dim=SOUND_WIDTH, global_cond_type="adaLN", global_cond_shared_embed=True,
            norm_type="rms_norm", attn_kwargs=dict(qk_norm="rms", differential=True), timestep_features_type="expo",
            local_add_cond_dim=9, num_memory_tokens=3,
        ), (8, 24), _small_seconds, SOUND_WIDTH, before=3, scale=20.0, patch=(1,),
    ),
    "ace": Toy("ACEStep", dict(
        audio_model="ace", num_layers=3, attention_head_dim=16, num_attention_heads=2, mlp_ratio=2.0, max_position=64,
        text_embedding_dim=WIDTH, lyric_encoder_vocab_size=64, lyric_hidden_size=32, ssl_latent_dims=[8, 8],
    ), (8, 16, 12), _small_lyric_encoder, options=_lyrics, not_words=(0,), patch=(16, 1)),
    # The host's timbre of a batch depends on its size: an edit is like the prompt in calls with one row.
    "ace15": Toy("ACEStep15", _known("ace.ace_step15.AceStepConditionGenerationModel", dict(
        audio_model="ace1.5", hidden_size=64, text_hidden_dim=WIDTH, num_dit_layers=3, num_lyric_layers=1,
        num_timbre_layers=1, num_tokenizer_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=64,
        fsq_dim=64, encoder_hidden_size=64, encoder_intermediate_size=64, encoder_num_heads=4,
    )), (64, 20), options=_embedded_lyrics, not_words=(4,), patch=(2,)),
}  # fmt: skip


def outside_weights(class_name: str) -> dict[str, torch.Tensor]:
    """Weights that Stable Audio asks for outside its network."""
    if not class_name.startswith("StableAudio"):
        return {}
    from comfy.ldm.audio.embedders import NumberConditioner

    own = {} if class_name == "StableAudio" else {"fourier_features_type": "expo"}
    weights = NumberConditioner(768, min_val=0, max_val=512, **own).state_dict()
    parts = ("seconds_start", "seconds_total")
    return {f"conditioner.conditioners.{part}.{name}": value for part in parts for name, value in weights.items()} | {
        "conditioner.conditioners.prompt.padding_embedding": torch.zeros(SOUND_WIDTH)
    }


def exists(family: str) -> bool:
    """Whether this ComfyUI has the family, and runs it without EBCA."""
    is_old = Version(__version__) < Version(RUNS_SINCE.get(family, "0"))
    return hasattr(comfy.supported_models, FAMILIES[family].class_name) and not is_old


def model(family: str, dtype: torch.dtype = torch.float32, **more: Any):
    """A MODEL of one of the families; more: settings of the network that differ."""
    toy = FAMILIES[family]
    config = getattr(comfy.supported_models, toy.class_name)({**toy.settings, **more})
    config.set_inference_dtype(dtype, None)
    base = config.get_model(outside_weights(toy.class_name), device=torch.device("cpu"))
    toy.shrink(base)
    toy_dit.fill(base.diffusion_model, 0)
    for name, buffer in base.diffusion_model.named_buffers():
        if name.endswith("rotary_pos_emb.inv_freq"):
            buffer.copy_(10_000.0 ** -torch.linspace(0, 1, len(buffer)))
    return patcher(base.eval())


def conditioning(family: str, seed: int = 0, tokens: int = TOKENS) -> list:
    """A random CONDITIONING as the family's text encoder gives it."""
    toy = FAMILIES[family]
    mask = {"attention_mask": torch.ones(1, tokens, dtype=torch.long)} if toy.has_mask else {}
    return [[toy.scale * noise(1, tokens, toy.width, seed=1000 + seed), {**toy.options(seed), **mask}]]


def latent(family: str, batch: int = 1) -> Any:
    picture = torch.zeros(batch, *FAMILIES[family].shape)
    if FAMILIES[family].class_name != "LTXAV":
        return picture
    return comfy.nested_tensor.NestedTensor((picture, torch.zeros(batch, 8, 5, 16)))


def _noise(latent: Any) -> Any:
    """Noise that does not depend on the size of the batch."""
    if latent.is_nested:
        return comfy.nested_tensor.NestedTensor([_noise(one) for one in latent.unbind()])
    return torch.cat([noise(1, *latent.shape[1:], seed=image) for image in range(len(latent))])


def sample(
    model, family: str, positive, negative=None, batch: int = 1, steps: int = 3, cfg: float = 1.0, **options: Any
) -> torch.Tensor:
    """The result of ComfyUI's sampling, flat where it is a picture with its sound."""
    with torch.inference_mode():
        start = latent(family, batch)
        out = comfy.sample.sample(
            model, _noise(start), steps, cfg, "euler", "simple", positive,
            positive if negative is None else negative, start,
            disable_pbar=True, seed=0, **options,
        )  # fmt: skip
    if not out.is_nested:
        return out
    return torch.cat([one.flatten(1) for one in out.unbind()], dim=1)
