"""Trains the network of the scorer on drawn scenes and writes scorer.safetensors.

    .host/venv/bin/python research/things/train_scorer.py --state scorer.pt --comfyui .host/ComfyUI-0.30.0

It sees the drawings of all four styles, those of the style held out too: it judges pictures and makes none. In the last
phase half of the pictures are redrawn by the things model: noise is added and removed again, so that what they show is
known and looks as the model draws it. Redrawn things that the network of the phase before does not recognise are left
out. Every step's cut-outs come from (seed, step) and that network, which is in the state, so a run that was stopped
goes on from its state.
"""
from __future__ import annotations

import argparse
import bisect
import logging
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import ndimage
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1]))

import comfy_host
import plain_model
from learning import restore, save_state
from things import reader, scenes
from things.drawings import drawing
from things.grammar import describe
from things.reader import BLOT, CROP, MIXTURE, NOTHING, Reader
from things.world import COLOURS, GROUNDS, HELD_OUT, KINDS, SIDE, STYLES, WORN, Picture, Thing

STEPS = 3000
REVISION = 1000  # from this step on, many animals wear something
REDRAWN = 1600  # from this step on, the things model redraws half of the pictures
PHASES = (0, REVISION, REDRAWN, STEPS)  # in each of which the learning rate falls to zero
WEARING = 0.6  # share of the animals that do, from then on
BATCH = 160  # cut-outs of a step
ROUND = 16  # steps that share drawn pictures, each time disturbed in another way
REDRAWN_ROUND = 32  # the same, from REDRAWN on
SCENES, WRONG = 256, 160  # pictures of a round: scenes, and single regions that show nothing that has a name
RATE = 2e-3
WARMUP = 50
NOISES = (0.0, 0.25, 0.42, 0.5)  # how much of a picture is redrawn: where in the noise schedule that begins
SLIGHT = 2  # so many of NOISES are those of mixtures and blots
RECOGNISED = 0.2  # least probability of a redrawn thing's kind in the phase before
REDRAWING_STEPS = 12  # of a whole schedule
UNKNOWN = -1  # in labels: not asked

Array = np.ndarray
Example = tuple[Array, tuple[int, int, int]]
"""A cut-out [4 CROP CROP] and its classes, as labels_of."""


def labels_of(thing: Thing) -> tuple[int, int, int]:
    """Classes of a thing: its kind, what it wears, its colour."""
    worn = WORN.index(thing.worn) if thing.worn else NOTHING
    return KINDS.index(thing.kind), worn, list(COLOURS).index(thing.colour) if thing.colour else UNKNOWN


def sprite(rng: np.random.Generator, style: str, size: int, others: list[Thing]) -> Array:
    """A thing that is none of the others, which it joins: float32 [size size 4], in the middle, 0..255."""
    others.append(scenes.random_thing(rng, others))
    thing = others[-1]
    source = drawing(thing.kind, style, thing.colour, thing.worn)
    width, height = (max(round(size * side / max(source.size)), 1) for side in source.size)
    canvas = np.zeros((size, size, 4), np.float32)
    top, left = (size - height) // 2, (size - width) // 2
    canvas[top:top + height, left:left + width] = np.asarray(source.resize((width, height)))
    return canvas[:, ::-1] if thing.mirrored else canvas


def half_plane(rng: np.random.Generator, size: int, offset: float) -> Array:
    """0 on one side of a line and 1 on the other, [size size 1], with a soft edge, `offset` off the centre."""
    angle, edge = rng.uniform(0, 2 * np.pi), rng.uniform(0.01, 0.15)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    distance = np.cos(angle) * axis[None] + np.sin(angle) * axis[:, None] - offset
    return np.clip(distance / edge + 0.5, 0, 1)[..., None]


def mixture(rng: np.random.Generator, style: str, size: int) -> Array:
    """Half of one thing and half of another, or both shining through, [size size 4]."""
    others: list[Thing] = []
    first, second = (sprite(rng, style, size, others) for _ in range(2))
    share = half_plane(rng, size, 0.0) if rng.random() < 0.75 else rng.uniform(0.4, 0.6)
    return share * first + (1 - share) * second


