"""The text encoders of transformers: ComfyUI's own tokenizers and encoders, narrowed, with random weights.

T5's and Qwen's vocabularies come with ComfyUI. Those of UMT5 and Gemma come with their checkpoints: here a small one of
the same format and special tokens takes their place. Parts that no test runs (vision towers) are dropped. Needs a
booted host.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any
from unittest.mock import patch

import comfy.ops
import comfy.sd
import torch
from comfy.supported_models_base import ClipTarget

from support import toy_dit, toy_dit_more

CORPUS = """a red cat wearing a blue shirt
a lion with a crown next to a castle, photo of a dog
the dog's bone, a red-haired woman and an old man in green trousers
red blue, red or blue, blue and red, funk, pop, soul, melodic, 90 beats a minute
un café noir, Ünïcödé
一只红色的猫和一只蓝色的狗
"""


@cache
def vocabulary(**special: int) -> torch.Tensor:
    """A SentencePiece model as checkpoints hold it; special: the numbers of its special tokens."""
    import sentencepiece

    model, numbers = io.BytesIO(), {f"{name}_id": number for name, number in special.items()}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines() * 20), model_writer=model, vocab_size=420, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, num_threads=1, **numbers,
    )  # fmt: skip
    return torch.frombuffer(bytearray(model.getvalue()), dtype=torch.uint8)


def _t5(width: int, vocabulary_size: int = 32128, kind: str = "t5") -> dict[str, Any]:
    return dict(
        d_model=width, d_kv=8, d_ff=32, num_heads=2, num_layers=2, vocab_size=vocabulary_size, model_type=kind
    )


def _llama(width: int, **more: Any) -> dict[str, Any]:
    return dict(
        hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        **more,
    )  # fmt: skip


def _ltxav_encoder(**options: Any):
    """LTX-2's encoder joins all 49 layers of Gemma in one product."""
    from comfy.text_encoders.lt import LTXAVTEModel

    made = LTXAVTEModel(**options)
    layers = made.gemma3_12b.num_layers + 1
    made.text_embedding_projection = comfy.ops.manual_cast.Linear(24 * layers, toy_dit_more.WIDTH, bias=False)
    return made


def _t5gemma_encoder(**options: Any):
    """Stable Audio 3's encoder, whose class takes no widths."""
    from comfy.text_encoders import sa3

    class Small(sa3.T5GemmaEncoderConfig):
        def __init__(self):
            super().__init__()
            self.vocab_size, self.hidden_size, self.intermediate_size = 512, toy_dit_more.SOUND_WIDTH, 32
            self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads, self.head_dim = 2, 2, 2, 8

    with patch.object(sa3, "T5GemmaEncoderConfig", Small):
        return sa3.SAT5GemmaModel(**options)


@dataclass(frozen=True)
class Toy:
    """Tokenizer and encoder by name in comfy.text_encoders, the widths, and how ComfyUI names the small vocabulary."""

    module: str
    tokenizer: str
    encoder: str | Callable[..., Any]
    options: dict[str, Any]
    special: dict[str, int] | None = None
    #: The supported toy transformer.
    toy: Any = toy_dit


