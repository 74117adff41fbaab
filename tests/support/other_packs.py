"""Other nodes and packs to wire next to EBCA. Needs a booted host.

`Scene` is what a user has on the canvas. The functions that take `(comfy, scene)` wire one neighbour: core's own nodes,
or an imitation of another pack's patches, written after what the pack is known to do. What an imitation does in
cross-attention is told a second time as a formula for the hand-made attention, a `oracle.Neighbour`.
"""
from __future__ import annotations

import copy
import functools
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import comfy.gligen
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy.ldm.modules.attention import CrossAttention, optimized_attention
from comfy.ldm.modules.diffusionmodules.openaimodel import forward_timestep_embed
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.patcher_extension import WrappersMP
from comfy.samplers import calc_cond_batch

from support import oracle, toy
from support.host import node
from support.sampling import sample

Conditioning = list


def _ksampler(comfy, scene: Scene) -> torch.Tensor:
    return sample(scene.model, scene.positive, scene.negative, scene.latent, steps=scene.steps)


@dataclass(frozen=True, eq=False)
class Scene:
    """A model, its prompts and a sampler; others, more_models: what only the sampler's guider uses."""

    model: Any
    positive: Conditioning
    negative: Conditioning
    others: tuple[Conditioning, ...] = ()
    more_models: tuple[Any, ...] = ()
    latent: dict = field(default_factory=toy.latent)
    steps: int = 3
    sampler: Callable[[Any, Scene], torch.Tensor] = _ksampler

    def sampled(self, comfy) -> torch.Tensor:
        torch.manual_seed(0)
        return self.sampler(comfy, self)

    def prompts(self) -> list[oracle.Prompt]:
        """Every text of the scene, and whether it is a positive one."""
        named = [(self.positive, True), (self.negative, False), *((other, False) for other in self.others)]
        return [oracle.Prompt(text[0], positive) for conds, positive in named for text, _ in conds]


def scene(family: str = "sd1", fresh: bool = False, **others: Any) -> Scene:
    """A plain one, on the model that all share or on a fresh one; `others` are fields of Scene."""
    model = toy.model(family) if fresh else base_model(family)
    return Scene(model, toy.conditioning(1), toy.conditioning(2), **others)


@functools.cache
def base_model(family: str = "sd1"):
    return toy.model(family)


# --- core's nodes on the model ---


def on_the_model(node_id: str, **inputs: Any) -> Callable[[Any, Scene], Scene]:
    """A core node MODEL -> MODEL."""
    def wire(comfy, scene: Scene) -> Scene:
        return replace(scene, model=node(comfy, node_id).execute(model=scene.model, **inputs)[0])

    return wire


LORA_STRENGTH = 0.7


@functools.cache
def _lora_file() -> tuple[str, dict[str, torch.Tensor]]:
    """A LoRA of rank 4 on every cross-attention's to_q, to_k and to_v: its file's name and its weight differences."""
    weights, file = {}, {}
    for name, weight in sorted(base_model().model.diffusion_model.state_dict().items()):
        if ".attn2.to_" in name and name.endswith(("q.weight", "k.weight", "v.weight")):
            up, down = toy.noise(weight.shape[0], 4, seed=len(file)), toy.noise(4, weight.shape[1], seed=1 + len(file))
            scale = 0.5 / weight.shape[1] ** 0.5
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            file |= {f"{key}.lora_up.weight": up * scale, f"{key}.lora_down.weight": down}
            weights[name] = LORA_STRENGTH * scale * up @ down
    path = Path(folder_paths.get_folder_paths("loras")[0])
    path.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(file, path / "toy.safetensors")
    return "toy.safetensors", weights


def lora(node_id: str) -> Callable[[Any, Scene], Scene]:
    def wire(comfy, scene: Scene) -> Scene:
        name, _ = _lora_file()
        return on_the_model(node_id, lora_name=name, strength_model=LORA_STRENGTH)(comfy, scene)

    return wire


def hand_merged_lora(comfy, scene: Scene) -> Scene:
    """The scene on a U-Net whose weights hold the LoRA."""
    model = toy.model()
    with torch.no_grad():
        for name, difference in _lora_file()[1].items():
            model.model.diffusion_model.get_parameter(name).add_(difference)
    return replace(scene, model=model)


def hook_lora(comfy, scene: Scene) -> Scene:
    """The LoRA on the positive prompt alone, as a hook."""
    name, _ = _lora_file()
    (hooks,) = node(comfy, "CreateHookLoraModelOnly").execute(lora_name=name, strength_model=LORA_STRENGTH)
    (positive,) = node(comfy, "ConditioningSetProperties").execute(cond_NEW=scene.positive, strength=1.0, hooks=hooks)
    return replace(scene, positive=positive)


MERGE_RATIO = 0.4


def model_merge(comfy, scene: Scene) -> Scene:
    (merged,) = node(comfy, "ModelMergeSimple").execute(model1=scene.model, model2=toy.model(seed=7), ratio=MERGE_RATIO)
    return replace(scene, model=merged)


