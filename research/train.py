"""Trains a small model on pictures that it draws as it goes, and writes a checkpoint for ComfyUI.

    python research/train.py --world shapes --architecture transformer --comfyui <folder of ComfyUI>

Every step's pictures, captions and noise come from (seed, step), so a run can stop at any time: the same command goes
on from the last state and arrives at the same weights, on the same machine and number of threads.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import comfy_host
import shapes.drawing
import shapes.grammar
import shapes.world
import things.grammar
import things.scenes
import things.world
import train_vae
from learning import Optimiser, follow, rate_at, restore, save_state, threads_of_torch

DEMO = comfy_host.DEMO
UNET = {
    "image_size": 32, "model_channels": 64, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 2],
    "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
}
COUNTS = (0.60, 0.28, 0.12)  # shares of pictures with one, two, three objects
PRIMER = 600  # pictures of one large object come first and fade out by 1.5 times this: words sink in
# Pictures that a VAE encodes come again after CYCLE steps, from step FRESH on: they are encoded once. From step OTHERS
# on it is the next CYCLE of pictures that comes again.
FRESH, CYCLE, OTHERS = 700, 400, 5000
NONSENSE = 0.05  # share of captions with words from outside the grammar, so that these disturb little
START, END, LENGTH, VOCABULARY = 49406, 49407, 77, 49406
TEXT_KEYS, CLIP_KEYS = "cond_stage_model.", "clip_l.transformer.text_model."
DENOISER_KEYS = "model.diffusion_model."
DRAW_KEYS = DENOISER_KEYS + "draw."
SPOKEN = 28  # no training caption has more tokens; the rest of LENGTH is padding, whose context is zero
CONTEXT_SCALE = 4.0  # context vectors start this long: at first attention spreads over all of LENGTH


@dataclass(frozen=True)
class World:
    """What training has to know about the pictures of one world.

    words: those of its grammar. picture(rng, count): one with `count` things. primer(rng, smallest, largest, stray):
    one of a single large thing, see Architecture. draw(picture): [h w 3] in 0..1. caption(picture, rng): its caption.
    latent: channels, height and width of what the denoiser sees.
    """

    words: tuple[str, ...]
    picture: Callable[[np.random.Generator, int], Any]
    primer: Callable[[np.random.Generator, float, float, float], Any]
    draw: Callable[[Any], np.ndarray]
    caption: Callable[[Any, np.random.Generator], str]
    latent: tuple[int, int, int]


@dataclass(frozen=True)
class Architecture:
    """What training has to know about one kind of denoiser.

    build(family, operations) makes the denoiser; family: its class in shapes_family.family, which knows its schedule.
    out: the checkpoint's name; steps, batch and rate: how long, on how many pictures and how fast it learns.
    ends: its first and last layers, which AdamW trains, like all that is no matrix.
    zero: ends of the names of layers that start at zero, so that the denoiser starts as one that changes nothing.
    primer: of the large objects that come first, the radius at least and at most, and how far from the middle they lie.
    start: the checkpoint whose text encoder it starts with, or None for one that starts from nothing.
    joint: whether text and image share one attention; it starts with the last convolutions of `start` as well.
    vae: the file of train_vae.py whose latents it learns, or None where it learns the pictures themselves.
    """

    world: World
    build: Callable[..., torch.nn.Module]
    family: str
    out: str
    steps: int
    batch: int
    rate: float
    ends: tuple[str, ...]
    zero: tuple[str, ...]
    primer: tuple[float, float, float]
    start: Path | None
    vae: Path | None
    joint: bool = False

    def outer(self, name: str) -> bool:
        """Whether AdamW trains the parameter of this name of a Model, whatever its shape."""
        ends = tuple(f"denoiser.{end}" for end in self.ends)
        return "embeddings." in name or name == "rows" or name.startswith(ends)


def unet(family, operations) -> torch.nn.Module:
    """The U-Net, unfilled."""
    seen, known = family.Shapes.unet_config, family.Shapes.unet_extra_config
    return family.unet.ShapesUNet(**UNET, **seen, **known, operations=operations)


def latent_unet(family, operations) -> torch.nn.Module:
    """The U-Net of the things world, unfilled: as that of the shapes, with attention on all its grids."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    seen, known = family.Things.unet_config, family.Things.unet_extra_config
    attention = {"transformer_depth": [1, 1, 1], "transformer_depth_output": [1, 1, 1, 1, 1, 1]}
    return UNetModel(**{**UNET, **attention}, **seen, **known, operations=operations)


