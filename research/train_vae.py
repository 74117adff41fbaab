"""Trains the VAE of the things model on drawn scenes: ComfyUI's TAESD classes, 128 x 128 pixels in 16 x 16 latents.

    python research/train_vae.py --comfyui <folder of ComfyUI>

As in train.py, every step's pictures come from (seed, step): the same command goes on from the last state.
"""
from __future__ import annotations

import argparse
import copy
import logging
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import comfy_host
from learning import Optimiser, follow, rate_at, restore, save_state, threads_of_torch
from things import scenes
from things.world import SIDE

CHANNELS = 8  # of a latent
STEPS, BATCH, RATE = 4500, 12, 1.2e-3
WINDOW = 64  # pixels of what a step sees of a picture, each way
BLUR = 0.15  # noise that is added to latents, of which the decoder sees -3..3: neighbouring latents decode alike
OTHER_COLOURS = 0.3  # share of the windows with exchanged colour channels: styles that training has not seen differ so
OUT = comfy_host.DEMO / "training" / "things_vae.safetensors"


def build() -> torch.nn.Module:
    """The VAE, unfilled."""
    from comfy.taesd.taesd import TAESD

    return TAESD(latent_channels=CHANNELS)


def load(path: Path) -> torch.nn.Module:
    """The VAE of a file that this script has written; nothing of it is trained further."""
    vae = build()
    vae.load_state_dict({name: value.float() for name, value in load_file(str(path)).items()})
    return vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def encode(vae: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Latents [b CHANNELS h/8 w/8] of images [b 3 h w] in -1..1, as VAE Encode gives them but for rounding."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(images.to(memory_format=torch.channels_last)).float()
    return latents.contiguous().clone()


def windows(seed: int, step: int, count: int = BATCH) -> torch.Tensor:
    """Parts of drawn pictures [count 3 WINDOW WINDOW] in 0..1, each around a thing."""
    rng = np.random.default_rng([seed, step])
    parts = []
    for index in range(count):
        picture = scenes.random_picture(rng, 1 + index % 3)
        thing = picture.things[0]
        left, top = (int(np.clip(round(at * SIDE) - WINDOW // 2 + rng.integers(-16, 17), 0, SIDE - WINDOW))
                     for at in (thing.x, thing.y))
        part = scenes.draw(picture)[top:top + WINDOW, left:left + WINDOW]
        parts.append(part[..., rng.permutation(3)] if rng.random() < OTHER_COLOURS else part)
    return torch.from_numpy(np.stack(parts)).movedim(-1, 1)


def loss_of(vae: torch.nn.Module, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """How far the decoded pictures and their edges are from the pictures [b 3 h w], 0..1."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.taesd_encoder(images.to(memory_format=torch.channels_last))
        decoded = vae.taesd_decoder(latents + BLUR * torch.randn(latents.shape, generator=generator))
    error = decoded.float() - images
    edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
    return error.abs().mean() + edges + 2 * error.square().mean()


def initialise(vae: torch.nn.Module) -> None:
    """ComfyUI's layers start unfilled. Signals keep their size, so that latents are larger than BLUR from the start.

    Each block starts as one that passes on what it gets.
    """
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
            if name.endswith(".conv.4"):  # the last layer of a block
                torch.nn.init.zeros_(module.weight)
    torch.nn.init.normal_(vae.taesd_decoder[-1].weight, std=0.01)
    torch.nn.init.constant_(vae.taesd_decoder[-1].bias, 0.5)


def outer(name: str) -> bool:
    """Whether AdamW trains the parameter of this name, whatever its shape: the first and last layers."""
    return name.startswith(("taesd_encoder.0.", "taesd_encoder.14.", "taesd_decoder.1.", "taesd_decoder.19."))


def export(vae: torch.nn.Module, path: Path) -> None:
    """Writes the VAE in half precision, scaled so that latents of drawn pictures have mean 0 and deviation 1."""
    vae = copy.deepcopy(vae)
    vae.vae_scale.data, vae.vae_shift.data = torch.tensor(1.0), torch.tensor(0.0)
    rng = np.random.default_rng(0)
    images = np.stack([scenes.draw(scenes.random_picture(rng, 1 + i % 3)) for i in range(48)])
    latents = encode(vae, torch.from_numpy(images).movedim(-1, 1) * 2 - 1)
    vae.vae_scale.data = latents.std()
    vae.vae_shift.data = -latents.mean() / latents.std()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in vae.state_dict().items()}, str(path))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=50, help="steps between states")
    parser.add_argument("--state", type=Path, default=OUT.with_suffix(".pt"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    comfy_host.start(args.comfyui)
    with threads_of_torch(args.threads):
        train(args)


def train(args: argparse.Namespace) -> None:
    """The steps from the last state, or the first, to args.steps."""
    torch.manual_seed(args.seed)
    vae = build()
    initialise(vae)
    average = copy.deepcopy(vae).requires_grad_(False)
    for scalar in (vae.vae_scale, vae.vae_shift):
        scalar.requires_grad_(False)
    optimiser, first = Optimiser(vae, outer), 0
    if args.state.is_file():
        state = torch.load(args.state, weights_only=True)
        first = restore(state, model=vae, average=average, optimiser=optimiser)
    args.state.parent.mkdir(parents=True, exist_ok=True)
    losses, since = [], time.monotonic()
    for step in range(first, args.steps):
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + step)
        loss = loss_of(vae, windows(args.seed, step), generator)
        loss.backward()
        optimiser.step(rate_at(step, args.steps, RATE))
        follow(average, vae, step)
        losses.append(loss.item())
        done = step + 1
        if done % 25 == 0:
            logging.info("step %d  loss %.4f  %.2f s a step", done, np.mean(losses),
                         (time.monotonic() - since) / len(losses))
            losses, since = [], time.monotonic()
        if done % args.save_every == 0 or done == args.steps:
            save_state(args.state, model=vae.state_dict(), average=average.state_dict(),
                       optimiser=optimiser.state_dict(), step=done)
            export(average, args.out)


if __name__ == "__main__":
    main()