def hand_merged_model(comfy, scene: Scene) -> Scene:
    model, other = toy.model(), dict(toy.model(seed=7).model.diffusion_model.named_parameters())
    with torch.no_grad():
        for name, weight in model.model.diffusion_model.named_parameters():
            weight.copy_(MERGE_RATIO * weight + (1 - MERGE_RATIO) * other[name])
    return replace(scene, model=model)


def chain(*wires: Callable[[Any, Scene], Scene]) -> Callable[[Any, Scene], Scene]:
    """Several neighbours, one after the other."""
    return lambda comfy, scene: functools.reduce(lambda scene, wire: wire(comfy, scene), wires, scene)


def easy_cache(node_id: str) -> Callable[[Any, Scene], Scene]:
    """EasyCache or LazyCache, tuned so that some of 5 steps are skipped."""
    wire_node = on_the_model(node_id, reuse_threshold=0.5, start_percent=0.0, end_percent=1.0)

    def wire(comfy, scene: Scene) -> Scene:
        return wire_node(comfy, replace(scene, steps=5))

    return wire


def context_windows(anchored: bool) -> Callable[[Any, Scene], Scene]:
    """Core's context windows over a batch of 4 images, 2 at a time, each but the outer ones twice.

    anchored: a window but the first has the image before it in front, as newer ComfyUI has it by default.
    """
    def wire(comfy, scene: Scene) -> Scene:
        can_anchor = "causal_window_fix" in node(comfy, "ContextWindowsManual").defaults()
        if anchored and not can_anchor:
            pytest.skip("this ComfyUI anchors no context windows")
        options = {"causal_window_fix": anchored} if can_anchor else {}
        windows = on_the_model("ContextWindowsManual", context_length=2, context_overlap=1, dim=0, **options)
        return replace(windows(comfy, scene), latent=toy.latent(batch=4))

    return wire


# --- core's nodes on the prompts ---


@functools.cache
def _controlnet():
    net = comfy.cldm.cldm.ControlNet(
        image_size=32, in_channels=4, hint_channels=3, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
        transformer_depth=[1, 1], transformer_depth_middle=1, context_dim=toy.WIDTH, num_heads=4,
        use_spatial_transformer=True, legacy=False,
    )  # fmt: skip
    toy.fill(net.eval(), 5)
    return comfy.controlnet.ControlNet(net, load_device=comfy.model_management.get_torch_device())


def controlnet(comfy, scene: Scene) -> Scene:
    image = toy.noise(1, 64, 64, 3).sigmoid()
    positive, negative = node(comfy, "ControlNetApplyAdvanced").execute(
        positive=scene.positive, negative=scene.negative, control_net=_controlnet(), image=image, strength=0.5
    )
    return replace(scene, positive=positive, negative=negative)