def transformer(family, operations) -> torch.nn.Module:
    """The transformer, unfilled."""
    return family.transformer.ShapesDIT(**family.transformer.CONFIG, operations=operations)


def joint_transformer(family, operations) -> torch.nn.Module:
    """The joint-attention transformer, unfilled."""
    return family.joint.ShapesFlux(**family.joint.CONFIG, operations=operations)


def shapes_primer(rng: np.random.Generator, smallest: float, largest: float, stray: float) -> shapes.world.Picture:
    """One large object near the middle: its colour and shape, and so the caption, decide most pixels even under noise.

    Its radius is from smallest to largest, its place up to `stray` from the middle along each axis.
    """
    (thing,), ground = shapes.drawing.random_picture(rng, 1).things, str(rng.choice(list(shapes.world.GROUNDS)))
    x, y, radius = *rng.uniform(0.5 - stray, 0.5 + stray, 2), rng.uniform(smallest, largest)
    return shapes.world.Picture((replace(thing, x=float(x), y=float(y), radius=float(radius)),), ground)


def things_primer(rng: np.random.Generator, smallest: float, largest: float, stray: float) -> things.world.Picture:
    """The same for the things world, where sizes are those of whole things."""
    picture = things.scenes.random_picture(rng, 1)
    x, y, size = *rng.uniform(0.5 - stray, 0.5 + stray, 2), rng.uniform(smallest, largest)
    return replace(picture, things=(replace(picture.things[0], x=float(x), y=float(y), size=float(size)),))


SHAPES = World(
    shapes.grammar.WORDS, shapes.drawing.random_picture, shapes_primer, shapes.drawing.draw,
    shapes.grammar.training_caption, latent=(3, shapes.world.SIDE, shapes.world.SIDE))
