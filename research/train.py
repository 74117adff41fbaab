"""Trains the shapes model on pictures that it draws as it goes, and writes a checkpoint for ComfyUI.

    python research/train.py --comfyui <folder of ComfyUI> --steps 4000

Every step's pictures, captions and noise come from (seed, step), so a run can stop at any time: the same command goes
on from the last state and arrives at the same weights, on the same machine and number of threads.
"""
from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import comfy_host
from shapes.drawing import draw, random_picture
from shapes.grammar import WORDS, training_caption
from shapes.world import GROUNDS, Picture

DEMO = comfy_host.DEMO
UNET = {
    "image_size": 32, "model_channels": 64, "num_res_blocks": [1, 1, 1], "channel_mult": [1, 2, 2],
    "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 1, 1, 1, 1], "transformer_depth_middle": 1,
    "use_spatial_transformer": True, "use_linear_in_transformer": True, "legacy": False,
}
COUNTS = (0.60, 0.28, 0.12)  # shares of pictures with one, two, three objects
BATCH, RATE, WARMUP = 64, 8e-4, 200
COOLDOWN = 0.35  # the last share of the steps, in which the learning rate falls to zero
PRIMER = 600  # pictures of one large object in the middle come first and fade out by 1.5 times this: words sink in
NONSENSE = 0.05  # share of captions with words from outside the grammar, so that these disturb little
START, END, LENGTH, VOCABULARY = 49406, 49407, 77, 49406
SPOKEN = 28  # no training caption has more tokens; the rest of LENGTH is padding, whose context is zero
CONTEXT_SCALE = 4.0  # context vectors start this long: at first attention spreads over all of LENGTH


@dataclass
class Batch:
    """images [b 3 h w] in -1..1, tokens [b 77], levels [b] of the noise schedule, noise like images."""

    images: torch.Tensor
    tokens: torch.Tensor
    levels: torch.Tensor
    noise: torch.Tensor


def token_ids(caption: str, ids: dict[str, int], extra: list[int]) -> list[int]:
    """77 token ids as the SD 1.x tokenizer gives them for a caption of the grammar; `extra` go in front."""
    words = [ids[word] for word in caption.replace(",", " ,").split()]
    line = [START, *extra, *words, END]
    return line + [END] * (LENGTH - len(line))


def primer(rng: np.random.Generator) -> Picture:
    """One large object in the middle: its colour and shape, and so the caption, decide every pixel even under noise."""
    (thing,), ground = random_picture(rng, 1).things, str(rng.choice(list(GROUNDS)))
    x, y, radius = rng.uniform(0.47, 0.53), rng.uniform(0.47, 0.53), rng.uniform(0.36, 0.42)
    return Picture((replace(thing, x=float(x), y=float(y), radius=float(radius)),), ground)


def spread(u: np.ndarray, power: float) -> np.ndarray:
    """Even numbers in 0..1 to noise levels in 0..1, denser in the middle; the smaller the power, the more noise."""
    return (u + 0.6 * np.sin(2 * np.pi * u) / (2 * np.pi)) ** power


def make_batch(seed: int, step: int, ids: dict[str, int], sigmas: int) -> Batch:
    """The batch of a step; depends on nothing but seed and step."""
    rng = np.random.default_rng([seed, step])
    primers = rng.random(BATCH) < 1.5 - step / PRIMER
    counts = rng.choice([1, 2, 3], size=BATCH, p=COUNTS)
    pictures = [primer(rng) if first else random_picture(rng, int(n)) for first, n in zip(primers, counts)]
    extra = [rng.integers(0, VOCABULARY, rng.integers(1, 4)).tolist() if rng.random() < NONSENSE else []
             for _ in pictures]
    tokens = [token_ids(training_caption(p, rng), ids, e) for p, e in zip(pictures, extra, strict=True)]
    images = torch.from_numpy(np.stack([draw(p) for p in pictures])).movedim(-1, 1) * 2 - 1
    levels = spread((rng.permutation(BATCH) + rng.random(BATCH)) / BATCH, 0.75) * sigmas
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32))
    return Batch(images, torch.tensor(tokens), torch.from_numpy(levels).long(), noise)