@functools.cache
def _gligen():
    unet, fusers = base_model().model.diffusion_model, []
    for attn2 in oracle.layers(unet).values():
        width = attn2.to_q.in_features
        fusers.append(comfy.gligen.GatedSelfAttentionDense(width, toy.WIDTH, 4, width // 4))
    model = comfy.gligen.Gligen(fusers, comfy.gligen.PositionNet(toy.WIDTH, toy.WIDTH), toy.WIDTH)
    toy.fill(model, 6)
    with torch.no_grad():
        for fuser in fusers:
            fuser.alpha_attn.fill_(0.5)
            fuser.alpha_dense.fill_(0.5)
    return toy.patcher(model)


def gligen(comfy, scene: Scene) -> Scene:
    (positive,) = node(comfy, "GLIGENTextBoxApply").execute(
        conditioning_to=scene.positive, clip=toy.clip(), gligen_textbox_model=_gligen(), text="a cube", width=32,
        height=32, x=16, y=16,
    )  # fmt: skip
    return replace(scene, positive=positive)


def _combined(comfy, scene: Scene, second: Conditioning, first: Conditioning | None = None) -> Scene:
    first = first or scene.positive
    (positive,) = node(comfy, "ConditioningCombine").execute(conditioning_1=first, conditioning_2=second)
    return replace(scene, positive=positive)


def combine(comfy, scene: Scene) -> Scene:
    return _combined(comfy, scene, toy.conditioning(3))


def area(comfy, scene: Scene) -> Scene:
    (part,) = node(comfy, "ConditioningSetArea").execute(
        conditioning=toy.conditioning(3), width=32, height=48, x=16, y=8, strength=0.8
    )
    return _combined(comfy, scene, part)


def mask(comfy, scene: Scene) -> Scene:
    """A second prompt under a mask; ComfyUI also gives each masked prompt its bounding box as an area."""
    where = torch.zeros(1, 64, 64)
    where[:, 8:40, 20:64] = 1
    (part,) = node(comfy, "ConditioningSetMask").execute(
        conditioning=toy.conditioning(3), mask=where, strength=0.8, set_cond_area="mask bounds"
    )
    return _combined(comfy, scene, part)


def timestep_range(comfy, scene: Scene) -> Scene:
    """One prompt for the first half of the run, another from a little before that on."""
    ranged = node(comfy, "ConditioningSetTimestepRange")
    (first,) = ranged.execute(conditioning=scene.positive, start=0.0, end=0.6)
    (second,) = ranged.execute(conditioning=toy.conditioning(3), start=0.3, end=1.0)
    return _combined(comfy, scene, second, first)


# --- core's guiders ---


def sampled_with_guider(comfy, scene: Scene, guider) -> torch.Tensor:
    (sigmas,) = node(comfy, "BasicScheduler").execute(model=scene.model, scheduler="normal", steps=scene.steps)
    return node(comfy, "SamplerCustomAdvanced").execute(
        noise=node(comfy, "RandomNoise").execute(noise_seed=0)[0], guider=guider, sigmas=sigmas,
        sampler=node(comfy, "KSamplerSelect").execute(sampler_name="euler")[0], latent_image=scene.latent,
    )[0]["samples"]  # fmt: skip


def perp_neg(comfy, scene: Scene) -> Scene:
    empty = toy.conditioning(14)

    def sampler(comfy, scene: Scene) -> torch.Tensor:
        (guider,) = node(comfy, "PerpNegGuider").execute(
            model=scene.model, positive=scene.positive, negative=scene.negative, empty_conditioning=empty, cfg=4.0,
            neg_scale=1.5,
        )  # fmt: skip
        return sampled_with_guider(comfy, scene, guider)

    return replace(scene, sampler=sampler, others=(empty,))


def perp_neg_on_the_model(comfy, scene: Scene) -> Scene:
    """The older node: its empty prompt is none of the guider's."""
    empty = toy.conditioning(14)
    wired = on_the_model("PerpNeg", empty_conditioning=empty, neg_scale=1.5)(comfy, scene)
    return replace(wired, others=(empty,))


def dual_cfg(comfy, scene: Scene) -> Scene:
    middle = toy.conditioning(14)

    def sampler(comfy, scene: Scene) -> torch.Tensor:
        (guider,) = node(comfy, "DualCFGGuider").execute(
            model=scene.model, cond1=scene.positive, cond2=middle, negative=scene.negative, cfg_conds=4.0,
            cfg_cond2_negative=2.0,
        )  # fmt: skip
        return sampled_with_guider(comfy, scene, guider)

    return replace(scene, sampler=sampler, others=(middle,))


def dual_model(comfy, scene: Scene) -> Scene:
    """The negative prompt on a U-Net of its own, with the model_options of the other."""
    second = toy.model(seed=7)

    def sampler(comfy, scene: Scene) -> torch.Tensor:
        (guider,) = node(comfy, "DualModelGuider").execute(
            model=scene.model, model_negative=second, positive=scene.positive, negative=scene.negative, cfg=4.0
        )
        return sampled_with_guider(comfy, scene, guider)

    return replace(scene, sampler=sampler, more_models=(second,))


# --- imitations of packs: attn2 replaced ---


class ImagePrompt:
    """As IPAdapter_plus has it: attention over the text plus that over an image; further adapters join by `add`."""

    def __init__(self, image: int, weight: float):
        self.images = [(image, weight)]

    def add(self, image: int, weight: float) -> None:
        self.images.append((image, weight))

    def __call__(self, q, k, v, extra_options):
        heads, roles = extra_options["n_heads"], extra_options["cond_or_uncond"]
        key = (*extra_options["block"], extra_options["block_index"])
        out = optimized_attention(q, k, v, heads)
        rows = q.shape[0] // len(roles)
        for image, weight in self.images:
            texts = [_image_keys(key, image, role == 0, q.shape[-1]) for role in roles]
            ik, iv = (torch.stack([t[i] for t in texts]).repeat_interleave(rows, dim=0).to(q) for i in (0, 1))
            out = out + weight * optimized_attention(q, ik, iv, heads)
        return out


def _image_keys(key: oracle.Key, image: int, positive: bool, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An adapter's keys and values [4, (h d)] of a layer: of the image for a positive prompt, of nothing else."""
    seed = image + 100 * list("imo").index(key[0][0]) + 10 * key[1] + key[2] + (0 if positive else 5000)
    return toy.noise(4, width, seed=seed), toy.noise(4, width, seed=seed + 50_000)


def _image_prompt(comfy, scene: Scene, image: int, weight: float, length: int) -> Scene:
    """As IPAdapter_plus does it at node time; length 2 or 3: how it names the layers."""
    model = scene.model.clone()
    options = model.model_options["transformer_options"] = dict(model.model_options["transformer_options"])
    replaced = options["patches_replace"] = dict(options.get("patches_replace", {}))
    attn2 = replaced["attn2"] = dict(replaced.get("attn2", {}))
    for key in oracle.layers(model.model.diffusion_model):
        if key[:length] in attn2:
            attn2[key[:length]].add(image=image, weight=weight)
        else:
            attn2[key[:length]] = ImagePrompt(image, weight)
    return replace(scene, model=model)


def image_prompt(length: int) -> Callable[[Any, Scene], Scene]:
    return lambda comfy, scene: _image_prompt(comfy, scene, 1, 0.8, length)


def two_image_prompts(comfy, scene: Scene) -> Scene:
    """The second adapter finds the first one's entry and calls `.add` on it."""
    return _image_prompt(comfy, _image_prompt(comfy, scene, 1, 0.8, 2), 2, 0.5, 2)


def image_branch(*adapters: tuple[int, float]) -> oracle.Neighbour:
    def branch(key, q, prompt):
        out = 0.0
        for image, weight in adapters:
            ik, iv = (t.double() for t in _image_keys(key, image, prompt.positive, q.shape[-1]))
            out = out + weight * oracle.attention(q, ik, iv, 4)
        return out

    return oracle.Neighbour(branch=branch)


def own_attention(comfy, scene: Scene) -> Scene:
    """As PLADIS and DenseDiffusion have it: an attention of their own in the layers, here with sharper queries."""
    def replace_attention(q, k, v, extra_options):
        return optimized_attention(q * TEMPERATURE, k, v, extra_options["n_heads"])

    return _attn2_replaced(scene, replace_attention)


def own_text(comfy, scene: Scene) -> Scene:
    """As an old attention couple has it: the replacement reads a text that it has kept, and not what it is given."""
    def replace_attention(q, k, v, extra_options):
        noise = toy.noise(7, q.shape[-1], seed=21).expand(q.shape[0], -1, -1).to(q)
        return optimized_attention(q, noise, noise, extra_options["n_heads"])

    return _attn2_replaced(scene, replace_attention)


def override_with_its_own_text(comfy, scene: Scene) -> Scene:
    """The same through the one slot for attention functions."""
    def override(func, q, k, v, *args, **kwargs):
        if k.shape[1] == q.shape[1]:  # self-attention
            return func(q, k, v, *args, **kwargs)
        noise = toy.noise(7, q.shape[-1], seed=21).expand(q.shape[0], -1, -1).to(q)
        return func(q, noise, noise, *args, **kwargs)

    model = scene.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return replace(scene, model=model)


def own_text_until(sigma: float) -> Callable[[Any, Scene], Scene]:
    """The same above a sigma; below it, the attention of the text that the layer is given."""
    def wire(comfy, scene: Scene) -> Scene:
        def replace_attention(q, k, v, extra_options):
            if float(extra_options["sigmas"][0]) > sigma:
                k = v = toy.noise(7, q.shape[-1], seed=21).expand(q.shape[0], -1, -1).to(q)
            return optimized_attention(q, k, v, extra_options["n_heads"])

        return _attn2_replaced(scene, replace_attention)

    return wire


def attention_of_one_length(comfy, scene: Scene) -> Scene:
    """As DenseDiffusion has it: the replacement weighs the tokens of the prompt, and takes no text of other length."""
    def replace_attention(q, k, v, extra_options):
        return optimized_attention(q, k * _token_scales().to(k), v, extra_options["n_heads"])

    return _attn2_replaced(scene, replace_attention)


def override_of_one_length(comfy, scene: Scene) -> Scene:
    """The same as an attention override."""
    def override(func, q, k, v, *args, **kwargs):
        return func(q, k * _token_scales().to(k) if q.shape[1] != k.shape[1] else k, v, *args, **kwargs)

    model = scene.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return replace(scene, model=model)


def _token_scales() -> torch.Tensor:
    """[77, 1]."""
    return torch.exp(0.3 * toy.noise(77, 1, seed=22))


def _scaled_attention(q, k, v, heads):
    return oracle.attention(q, k * _token_scales().double() if len(k) == 77 else k, v, heads)


ONE_LENGTH = oracle.Neighbour(attend=_scaled_attention)


def _attn2_replaced(scene: Scene, replacement: Callable) -> Scene:
    model = scene.model.clone()
    for side, number, depth in oracle.layers(model.model.diffusion_model):
        model.set_model_attn2_replace(replacement, side, number, depth)
    return replace(scene, model=model)


# --- imitations of packs: attn2_patch ---


def negpip(comfy, scene: Scene) -> Scene:
    """Prompts that hold keys and values in turns, and a patch that takes them apart."""
    def split(q, k, v, extra_options):
        return q, k[:, 0::2], v[:, 1::2]

    model = scene.model.clone()
    model.set_model_attn2_patch(split)
    return replace(scene, model=model, **_interleaved(scene))


def _interleaved(scene: Scene) -> dict[str, Conditioning]:
    return {
        name: [[in_turns(text), options] for text, options in getattr(scene, name)]
        for name in ("positive", "negative")
    }


def in_turns(text: torch.Tensor) -> torch.Tensor:
    """Keys and values in turns; tokens 3 to 8 have a negative weight."""
    values = text.clone()
    values[:, 3:9] *= -1
    return torch.stack([text, values], dim=2).flatten(1, 2)


def hand_interleaved(comfy, scene: Scene) -> Scene:
    return replace(scene, **_interleaved(scene))


#: A second text that a pack gives to every layer, besides the prompt.
SECOND_TEXT = 6


def texts_of_four_dimensions(comfy, scene: Scene) -> Scene:
    """As prompt_injection does it: layers get their texts as [images, prompts, tokens, width]."""
    def inject(n, context, value, extra_options):
        other = toy.conditioning(SECOND_TEXT)[0][0].expand_as(context).to(context)
        both = torch.stack((context, other), dim=1)
        return n, both, both

    model = scene.model.clone()
    model.set_model_attn2_patch(inject)
    return replace(scene, model=model)


def _read_both(prompt: oracle.Prompt, grid: tuple[int, int]) -> list[oracle.Region]:
    """ComfyUI's attention reads the texts of four dimensions one after the other."""
    return [oracle.Region(torch.cat([prompt.text, toy.conditioning(SECOND_TEXT)[0][0][0].double()]))]


TWO_TEXTS = oracle.Neighbour(read=_read_both)


def block_of_its_own(comfy, scene: Scene) -> Scene:
    """As reference-only and TGate have it: a copy of ComfyUI's transformer block that sets fewer options."""
    def without_options(n, context, value, extra_options):
        for name in ("attn_precision", "activations_shape", "n_heads", "dim_head"):
            extra_options.pop(name, None)
        return n, context, value

    model = scene.model.clone()
    model.set_model_attn2_patch(without_options)
    return replace(scene, model=model)


def values_apart(above: float) -> Callable[[Any, Scene], Scene]:
    """Values that are equal to the keys' text above a sigma, and shorter from there on."""
    def wire(comfy, scene: Scene) -> Scene:
        def patch(n, context, value, extra_options):
            return n, context, value.clone() if float(extra_options["sigmas"][0]) > above else 0.2 * value

        model = scene.model.clone()
        model.set_model_attn2_patch(patch)
        return replace(scene, model=model)

    return wire


NEGPIP = oracle.Neighbour(read=lambda prompt, grid: [oracle.Region(prompt.text[0::2], prompt.text[1::2])])

#: The regions' prompts besides the positive one; the second is repeated twice by the pack, or the others are.
COUPLED = (3, 4)
COUPLED_TOKENS = (77, 154)


def _coupled_texts() -> list[torch.Tensor]:
    return [toy.conditioning(seed, tokens)[0][0] for seed, tokens in zip(COUPLED, COUPLED_TOKENS, strict=True)]


def _region_masks(grid: tuple[int, int]) -> torch.Tensor:
    """[3, n, 1]: the left half, and the upper and the lower right quarter."""
    masks = torch.zeros(3, *grid)
    rows, columns = grid[0] // 2, grid[1] // 2
    masks[0, :, :columns] = 1
    masks[1, :rows, columns:] = 1
    masks[2, rows:, columns:] = 1
    return masks.flatten(1).unsqueeze(-1)


def attention_couple(own_values: bool = False) -> Callable[[Any, Scene], Scene]:
    """A prompt for each region: the batch grows by a row a region, and is folded together after the layer.

    own_values: keys and values are equal but separate tensors, as one of these packs has it.
    """
    def grow(q, k, v, extra_options):
        roles = extra_options["cond_or_uncond"]
        tokens = 154 // k.shape[1]
        qs, ks = [], []
        for role, q_part, k_part in zip(roles, q.chunk(len(roles)), k.chunk(len(roles)), strict=True):
            k_part = k_part.repeat(1, tokens, 1)
            regions = [] if role == 1 else [
                text.repeat(len(q_part), 154 // text.shape[1], 1).to(k) for text in _coupled_texts()
            ]
            qs.append(q_part.repeat(1 + len(regions), 1, 1))
            ks.append(torch.cat([k_part, *regions]))
        keys = torch.cat(ks)
        return torch.cat(qs), keys, keys.clone() if own_values else keys

    def fold(out, extra_options):
        roles = extra_options["cond_or_uncond"]
        rows = out.shape[0] // sum(1 if role == 1 else 3 for role in roles)
        folded = []
        for role in roles:
            regions, out = out[: rows * (1 if role == 1 else 3)], out[rows * (1 if role == 1 else 3) :]
            if role != 1:
                masks = _region_masks(tuple(extra_options["activations_shape"][-2:])).to(out)
                regions = (regions.unflatten(0, (3, rows)) * masks.unsqueeze(1)).sum(0)
            folded.append(regions)
        return torch.cat(folded)

    def wire(comfy, scene: Scene) -> Scene:
        model = scene.model.clone()
        model.set_model_attn2_patch(grow)
        model.set_model_attn2_output_patch(fold)
        return replace(scene, model=model)

    return wire


def _read_coupled(prompt: oracle.Prompt, grid: tuple[int, int]) -> list[oracle.Region]:
    if not prompt.positive:
        return [oracle.Region(prompt.text)]
    texts = [prompt.text, *(text[0].double() for text in _coupled_texts())]
    return [oracle.Region(text, share=m) for text, m in zip(texts, _region_masks(grid).double(), strict=True)]


COUPLE = oracle.Neighbour(read=_read_coupled)


# --- imitations of packs: the rest ---

TEMPERATURE = 1.3


def attention_override(comfy, scene: Scene) -> Scene:
    """The one slot through which packs bring their own attention (sage and the like); here with sharper queries."""
    def override(func, q, *args, **kwargs):
        return func(q * TEMPERATURE, *args, **kwargs)

    model = scene.model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return replace(scene, model=model)


SHARPENED = oracle.Neighbour(attend=lambda q, k, v, heads: oracle.attention(q * TEMPERATURE, k, v, heads))


def _wrapped_unet(scene: Scene, key: str, make_wrapper: Callable[[], Callable]) -> Scene:
    """A wrapper around each call of the U-Net; a new one for each run, as such packs reset themselves."""
    state: dict[str, Callable] = {}

    def run(executor, *args, **kwargs):
        state["wrapper"] = make_wrapper()
        return executor(*args, **kwargs)

    model = scene.model.clone()
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, key, run)
    model.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, key, lambda executor, *args, **kwargs: state["wrapper"](executor, *args, **kwargs)
    )
    return replace(scene, model=model)


def named_arguments(comfy, scene: Scene) -> Scene:
    """Wrappers that pass arguments on by their names."""

    def around_model(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **more):
        options = {} if control is None else {"control": control}
        return executor(
            x, t, c_crossattn=c_crossattn, c_concat=c_concat, transformer_options=transformer_options, **options, **more
        )

    def around_network(executor, x, timesteps, context=None, y=None, control=None, transformer_options=None, **more):
        return executor(
            x, timesteps, transformer_options=transformer_options, context=context, y=y, control=control, **more
        )

    model = scene.model.clone()
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "named", around_model)
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "named", around_network)
    return replace(scene, model=model)