THINGS = World(
    things.grammar.WORDS, things.scenes.random_picture, things_primer, things.scenes.draw,
    things.grammar.training_caption, latent=(8, things.world.SIDE // 8, things.world.SIDE // 8))
ARCHITECTURES = {
    ("shapes", "unet"): Architecture(
        SHAPES, unet, "Shapes", "shapes.safetensors", steps=4000, batch=64, rate=8e-4,
        ends=("input_blocks.0.", "out."), zero=("out_layers.3", "proj_out", "denoiser.out.2"),
        primer=(0.36, 0.42, 0.03), start=None, vae=None),
    ("shapes", "transformer"): Architecture(
        SHAPES, transformer, "ShapesTransformer", "shapes_transformer.safetensors", steps=9000, batch=64, rate=1.5e-3,
        ends=("x_embedder.", "t_embedder.", "final_layer.linear.", "draw.begin.", "draw.end."),
        zero=("adaln_modulation_self_attn.2", "adaln_modulation_cross_attn.2", "adaln_modulation_mlp.2",
              "final_layer.linear", "final_layer.adaln_modulation.2", "t_embedder.1.linear_2", "draw.end"),
        primer=(0.26, 0.38, 0.12), start=DEMO / "shapes.safetensors", vae=None),
    ("shapes", "joint"): Architecture(
        SHAPES, joint_transformer, "ShapesJoint", "shapes_joint.safetensors", steps=5000, batch=64, rate=1.5e-3,
        ends=("img_in.", "txt_in.", "time_in.", "final_layer.linear.", "draw.begin.", "draw.end."),
        zero=("img_mod.lin", "txt_mod.lin", "modulation.lin", "final_layer.linear", "final_layer.adaLN_modulation.1"),
        primer=(0.26, 0.38, 0.12), start=DEMO / "shapes_transformer.safetensors", vae=None, joint=True),
    ("things", "unet"): Architecture(
        THINGS, latent_unet, "Things", "things.safetensors", steps=8000, batch=48, rate=8e-4,
        ends=("input_blocks.0.", "out."), zero=("out_layers.3", "proj_out", "denoiser.out.2"),
        primer=(0.70, 0.85, 0.06), start=None, vae=DEMO / "training" / "things_vae.safetensors"),
}


@dataclass
class Batch:
    """images [b 3 h w] in -1..1, or their latents, tokens [b 77], levels [b] of noise, 0..1, noise like latents."""

    images: torch.Tensor
    tokens: torch.Tensor
    levels: torch.Tensor
    noise: torch.Tensor


def token_ids(caption: str, ids: dict[str, int], extra: list[int]) -> list[int]:
    """77 token ids as the SD 1.x tokenizer gives them for a caption of the grammar; `extra` go in front."""
    words = [ids[word] for word in caption.replace(",", " ,").split()]
    line = [START, *extra, *words, END]
    return line + [END] * (LENGTH - len(line))


def spread(u: np.ndarray, power: float) -> np.ndarray:
    """Even numbers in 0..1 to noise levels in 0..1, denser in the middle; the smaller the power, the more noise."""
    return (u + 0.6 * np.sin(2 * np.pi * u) / (2 * np.pi)) ** power


def make_batch(seed: int, step: int, ids: dict[str, int], architecture: Architecture) -> Batch:
    """The batch of a step of an architecture; depends on nothing but seed and step."""
    rng, world = np.random.default_rng([seed, step]), architecture.world
    size = architecture.batch
    primers = rng.random(size) < 1.5 - step / PRIMER
    counts = rng.choice([1, 2, 3], size=size, p=COUNTS)
    pictures = [world.primer(rng, *architecture.primer) if first else world.picture(rng, int(n))
                for first, n in zip(primers, counts)]
    extra = [rng.integers(0, VOCABULARY, rng.integers(1, 4)).tolist() if rng.random() < NONSENSE else []
             for _ in pictures]
    tokens = [token_ids(world.caption(p, rng), ids, e) for p, e in zip(pictures, extra, strict=True)]
    images = torch.from_numpy(np.stack([world.draw(p) for p in pictures])).movedim(-1, 1) * 2 - 1
    return Batch(images, torch.tensor(tokens), *levels_and_noise(rng, architecture))


def levels_and_noise(rng: np.random.Generator, architecture: Architecture) -> tuple[torch.Tensor, torch.Tensor]:
    """The last two parts of a Batch: a level in each of as many equal parts of 0..1, in any order, and noise."""
    size = architecture.batch
    levels = spread((rng.permutation(size) + rng.random(size)) / size, 0.75)
    noise = torch.from_numpy(rng.standard_normal((size, *architecture.world.latent), dtype=np.float32))
    return torch.from_numpy(levels), noise


class Latents:
    """Batches of a world with a VAE; the latents of pictures that come again are kept, by the number of their batch."""

    def __init__(self, vae: torch.nn.Module, seed: int, ids: dict[str, int], architecture: Architecture):
        self.vae, self.seed, self.ids, self.architecture = vae, seed, ids, architecture
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def batch(self, step: int) -> Batch:
        """Latents and tokens of the batch that comes again at this step, levels and noise of the step's own."""
        first = step if step < FRESH else FRESH + (step - FRESH) % CYCLE + CYCLE * (step >= OTHERS)
        if first not in self.kept:
            drawn = make_batch(self.seed, first, self.ids, self.architecture)
            seen = train_vae.encode(self.vae, drawn.images), drawn.tokens
            if first < FRESH:
                return Batch(*seen, drawn.levels, drawn.noise)
            self.kept[first] = seen
        rng = np.random.default_rng([self.seed, step, 1])  # not that of the pictures
        return Batch(*self.kept[first], *levels_and_noise(rng, self.architecture))


def attention(
    _, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask=None, skip_reshape: bool = False, **_options
) -> torch.Tensor:
    """Plain attention of [b n (heads d)], or with skip_reshape of [b heads n d], to [b n (heads d)].

    On a CPU its backward pass is faster than torch's own function's. Keys of a context that context() has cut to
    SPOKEN tokens are completed by padding: logits 0, values 0.
    """
    if not skip_reshape:
        q, k, v = (t.view(*t.shape[:2], heads, -1).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5
    scores = scores if mask is None else scores + mask
    if k.shape[2] == SPOKEN and q.shape[2] != SPOKEN:
        padding = scores.new_full((*scores.shape[:3], 1), math.log(LENGTH - SPOKEN))
        weights = torch.cat([scores, padding], -1).softmax(-1)[..., :SPOKEN].to(v.dtype)
    else:
        weights = scores.softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).flatten(2)


@contextlib.contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Newer hosts' fused norm and rotation of queries and keys has no gradient; its plain form, bit-equal, has one."""
    import comfy.model_management as management
    import comfy.quant_ops
    before = management.in_training
    kitchen = getattr(comfy.quant_ops, "ck", None)
    fused = getattr(kitchen, "rms_rope_split_half", None)
    try:
        management.in_training = True  # Flux's rotation obeys it
        if fused is not None:
            from comfy_kitchen.backends.eager.rope import rms_rope_split_half
            kitchen.rms_rope_split_half = rms_rope_split_half
        yield
    finally:
        management.in_training = before
        if fused is not None:
            kitchen.rms_rope_split_half = fused


def copied(_module: torch.nn.Module, args: tuple) -> tuple:
    """A hook before norms whose input is added to in place later: their gradient needs it as it was."""
    return (args[0].clone(),)


def in_float32(streams: dict) -> dict:
    """A patch of embedded text and image: blocks add to these, under autocast too in full precision."""
    return streams | {"img": streams["img"].float(), "txt": streams["txt"].float()}


class Model(torch.nn.Module):
    """A denoiser, CLIP's text model and the trained rows of its embedding table, in ComfyUI's classes."""

    def __init__(self, family, architecture: Architecture, ids: list[int]):
        super().__init__()
        import comfy.clip_model
        import comfy.ops
        ops = comfy.ops.disable_weight_init
        self.denoiser, self.joint = architecture.build(family, ops), architecture.joint
        for module in self.denoiser.modules():
            if self.joint and isinstance(module, torch.nn.LayerNorm):
                module.register_forward_pre_hook(copied)
        text = {**family.TEXT, "hidden_act": "quick_gelu", "max_position_embeddings": LENGTH, "eos_token_id": END}
        self.text = comfy.clip_model.CLIPTextModel(text, torch.float32, "cpu", ops).text_model
        self.text.embeddings.token_embedding = None  # replaced by `rows` and `table`
        table = family.random_table()
        self.rows = torch.nn.Parameter(table[ids])
        self.register_buffer("table", table, persistent=False)
        index = torch.full((len(table),), -1)
        index[ids] = torch.arange(len(ids))
        self.register_buffer("index", index, persistent=False)

    def context(self, tokens: torch.Tensor) -> torch.Tensor:
        """Text context [b s c] of tokens [b 77], cut to SPOKEN tokens: what follows is zero.

        As CLIPTextModel_.forward, without its in-place sums, which have no gradient.
        """
        tokens = tokens[:, :SPOKEN]
        index = self.index[tokens]
        x = torch.where((index >= 0)[..., None], self.rows[index.clamp_min(0)], self.table[tokens])
        x = x + self.text.embeddings.position_embedding.weight[:SPOKEN]
        mask = torch.full((SPOKEN, SPOKEN), -torch.inf).triu_(1)
        for layer in self.text.encoder.layers:
            x = x + layer.self_attn(layer.layer_norm1(x), mask, lambda *a: attention(None, *a))
            x = x + layer.mlp(layer.layer_norm2(x))
        ended = (tokens == END).cumsum(1) - (tokens == END).int() > 0
        return self.text.final_layer_norm(x).masked_fill(ended[..., None], 0.0)

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted v [b 3 h w] for x, the noisy images as the denoiser takes them."""
        options = {"optimized_attention_override": attention}
        if self.joint:
            options["patches"] = {"post_input": [in_float32]}
        return self.denoiser(x, timesteps, context=self.context(tokens), transformer_options=options)


def initialise(model: Model, architecture: Architecture) -> None:
    """ComfyUI's layers start unfilled: torch's usual values, and zeros in architecture.zero."""
    for name, module in model.named_modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
        if name.endswith(architecture.zero):
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(model.text.final_layer_norm.weight, CONTEXT_SCALE)
    torch.nn.init.normal_(model.text.embeddings.position_embedding.weight, std=0.1)


def load_start(model: Model, family, ids: list[int], checkpoint: Path) -> None:
    """Fills the text encoder, and in joint attention the last convolutions, with those of a checkpoint of export()."""
    weights = {key.removeprefix(TEXT_KEYS): value for key, value in load_file(str(checkpoint)).items()}
    if weights[family.WORD_IDS].tolist() != ids:
        raise SystemExit(f"{checkpoint} knows other words than the grammar has: train its architecture again first")
    text, draw = (
        {key.removeprefix(prefix): value.float() for key, value in weights.items() if key.startswith(prefix)}
        for prefix in (CLIP_KEYS, DRAW_KEYS)
    )
    model.text.load_state_dict(text)
    if model.joint:  # whose convolutions do not start at zero
        model.denoiser.draw.load_state_dict(draw)
    model.rows.data = weights[family.WORD_ROWS].float()


def sampling_of(family, name: str):
    """ComfyUI's model_sampling of a class of shapes_family.family: how noise is added and what an output means."""
    import comfy.model_base
    config = getattr(family, name)
    return comfy.model_base.model_sampling(config({}), config.prediction)


def loss_of(model: Model, batch: Batch, sampling) -> torch.Tensor:
    """Mean squared error of the image, weighted so that every noise level has about the same share of the gradient."""
    sigma = sampling.sigmas[(batch.levels * len(sampling.sigmas)).long()]
    noisy = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), batch.noise, batch.images)
    with torch.autocast("cpu", torch.bfloat16):
        scaled = sampling.calculate_input(sigma.view(-1, 1, 1, 1), noisy)
        velocity = model(scaled, sampling.timestep(sigma).float(), batch.tokens).float()
    image = sampling.calculate_denoised(sigma.view(-1, 1, 1, 1), velocity, noisy)
    one, zero = torch.ones_like(sigma), torch.zeros_like(sigma)
    ratio = sampling.noise_scaling(sigma, one, zero) / sampling.noise_scaling(sigma, zero, one)  # of noise to image
    return (10 / (0.5 + ratio.view(-1, 1, 1, 1) ** 0.8) * (image - batch.images) ** 2).mean()


