"""Counts what a small model draws without EBCA: ComfyUI's own sampler and loader, the scorer of the model's world.

    python run.py bench plain_model                      the shapes model
    python run.py bench plain_model --model things       the things model

Prints one Markdown row per set of captions. Image i of a row has the same caption and noise in every run.
"""
from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import comfy_host
from worlds import MODELS

DEMO = comfy_host.DEMO


class Sampler:
    """A checkpoint as ComfyUI loads it, and its sampling with a caption and a noise for each image of a batch."""

    def __init__(self, name: str = "unet", checkpoint: Path | None = None):
        """name: of one of worlds.MODELS; checkpoint: its file, by default the one in demo/."""
        import comfy.sd
        checkpoint = checkpoint or DEMO / MODELS[name].checkpoint
        if not checkpoint.is_file():
            raise SystemExit(f"no trained model at '{checkpoint}': put it there, or train it (research/README.md)")
        comfy_host.family().register()
        self.name, self.world = name, MODELS[name].world
        self.model, self.clip, self.vae = comfy.sd.load_checkpoint_guess_config(str(checkpoint))[:3]

    def encode(self, captions: list[str]):
        """A conditioning whose row b is the caption of image b."""
        import torch
        contexts = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(c), show_pbar=False)[0] for c in captions]
        return [[torch.cat([c[0] for c in contexts]), {}]]

    def images(self, captions: list[str], seeds: list[int], steps: int, cfg: float, name: str, scheduler: str,
               side: int | None = None) -> np.ndarray:
        """Images [b h w 3] in 0..1; seeds[b] fixes the noise of image b. side: in pixels, by default the world's."""
        prompts = self.encode(captions), self.encode([""])
        return self.sampled(self.model, *prompts, seeds, steps, cfg, name, scheduler, side)

    def sampled(self, model, positive, negative, seeds: list[int], steps: int, cfg: float, name: str, scheduler: str,
                side: int | None = None, sigmas=None) -> np.ndarray:
        """The same with a MODEL and CONDITIONINGs of one's own; sigmas: others than the scheduler's."""
        import comfy.sample
        import torch
        channels = self.model.get_model_object("latent_format").latent_channels
        rows = (side or self.world.side) // self.vae.spacial_compression_decode()
        noise = torch.cat([torch.randn(1, channels, rows, rows, generator=torch.Generator().manual_seed(s))
                           for s in seeds])
        latent = comfy.sample.sample(
            model, noise, steps, cfg, name, scheduler, positive, negative, torch.zeros_like(noise), sigmas=sigmas,
            disable_pbar=True, seed=seeds[0])
        return self.decoded(latent)

    def redrawn(self, images: np.ndarray, captions: list[str], seed: int, share: float, steps: int) -> np.ndarray:
        """Images [b h w 3] with noise added for the last `share` of so many steps, and removed with their captions.

        share 0: they only pass through the VAE.
        """
        import comfy.sample
        import comfy.samplers
        import torch
        latent = self.vae.encode(torch.from_numpy(images))
        number = round(share * steps)
        if number:
            name, scheduler = self.world.sampler["name"], self.world.sampler["scheduler"]
            schedule = comfy.samplers.calculate_sigmas(
                self.model.get_model_object("model_sampling"), scheduler, steps)
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
            latent = comfy.sample.sample(
                self.model, noise, number, self.world.cfg, name, scheduler, self.encode(captions), self.encode([""]),
                latent, sigmas=schedule[-number - 1:], disable_pbar=True, seed=seed)
        return self.decoded(latent)

    def decoded(self, samples) -> np.ndarray:
        """Images [b h w 3] of latents [b c h w]."""
        return self.vae.decode(samples).detach().float().clamp(0, 1).numpy()


def draw_row(sampler: Sampler, row: str, args: argparse.Namespace) -> Iterator[tuple[Any, np.ndarray, Any]]:
    """Samples a row of the table, batch by batch: scenes, pictures [h w 3] and verdicts."""
    wanted = sampler.world.scenes(row, args.images)
    for start in range(0, len(wanted), args.batch):
        part = wanted[start:start + args.batch]
        seeds = list(range(start, start + len(part)))
        images = sampler.images([s.caption() for s in part], seeds, args.steps, args.cfg, args.sampler, args.scheduler)
        for scene, image in zip(part, images, strict=True):
            yield scene, image, sampler.world.verdict(image, scene)


def sheet(images: list[np.ndarray], columns: int, path: Path) -> None:
    """Saves images [h w 3], 0..1, as one sheet."""
    blank = [np.ones_like(images[0])] * (-len(images) % columns)
    rows = [np.concatenate((images + blank)[i:i + columns], 1) for i in range(0, len(images), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8)).save(path)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", help="folder of ComfyUI (default: COMFYUI_PATH)")
    parser.add_argument("--model", choices=list(MODELS), default="unet", help="the trained model")
    parser.add_argument("--checkpoint", type=Path, help="its file (default: the one in demo/)")
    parser.add_argument("--images", type=int, default=500, help="images a row")
    parser.add_argument("--rows", nargs="*", metavar="ROW", help="rows of the table (default: all of its world)")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--cfg", type=float, default=1.0)
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="normal")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheets", type=Path, help="folder for a sheet of images of each row")
    args = parser.parse_args(argv)
    rows = MODELS[args.model].world.rows
    args.rows = args.rows or list(rows)
    if unknown := set(args.rows) - set(rows):
        parser.error(f"there is no row {', '.join(sorted(unknown))}: expected some of {'; '.join(rows)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    comfy_host.start(args.comfyui)
    import torch
    torch.set_num_threads(args.threads)
    sampler = Sampler(args.model, args.checkpoint)
    labels = sampler.world.labels
    print(f"{args.images} images a row, {args.sampler}, {args.scheduler}, {args.steps} steps, cfg {args.cfg:g}\n")
    print("| captions | " + " | ".join(labels) + f" | {sampler.world.complete} |")
    print("|---" * (len(labels) + 2) + "|")
    for row in args.rows:
        began = time.monotonic()
        drawn = list(draw_row(sampler, row, args))
        counts = Counter(v.label for *_, v in drawn)
        shares = [counts[label] for label in labels] + [sum(v.complete for *_, v in drawn)]
        print(f"| {row} | " + " | ".join(f"{100 * n / len(drawn):.1f} %" for n in shares) + " |", flush=True)
        if args.sheets:
            sheet([image for _, image, _ in drawn[:100]], 10, args.sheets / f"{row.replace(' / ', ' or ')}.png")
            wrong = [f"{s.caption()}: {v.label}" for s, _, v in drawn[:100] if not v.right]
            print("\n".join(wrong), f"\n{(time.monotonic() - began) / len(drawn):.2f} s an image")


if __name__ == "__main__":
    main()