def skip_cache(comfy, scene: Scene) -> Scene:
    """A step cache: every second call of the U-Net is answered with the previous one's output."""
    def make_wrapper():
        calls: list[torch.Tensor | None] = []

        def wrapper(executor, *args, **kwargs):
            fresh = len(calls) % 2 == 0
            calls.append(executor(*args, **kwargs) if fresh else calls[-1])
            return calls[-1].clone()

        return wrapper

    return _wrapped_unet(replace(scene, steps=4), "skip_cache", make_wrapper)


def deep_cache(comfy, scene: Scene) -> Scene:
    """DeepCache: every second call computes the outermost blocks alone, on the previous call's deep features."""
    def make_wrapper():
        deep: list[torch.Tensor] = []

        def keep(h, skip, options):
            if options["block"] == ("output", 3):
                deep.append(h)
            return h, skip

        def outermost(unet, x, timesteps, context, options):
            emb = unet.time_embed(timestep_embedding(timesteps, unet.model_channels).to(x.dtype))
            options |= {"original_shape": list(x.shape), "transformer_index": 0, "block": ("input", 0)}
            skip = forward_timestep_embed(unet.input_blocks[0], x, emb, context, options)
            options["block"] = ("output", 3)
            h = torch.cat([deep.pop(), skip], dim=1)
            return unet.out(forward_timestep_embed(unet.output_blocks[3], h, emb, context, options))

        def wrapper(executor, x, timesteps, context, y, control, options, **kwargs):
            if deep:
                return outermost(executor.class_obj, x, timesteps, context, options)
            patches = options.get("patches", {})
            blocks = [*patches.get("output_block_patch", ()), keep]
            options = {**options, "patches": {**patches, "output_block_patch": blocks}}
            return executor(x, timesteps, context, y, control, options, **kwargs)

        return wrapper

    return _wrapped_unet(replace(scene, steps=4), "deep_cache", make_wrapper)