def attention(_, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, mask=None, **_options) -> torch.Tensor:
    """Plain attention of [b n (heads d)]; on a CPU its backward pass is faster than torch's own function's.

    Keys of a context that context() has cut to SPOKEN tokens are completed by padding: logits 0, values 0.
    """
    batch, length, channels = q.shape
    q, k, v = (t.view(batch, -1, heads, channels // heads).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.transpose(-1, -2)).float() * (channels // heads) ** -0.5
    scores = scores if mask is None else scores + mask
    if k.shape[2] == SPOKEN and q.shape[2] != SPOKEN:
        padding = scores.new_full((*scores.shape[:3], 1), math.log(LENGTH - SPOKEN))
        weights = torch.cat([scores, padding], -1).softmax(-1)[..., :SPOKEN].to(v.dtype)
    else:
        weights = scores.softmax(-1).to(v.dtype)
    return (weights @ v).transpose(1, 2).reshape(batch, length, channels)


class Model(torch.nn.Module):
    """U-Net, CLIP text model and the trained rows of its embedding table, in ComfyUI's classes."""

    def __init__(self, family, clip_text_model, ops, ids: list[int]):
        super().__init__()
        channels = family.Shapes.unet_config["in_channels"]
        self.unet = family.ShapesUNet(
            **UNET, **family.Shapes.unet_extra_config, in_channels=channels, out_channels=channels,
            context_dim=family.CONTEXT, operations=ops)
        config = {**family.TEXT, "hidden_act": "quick_gelu", "max_position_embeddings": LENGTH, "eos_token_id": END}
        self.text = clip_text_model(config, torch.float32, "cpu", ops).text_model
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

    def forward(self, x: torch.Tensor, levels: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The predicted v [b 3 h w] for scaled noisy images x."""
        options = {"optimized_attention_override": attention}
        return self.unet(x, levels, context=self.context(tokens), transformer_options=options)


def initialise(model: Model) -> None:
    """ComfyUI's layers start unfilled: torch's usual values, and zeros where a residual branch ends."""
    for name, module in model.named_modules():
        for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)
        if name.endswith(("out_layers.3", "proj_out", "unet.out.2")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.constant_(model.text.final_layer_norm.weight, CONTEXT_SCALE)
    torch.nn.init.normal_(model.text.embeddings.position_embedding.weight, std=0.1)


def loss_of(model: Model, batch: Batch, sigmas: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the image, weighted so that every noise level has about the same share of the gradient."""
    sigma = sigmas[batch.levels].view(-1, 1, 1, 1)
    alpha = (sigma ** 2 + 1) ** -0.5
    noisy = (batch.images + sigma * batch.noise) * alpha
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(noisy, batch.levels.float(), batch.tokens).float()
    image = alpha * noisy - sigma * alpha * velocity
    return (10 / (0.5 + sigma ** 0.8) * (image - batch.images) ** 2).mean()


def rate_at(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, flat, linear fall to zero."""
    return RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (COOLDOWN * steps))


def export(model: Model, family, ids: list[int], path: Path) -> None:
    """Writes the checkpoint that CheckpointLoaderSimple loads, in half precision."""
    text = "cond_stage_model."
    weights = {f"model.diffusion_model.{key}": value.half() for key, value in model.unet.state_dict().items()}
    weights |= {f"{text}clip_l.transformer.text_model.{k}": v.half() for k, v in model.text.state_dict().items()}
    weights[text + family.WORD_IDS] = torch.tensor(ids, dtype=torch.int32)
    weights[text + family.WORD_ROWS] = model.rows.detach().half()
    weights["first_stage_model.pixel_space_vae"] = torch.tensor(1.0)
    save_file({k: v.contiguous() for k, v in weights.items()}, str(path), metadata={"title": "EBCA shapes model"})


class Optimiser:
    """Muon for the matrices inside the network, convolutions among them; AdamW for what is left."""

    def __init__(self, model: Model):
        self.parameters = list(model.parameters())
        ends = {id(p) for name, p in model.named_parameters() if "embedding" in name or name == "rows"}
        ends |= {id(p) for part in (model.unet.input_blocks[0], model.unet.out) for p in part.parameters()}
        self.inner = [p for p in self.parameters if p.ndim >= 2 and id(p) not in ends]
        inner = {id(p) for p in self.inner}
        self.matrices = [torch.nn.Parameter(p.data.flatten(1)) for p in self.inner]  # the same memory
        rest = [p for p in self.parameters if id(p) not in inner]
        self.parts = {
            "muon": torch.optim.Muon(self.matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        }

    def step(self, rate: float) -> None:
        """One step along the parameters' gradients, which are then gone."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for matrix, parameter in zip(self.matrices, self.inner, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def follow(average: Model, model: Model, step: int) -> None:
    """Moves the averaged weights a little towards the trained ones."""
    decay = min(0.999, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def save_state(path: Path, **parts) -> None:
    """Writes a state to go on from; never leaves half a file."""
    draft = path.with_suffix(".tmp")
    torch.save(parts, draft)
    draft.replace(path)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="steps between states")
    parser.add_argument("--state", type=Path, default=DEMO / "training" / "state.pt")
    parser.add_argument("--out", type=Path, default=DEMO / "training" / "shapes.safetensors")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    comfy_host.start(args.comfyui)
    import comfy.clip_model
    import comfy.model_base
    import comfy.ops
    from comfy.sd1_clip import SD1Tokenizer

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    family = comfy_host.family()
    vocabulary = SD1Tokenizer().clip_l.tokenizer.get_vocab()
    words = {word: vocabulary[word + "</w>"] for word in WORDS}
    ids = [*words.values(), START, END]
    sampling = comfy.model_base.model_sampling(family.Shapes({}), comfy.model_base.ModelType.V_PREDICTION)
    sigmas = sampling.sigmas

    model = Model(family, comfy.clip_model.CLIPTextModel, comfy.ops.disable_weight_init, ids)
    initialise(model)
    average = copy.deepcopy(model).requires_grad_(False)
    optimiser = Optimiser(model)
    first = 0
    if args.state.is_file():
        state = torch.load(args.state, weights_only=True)
        if state["seed"] != args.seed:
            raise SystemExit(f"{args.state} is of seed {state['seed']}, not {args.seed}: pass another --state")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    args.state.parent.mkdir(parents=True, exist_ok=True)
    logging.info("%.2f M parameters, sigma up to %.1f, steps %d to %d",
                 sum(p.numel() for p in model.parameters()) / 1e6, sigmas[-1], first, args.steps)

    losses, since = [], time.monotonic()
    for step in range(first, args.steps):
        loss = loss_of(model, make_batch(args.seed, step, words, len(sigmas)), sigmas)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"loss is {loss.item()} at step {step}: lower RATE")
        loss.backward()
        optimiser.step(rate_at(step, args.steps))
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
            export(average, family, ids, args.out)


if __name__ == "__main__":
    main()