def export(model: Model, family, ids: list[int], path: Path, vae: torch.nn.Module | None = None) -> None:
    """Writes the checkpoint that CheckpointLoaderSimple loads, in half precision; its VAE is `vae` or the pixels'."""
    weights = {DENOISER_KEYS + key: value.half() for key, value in model.denoiser.state_dict().items()}
    weights |= {TEXT_KEYS + CLIP_KEYS + key: value.half() for key, value in model.text.state_dict().items()}
    weights[TEXT_KEYS + family.WORD_IDS] = torch.tensor(ids, dtype=torch.int32)
    weights[TEXT_KEYS + family.WORD_ROWS] = model.rows.detach().half()
    pixels = {"pixel_space_vae": torch.tensor(1.0)}
    decoder = {key: value.half() for key, value in vae.state_dict().items()} if vae else pixels
    weights |= {f"first_stage_model.{key}": value for key, value in decoder.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, str(path), metadata={"title": f"EBCA {path.stem}"})


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", choices=sorted({world for world, _ in ARCHITECTURES}), default="shapes")
    parser.add_argument("--architecture", choices=sorted({name for _, name in ARCHITECTURES}), default="unet")
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    parser.add_argument("--steps", type=int, help="default: that of the architecture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile first: takes minutes, then steps are faster")
    parser.add_argument("--save-every", type=int, default=100, help="steps between states")
    parser.add_argument("--state", type=Path, help="default: training/<world>_<architecture>.pt")
    parser.add_argument("--out", type=Path, help="default: the shipped checkpoint's name in training/")
    parser.add_argument("--vae", type=Path, help="file of train_vae.py, if the world has one (default: in training/)")
    args = parser.parse_args(argv)
    architecture = ARCHITECTURES.get((args.world, args.architecture))
    if architecture is None:
        known = " or ".join(name for world, name in ARCHITECTURES if world == args.world)
        parser.error(f"there is no {args.architecture} of {args.world}: pass --architecture {known}")
    args.vae = args.vae or architecture.vae
    if architecture.vae and not args.vae.is_file():
        parser.error(f"there is no VAE at '{args.vae}': run research/train_vae.py, or pass --vae")
    args.steps = architecture.steps if args.steps is None else args.steps
    args.state = args.state or DEMO / "training" / f"{args.world}_{args.architecture}.pt"
    args.out = args.out or DEMO / "training" / architecture.out
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    comfy_host.start(args.comfyui)
    with threads_of_torch(args.threads), differentiable_kernels():
        train(args)