def reference_only(comfy, scene: Scene) -> Scene:
    """Advanced-ControlNet's reference: a pass on a reference image, then one on x, whose self-attention sees both."""
    def make_wrapper():
        def wrapper(executor, x, timesteps, context, y, control, options, **kwargs):
            seen: list[torch.Tensor] = []

            def write(n, context_attn1, value, extra_options):
                seen.append(n.clone())
                return n, context_attn1, value

            def read(n, context_attn1, value, extra_options):
                both = torch.cat([context_attn1, seen.pop(0)], dim=1)
                return n, both, both

            def with_patch(patch):
                patches = options.get("patches", {})
                return {**options, "patches": {**patches, "attn1_patch": [*patches.get("attn1_patch", ()), patch]}}

            reference = 0.5 * toy.noise(*x.shape[1:], seed=11).to(x).expand_as(x)
            executor(reference, timesteps, context, y, control, with_patch(write), **kwargs)
            return executor(x, timesteps, context, y, control, with_patch(read), **kwargs)

        return wrapper

    return _wrapped_unet(scene, "reference_only", make_wrapper)


def model_function(comfy, scene: Scene) -> Scene:
    """A model_function_wrapper that changes what goes in and what comes out, and calls the model as it should."""
    def wrapper(apply_model, args):
        return 0.9 * apply_model(args["input"] * 1.01, args["timestep"], **args["c"])

    model = scene.model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return replace(scene, model=model)