UMT5 = dict(pad=0, eos=1, unk=2, bos=-1)
GEMMA = dict(pad=0, eos=1, bos=2, unk=3)
FAMILIES = {
    "pixart": Toy("pixart_t5", "PixArtTokenizer", "PixArtT5XXL", {"t5xxl_model_config": _t5(toy_dit.WIDTH)}),
    "ltxv": Toy("lt", "LTXVT5Tokenizer", "genmo.MochiT5XXL", {"t5xxl_model_config": _t5(toy_dit.WIDTH)}),
    "cosmos1": Toy(
        "cosmos", "CosmosT5Tokenizer", "CosmosT5XXL", {"t5xxl_model_config": _t5(toy_dit_more.WIDTH)}, toy=toy_dit_more
    ),
    "stable_audio1": Toy(
        "sa_t5", "SAT5Tokenizer", "SAT5Model", {"t5base_model_config": _t5(toy_dit_more.SOUND_WIDTH)}, toy=toy_dit_more
    ),
    "wan": Toy(
        "wan", "WanT5Tokenizer", "WanT5Model", {"umt5xxl_model_config": _t5(toy_dit.WIDTH, 512, "umt5")}, UMT5
    ),
    "ace": Toy(
        "ace", "AceT5Tokenizer", "AceT5Model", {"_model_config": _t5(toy_dit_more.WIDTH, 512, "umt5")}, UMT5,
        toy_dit_more,
    ),
    "anima": Toy(
        "anima", "AnimaTokenizer", "AnimaTEModel", {"qwen3_06b_model_config": _llama(toy_dit_more.WIDTH)},
        toy=toy_dit_more,
    ),
    "kandinsky5": Toy("kandinsky5", "Kandinsky5TokenizerImage", "Kandinsky5TEModel", {
        "qwen25_7b_model_config": _llama(toy_dit.WIDTH),
        "clip_l_model_config": dict(
            hidden_size=toy_dit.POOLED, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1,
            max_position_embeddings=77, projection_dim=toy_dit.POOLED,
        ),
    }),
    "ltxav": Toy(
        "lt", "LTXAVGemmaTokenizer", _ltxav_encoder, {"_model_config": _llama(24, vocab_size=512)}, GEMMA, toy_dit_more
    ),
}  # fmt: skip
#: Those of models with joint attention, and of Stable Audio 3: the words of their texts have no weights.
UNWEIGHTED = {
    "stable_audio3": Toy("sa3", "SAT5GemmaTokenizer", _t5gemma_encoder, {}, GEMMA, toy_dit_more),
    "qwen": Toy(
        "qwen_image", "QwenImageTokenizer", "QwenImageTEModel", {"qwen25_7b_model_config": _llama(toy_dit.WIDTH)}
    ),
    # What it gives is the layer before the last.
    "zimage": Toy("z_image", "ZImageTokenizer", "ZImageTEModel", {
        "qwen3_4b_model_config": _llama(toy_dit.WIDTH) | {"num_hidden_layers": 3},
    }),
}
#: The outputs of attention in encoders, in adapters behind them, and in the text blocks of a network.
MIXING = ("SelfAttention.o.weight", "o_proj.weight", "attn1.to_out.0.weight", "attn1.to_out.0.bias",
          "self_attention.out_layer.weight", "self_attention.out_layer.bias")  # fmt: skip


def exists(family: str) -> bool:
    """Whether this ComfyUI has the family's encoder and its network."""
    try:
        import_module(f"comfy.text_encoders.{FAMILIES[family].module}")
    except ImportError:
        return False
    toy = FAMILIES[family].toy
    return toy is toy_dit or toy.exists(family)


@cache
def clip(family: str) -> comfy.sd.CLIP:
    """The CLIP of one of FAMILIES or UNWEIGHTED."""
    toy = (FAMILIES | UNWEIGHTED)[family]
    encoder = toy.encoder
    if isinstance(encoder, str):
        *module, name = encoder.split(".")
        encoder = getattr(import_module(f"comfy.text_encoders.{'.'.join(module) or toy.module}"), name)

    def small(**options: Any):
        made = encoder(**{**options, "device": torch.device("meta")})
        for module in list(made.modules()):
            for large in {"visual", "vision_model", "multi_modal_projector"} & module._modules.keys():
                delattr(module, large)
        made = made.to_empty(device="cpu").to(torch.float32)
        toy_dit.fill(made, 3)
        return made

    data = {} if toy.special is None else {"spiece_model": vocabulary(**toy.special)}
    target = ClipTarget(getattr(import_module(f"comfy.text_encoders.{toy.module}"), toy.tokenizer), small)
    return comfy.sd.CLIP(target, tokenizer_data=data, model_options={**toy.options, "dtype": torch.float32})


def without_mixing(module: torch.nn.Module) -> None:
    """Make every row of a text depend on its own token alone."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(MIXING):
                parameter.zero_()