def train(args: argparse.Namespace) -> None:
    """The steps from the last state, or the first, to args.steps."""
    from comfy.sd1_clip import SD1Tokenizer

    torch.manual_seed(args.seed)
    architecture, family = ARCHITECTURES[args.world, args.architecture], comfy_host.family()
    vocabulary = SD1Tokenizer().clip_l.tokenizer.get_vocab()
    words = {word: vocabulary[word + "</w>"] for word in architecture.world.words}
    ids = [*words.values(), START, END]
    sampling = sampling_of(family, architecture.family)
    vae = train_vae.load(args.vae) if architecture.vae else None
    latents = Latents(vae, args.seed, words, architecture) if vae else None

    model = Model(family, architecture, ids)
    initialise(model, architecture)
    if architecture.start:
        load_start(model, family, ids, architecture.start)
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = Optimiser(model, architecture.outer)
    first = 0
    if args.state.is_file():
        state = torch.load(args.state, weights_only=True)
        if state["seed"] != args.seed:
            raise SystemExit(f"{args.state} is of seed {state['seed']}, not {args.seed}: pass another --state")
        first = restore(state, model=model, average=average, optimiser=optimiser)
    if args.compile:
        model.forward = torch.compile(model.forward, dynamic=False)
    args.state.parent.mkdir(parents=True, exist_ok=True)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    logging.info("%.2f M parameters, steps %d to %d", size, first, args.steps)

    losses, since = [], time.monotonic()
    for step in range(first, args.steps):
        batch = latents.batch(step) if latents else make_batch(args.seed, step, words, architecture)
        loss = loss_of(model, batch, sampling)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {step}: lower the architecture's rate")
        loss.backward()
        optimiser.step(rate_at(step, args.steps, architecture.rate))
        follow(average, model, step)
        losses.append(loss.item())
        done = step + 1
        if done % 50 == 0:
            logging.info("step %d  loss %.4f  %.2f s a step", done, np.mean(losses),
                         (time.monotonic() - since) / len(losses))
            losses, since = [], time.monotonic()
        if done % args.save_every == 0 or done == args.steps:
            save_state(args.state, model=model.state_dict(), average=average.state_dict(),
                       optimiser=optimiser.state_dict(), step=done, seed=args.seed)
            export(average, family, ids, args.out, vae)


if __name__ == "__main__":
    main()