def swapped_texts(tokens: int, from_sigma: float = math.inf) -> Callable[[Any, Scene], Scene]:
    """As LLM adapters for SD 1.5 have it: from some sigma on the U-Net gets other texts than the guider's prompts."""
    def wire(comfy, scene: Scene) -> Scene:
        texts = [text[0][0][0] for text in _texts_instead(tokens)]

        def wrapper(apply_model, args):
            c, roles = args["c"], args["cond_or_uncond"]
            if float(args["timestep"][0]) <= from_sigma:
                rows = len(args["input"]) // len(roles)
                instead = torch.stack([texts[role] for role in roles]).repeat_interleave(rows, dim=0)
                c = {**c, "c_crossattn": instead.to(c["c_crossattn"])}
            return apply_model(args["input"], args["timestep"], **c)

        model = scene.model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return replace(scene, model=model)

    return wire


def _texts_instead(tokens: int) -> list[Conditioning]:
    return [toy.conditioning(seed, tokens) for seed in (15, 16)]


def hand_swapped(tokens: int) -> Callable[[Any, Scene], Scene]:
    """The same texts as ordinary prompts."""
    def wire(comfy, scene: Scene) -> Scene:
        positive, negative = _texts_instead(tokens)
        return replace(scene, positive=positive, negative=negative)

    return wire