def blot(rng: np.random.Generator, style: str, size: int) -> Array:
    """Something without a name, [size size 4]: part of a thing, pieces in disorder, two that overlap, a stain."""
    kind, others = rng.integers(5), []
    if kind == 0:
        return sprite(rng, style, size, others) * half_plane(rng, size, rng.uniform(-0.05, 0.2))
    if kind == 1:
        pieces = sprite(rng, style, 3 * (size // 3), others).reshape(3, size // 3, 3, size // 3, 4)
        pieces = pieces.transpose(0, 2, 1, 3, 4).reshape(9, size // 3, size // 3, 4)[rng.permutation(9)]
        return pieces.reshape(3, 3, size // 3, size // 3, 4).transpose(0, 2, 1, 3, 4).reshape(
            3 * (size // 3), 3 * (size // 3), 4)
    if kind == 2:
        part = size * 6 // 10
        canvas = np.zeros((size, size, 4), np.float32)
        for _ in range(2):
            top, left = rng.integers(0, size - part + 1, 2)
            added, there = sprite(rng, style, part, others), canvas[top:top + part, left:left + part]
            there *= 1 - added[..., 3:] / 255
            there += added
        return canvas
    if kind == 3:
        vague = Image.fromarray(sprite(rng, style, size, others).round().astype(np.uint8), "RGBa")
        return np.asarray(vague.resize((5, 5), Image.Resampling.BOX).resize((size, size)), np.float32)
    field = ndimage.gaussian_filter(rng.standard_normal((2, size, size)), (0, size / 7, size / 7))
    inside = np.clip((field[0] / np.abs(field[0]).max() - 0.15) * 8, 0, 1)[..., None]
    colours = np.array(list(COLOURS.values()), np.float32)[rng.integers(len(COLOURS), size=2)]
    return np.dstack([np.where(field[1, ..., None] > 0, *colours) * inside, 255 * inside]).astype(np.float32)


def wrong(rng: np.random.Generator) -> tuple[Array, int, str]:
    """A picture [SIDE SIDE 3], 0..255, of a mixture or a blot, which of them it is, and its style."""
    style, size = STYLES[rng.integers(len(STYLES))], int(rng.integers(36, 80))
    label, make = (MIXTURE, mixture) if rng.random() < 0.55 else (BLOT, blot)
    ground = list(GROUNDS.values())[rng.integers(len(GROUNDS))]
    image = np.full((SIDE, SIDE, 3), ground, np.float32)
    made = make(rng, style, size)
    side = len(made)
    top, left = rng.integers(3, SIDE - side - 3, 2)
    image[top:top + side, left:left + side] *= 1 - made[..., 3:] / 255
    image[top:top + side, left:left + side] += made[..., :3]
    return image, label, style


def found_in(picture: Picture, pixels: Array) -> list[tuple[reader.Region, Thing]]:
    """The regions of a drawn picture with their things; what lies in no thing's box is left out."""
    pairs = []
    for region in reader.regions(pixels, np.float32(GROUNDS[picture.ground])):
        x, y = (region.left + region.right) / 2, (region.top + region.bottom) / 2
        thing = min(picture.things, key=lambda t: abs(t.x - x) + abs(t.y - y))
        width, height = scenes.extent(thing, picture.style)
        if (region.right - region.left) * (region.bottom - region.top) > 0.6 * width * height:
            pairs.append((region, thing))
    return pairs


@dataclass(frozen=True)
class Redrawer:
    """The things model, and the network of the phase before, which says what it still recognises."""

    sampler: plain_model.Sampler
    before: Reader

    def redrawn(self, images: Array, captions: list[str], which: Array, rng: np.random.Generator) -> Array:
        """Images [b SIDE SIDE 3], 0..1, to whose latents noise is added and removed again by the model.

        which: [b], of NOISES.
        """
        out = np.empty_like(images)
        for index, noise in enumerate(NOISES):
            some = np.flatnonzero(which == index)
            if len(some):
                seed, asked = int(rng.integers(2**31)), [captions[i] for i in some]
                with torch.autocast("cpu", torch.bfloat16):
                    out[some] = self.sampler.redrawn(images[some], asked, seed, noise, REDRAWING_STEPS)
        return out

    def recognises(self, crop: Array, kind: int) -> bool:
        """Whether a cut-out [4 CROP CROP] still shows its kind."""
        with torch.inference_mode():
            kinds, *_ = self.before(torch.from_numpy(crop[None]))
        return kinds.softmax(-1)[0, kind].item() >= RECOGNISED


def scene_examples(rng: np.random.Generator, wearing: float, redrawer: Redrawer | None) -> list[Example]:
    """Examples of things in scenes, of which every second is redrawn.

    A scene of the style that the model does not know only passes through its VAE, and all its things stay.
    """
    pictures = [scenes.random_picture(rng, 1 + index % 3, STYLES, wearing) for index in range(SCENES)]
    images = np.stack([scenes.draw(picture) for picture in pictures])
    if redrawer is not None:
        captions = [describe(picture, rng).caption() for picture in pictures[::2]]
        known = np.array([picture.style != HELD_OUT for picture in pictures[::2]])
        images[::2] = redrawer.redrawn(images[::2], captions, known * rng.choice(len(NOISES), len(known)), rng)
    found = []
    for index, (picture, image) in enumerate(zip(pictures, images, strict=True)):
        doubted = redrawer is not None and index % 2 == 0 and picture.style != HELD_OUT
        for region, thing in found_in(picture, image * 255):
            labels = labels_of(thing)
            if not doubted or redrawer.recognises(region.crop, labels[0]):
                found.append((region.crop, labels))
    return found


def wrong_examples(rng: np.random.Generator, redrawer: Redrawer | None) -> list[Example]:
    """Examples of mixtures and blots, of all styles; every second is slightly redrawn, with the caption of some thing.
    """
    images, captions, labels = [], [], []
    for _ in range(WRONG):
        image, label, style = wrong(rng)
        images.append(image)
        labels.append(label)
        if redrawer is not None:
            other = scenes.arrange(rng, [scenes.random_thing(rng, [])], style)
            captions.append(describe(other, rng).caption())
    if redrawer is not None:
        some = np.stack(images[::2]) / 255
        images[::2] = 255 * redrawer.redrawn(some, captions[::2], rng.choice(SLIGHT, len(some)), rng)
    found = []
    for image, label in zip(images, labels, strict=True):
        if regions := reader.regions(image, image[0, 0]):
            found.append((max(regions, key=lambda region: region.area).crop, (label, UNKNOWN, UNKNOWN)))
    return found


def examples(seed: int, number: int, redrawer: Redrawer | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut-outs [n 4 CROP CROP] and classes [n 3] of a round; with a redrawer every second picture is redrawn."""
    rng = np.random.default_rng([seed, number])
    wearing = WEARING if number * ROUND >= REVISION else scenes.WEARING
    crops, labels = zip(*scene_examples(rng, wearing, redrawer), *wrong_examples(rng, redrawer))
    return torch.from_numpy(np.stack(crops)), torch.tensor(labels)


def disturbed(crops: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The cut-outs bent, stretched, turned, blurred, tinted and noisy, each by another amount."""
    count = len(crops)

    def even(*shape: int) -> torch.Tensor:
        return 2 * torch.rand(shape, generator=generator) - 1

    turn, stretch = 0.2 * even(count), 1.0 + 0.15 * even(count, 2)
    matrix = torch.stack([torch.stack([turn.cos() * stretch[:, 0], -turn.sin() * stretch[:, 0]], 1),
                          torch.stack([turn.sin() * stretch[:, 1], turn.cos() * stretch[:, 1]], 1)], 1)
    matrix = torch.cat([matrix, 0.06 * even(count, 2, 1)], 2)
    grid = functional.affine_grid(matrix, list(crops.shape), align_corners=False)
    bend = even(count, 2, 5, 5) * 0.10 * torch.rand(count, 1, 1, 1, generator=generator)
    grid = grid + functional.interpolate(bend, size=(CROP, CROP), mode="bicubic").movedim(1, -1)
    grey = torch.tensor([0.5, 0.5, 0.5, 0.0]).view(1, 4, 1, 1)
    bent = functional.grid_sample(crops - grey, grid, align_corners=False) + grey
    blurred = functional.avg_pool2d(functional.pad(bent, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    bent = torch.lerp(bent, blurred, torch.rand(count, 1, 1, 1, generator=generator))
    colours, inside = bent[:, :3] + 0.04 * even(count, 3, 1, 1), bent[:, 3:]
    noise = torch.randn(colours.shape, generator=generator) * 0.06 * torch.rand(count, 1, 1, 1, generator=generator)
    return torch.cat([0.5 + (colours + noise - 0.5) * inside, inside], 1).clamp(0, 1)


def loss_of(model: Reader, crops: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The three cross-entropies, each over the regions that it asks."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(crops)
    return sum(functional.cross_entropy(part.float(), label, ignore_index=UNKNOWN, label_smoothing=0.02)
               for part, label in zip(logits, labels.unbind(1)))


def rate_at(step: int) -> float:
    """Learning rate: linear warm-up, and in each phase a cosine to zero, from the second one on from half of RATE."""
    phase = bisect.bisect_right(PHASES[1:-1], step)
    first, end = PHASES[phase:phase + 2]
    height = RATE / 2 if phase else RATE * min(1.0, (step + 1) / WARMUP)
    return height * 0.5 * (1 + math.cos(math.pi * (step - first) / (end - first)))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="where to stop, at most %(default)s (the default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state", type=Path, required=True, help="file to go on from; made where it is not there")
    parser.add_argument("--checkpoint", type=Path, help="of the things model (default: the one in demo/)")
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    parser.add_argument("--out", type=Path, default=reader.WEIGHTS)
    args = parser.parse_args(argv)
    if args.steps > STEPS:
        parser.error(f"--steps is {args.steps}: the learning rate is planned for {STEPS}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", force=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model, before, first = Reader(), Reader(), 0
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.02, fused=True)
    if args.state.is_file():
        state = torch.load(args.state, weights_only=True)
        first = restore(state, model=model, optimiser=optimiser, before=before)
    redrawer = None
    if args.steps > REDRAWN:
        comfy_host.start(args.comfyui)
        redrawer = Redrawer(plain_model.Sampler("things", args.checkpoint), before.eval())
    since, losses = time.monotonic(), []
    for step in range(first, args.steps):
        into_round = step % (REDRAWN_ROUND if step >= REDRAWN else ROUND)
        if step == REDRAWN:
            before.load_state_dict(model.state_dict())
        if step == first or into_round == 0:
            number = (step - into_round) // ROUND
            crops, labels = examples(args.seed, number, redrawer if step >= REDRAWN else None)
        generator = torch.Generator().manual_seed(1_000_003 * args.seed + step)
        some = torch.randperm(len(crops), generator=generator)[:BATCH]
        loss = loss_of(model, disturbed(crops[some], generator), labels[some])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step)
        optimiser.step()
        losses.append(loss.item())
        if (done := step + 1) % 25 == 0:
            seconds = (time.monotonic() - since) / len(losses)
            logging.info("step %d  loss %.3f  %.2f s a step", done, np.mean(losses), seconds)
            since, losses = time.monotonic(), []
        if done % 100 == 0 or done == args.steps:
            parts = dict(model=model, optimiser=optimiser, before=before)
            save_state(args.state, **{name: part.state_dict() for name, part in parts.items()}, step=done)
    save_file({name: value.half() for name, value in model.state_dict().items()}, str(args.out))


if __name__ == "__main__":
    main()