WINDOWS = ([0, 1], [1, 2], [2, 3])


def animatediff_windows(key: str = "ad_params") -> Callable[[Any, Scene], Scene]:
    """Sliding windows as AnimateDiff-Evolved has them, over a batch of 4 frames; key: where it says which they are."""
    def wire(comfy, scene: Scene) -> Scene:
        def windowed(args):
            options, x = args["model_options"], args["input"]
            options = {name: value for name, value in options.items() if name != "sampler_calc_cond_batch_function"}
            totals, count = None, torch.zeros(len(x), 1, 1, 1)
            for window in WINDOWS:
                said = {"sub_idxs": window, "full_length": len(x), "context_length": len(window)}
                told = {**options, "transformer_options": {**options["transformer_options"], key: said}}
                outs = calc_cond_batch(args["model"], args["conds"], x[window], args["sigma"][window], told)
                totals = [torch.zeros_like(x) for _ in outs] if totals is None else totals
                for total, out in zip(totals, outs, strict=True):
                    total[window] += out
                count[window] += 1
            return [total / count for total in totals]

        model = scene.model.clone()
        model.model_options["sampler_calc_cond_batch_function"] = windowed
        return replace(scene, model=model, latent=toy.latent(batch=4))

    return wire


def throws_wrappers_away(*kinds: str) -> Callable[[Any, Scene], Scene]:
    """A pack that sets a model's wrappers without keeping those of others."""
    def wire(comfy, scene: Scene) -> Scene:
        model = scene.model.clone()
        own = {"a pack": [lambda executor, *args, **kwargs: executor(*args, **kwargs)]}
        model.wrappers = {**model.wrappers, **{kind: dict(own) for kind in kinds}}
        return replace(scene, model=model)

    return wire


def options_copied_in_the_run(comfy, scene: Scene) -> Scene:
    """A pre-CFG function that calls the model again for the positive prompt, with options copied and changed."""
    def pre_cfg(args):
        options = copy.deepcopy(args["model_options"])
        options["transformer_options"]["of_this_pack"] = True
        (again,) = calc_cond_batch(
            args["model"], args["conds"][:1], 0.95 * args["input"], args["timestep"], options
        )
        positive, *others = args["conds_out"]
        return [positive + 0.3 * (positive - again), *others]

    model = scene.model.clone()
    model.set_model_sampler_pre_cfg_function(pre_cfg)
    return replace(scene, model=model)


# --- packs with which EBCA cannot act ---


def replaced_attn2(only: oracle.Key | None = None) -> Callable[[Any, Scene], Scene]:
    """Cross-attention's forward pass replaced, in every layer or in one."""
    def forward(attn2):
        def run(x, context=None, value=None, mask=None, transformer_options=None):
            q, k, v = attn2.to_q(x), attn2.to_k(context), attn2.to_v(context if value is None else value)
            return attn2.to_out(optimized_attention(q, k, v, attn2.heads))

        return run

    def wire(comfy, scene: Scene) -> Scene:
        model = scene.model.clone()
        unet = model.model.diffusion_model
        names = {module: name for name, module in unet.named_modules()}
        for key, attn2 in oracle.layers(unet).items():
            if only in (None, key):
                model.add_object_patch(f"diffusion_model.{names[attn2]}.forward", forward(attn2))
        return replace(scene, model=model)

    return wire


def replace_forward_of_class(monkeypatch) -> None:
    """A pack that puts a forward pass of its own on ComfyUI's class, under the name of ComfyUI's."""
    original = CrossAttention.forward

    @functools.wraps(original)
    def forward(self, *args, **kwargs):
        return 0.9 * original(self, *args, **kwargs)

    monkeypatch.setattr(CrossAttention, "forward", forward)


def grown_context(comfy, scene: Scene) -> Scene:
    """NAG: the U-Net's forward pass gets a further row of text, which a replaced cross-attention takes for guidance."""
    from comfy.patcher_extension import WrapperExecutor, get_all_wrappers

    unet = scene.model.model.diffusion_model
    guidance = toy.conditioning(5)[0][0]

    def attend(attn2):
        def run(x, context=None, value=None, mask=None, transformer_options=None):
            value = context if value is None else value
            rows = x.shape[0]
            q, k, v = attn2.to_q(x), attn2.to_k(context), attn2.to_v(value)
            out = optimized_attention(q, k[:rows], v[:rows], attn2.heads)
            guide = optimized_attention(q[-1:], k[rows:], v[rows:], attn2.heads)
            return attn2.to_out(torch.cat([out[:-1], out[-1:] + 0.5 * (out[-1:] - guide)]))

        return run

    def forward(x, timesteps=None, context=None, y=None, control=None, transformer_options=None, **kwargs):
        layers = oracle.layers(unet).values()
        for attn2 in layers:
            attn2.forward = attend(attn2)
        try:
            wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
            return WrapperExecutor.new_class_executor(unet._forward, unet, wrappers).execute(
                x, timesteps, torch.cat([context, guidance]), y, control, transformer_options, **kwargs
            )
        finally:
            for attn2 in layers:
                del attn2.forward

    model = scene.model.clone()
    model.add_object_patch("diffusion_model.forward", forward)
    return replace(scene, model=model)


def bypassing_function(comfy, scene: Scene) -> Scene:
    """A model_function_wrapper that runs the U-Net itself, past ComfyUI's hooks."""
    base = scene.model.model

    def wrapper(apply_model, args):
        x, t, c = args["input"], args["timestep"], args["c"]
        xc = base.model_sampling.calculate_input(t, x)
        out = base.diffusion_model._forward(
            xc, base.model_sampling.timestep(t).float(), context=c["c_crossattn"], control=None,
            transformer_options=c["transformer_options"],
        )  # fmt: skip
        return base.model_sampling.calculate_denoised(t, out, x)

    model = scene.model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return replace(scene, model=model)


def tiles(at_once: bool) -> Callable[[Any, Scene], Scene]:
    """A pack that shows the model the upper and the lower half of the image, in one call or one after the other."""

    def wrapper(apply_model, args):
        halves, sigma, c = args["input"].chunk(2, dim=2), args["timestep"], args["c"]
        if at_once:
            both = {**c, "c_crossattn": torch.cat([c["c_crossattn"]] * 2)}
            outs = apply_model(torch.cat(halves), torch.cat([sigma] * 2), **both).chunk(2)
        else:
            outs = [apply_model(half, sigma, **c) for half in halves]
        return torch.cat(list(outs), dim=2)

    def wire(comfy, scene: Scene) -> Scene:
        model = scene.model.clone()
        model.set_model_unet_function_wrapper(wrapper)
        return replace(scene, model=model)

    return wire


def appended_tokens(count: int) -> Callable[[Any, Scene], Scene]:
    """Every layer gets so many tokens more than the prompt has."""
    def append(n, context, value, options):
        longer = torch.cat([context, toy.noise(1, count, toy.WIDTH, seed=4).expand(len(context), -1, -1)], dim=1)
        return n, longer, longer

    def wire(comfy, scene: Scene) -> Scene:
        model = scene.model.clone()
        model.set_model_attn2_patch(append)
        return replace(scene, model=model)

    return wire


def merged_tokens(comfy, scene: Scene) -> Scene:
    """A pack that lets every other image token speak for its neighbour in cross-attention."""
    model = scene.model.clone()
    model.set_model_attn2_patch(lambda n, context, value, options: (n[:, ::2], context, value))
    model.set_model_attn2_output_patch(lambda n, options: n.repeat_interleave(2, dim=1))
    return replace(scene, model=model)


def in_threads(model):
    """As packs for several devices do it: each prompt of a call in a thread of its own, here on one network."""

    def split(apply_model, args):
        options = args["c"]["transformer_options"]
        count = len(options["uuids"])
        size, start = args["input"].shape[0] // count, threading.Barrier(count)

        def one(i):
            rows = slice(i * size, (i + 1) * size)
            conds = {k: v[rows] if torch.is_tensor(v) and len(v) == count * size else v for k, v in args["c"].items()}
            own = {"uuids": options["uuids"][i : i + 1], "cond_or_uncond": options["cond_or_uncond"][i : i + 1]}
            conds["transformer_options"] = {**options, **own}
            start.wait()
            with torch.inference_mode():
                return apply_model(args["input"][rows], args["timestep"][rows], **conds)

        with ThreadPoolExecutor(count) as threads:
            return torch.cat(list(threads.map(one, range(count))))

    model = model.clone()
    model.set_model_unet_function_wrapper(split)
    return model
