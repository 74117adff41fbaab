"""A small model with ComfyUI's nodes and the pack's, and what the commands on it share."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import comfy_host
from plain_model import Sampler
from worlds import SHAPES_MODELS

REPO = comfy_host.REPO
TILE = 128  # about the pixels of a picture in a sheet, each way


def bench_parser(description: str, models: Collection[str] = SHAPES_MODELS) -> argparse.ArgumentParser:
    """The options that all commands on small models have; `boot` obeys them. models: those that it works on."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI; run.py passes it")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--model", choices=list(models), default="unet", help="the trained model")
    parser.add_argument(
        "--checkpoint", type=Path,
        help="its file (default: the one in demo/); kept results do not name it, so pass another --results as well",
    )  # fmt: skip
    return parser


def boot(options: argparse.Namespace) -> None:
    """Start ComfyUI in this process."""
    comfy_host.start(options.comfyui)
    torch.set_num_threads(options.threads)


def in_precision(precision: torch.dtype) -> torch.autocast:
    """A context in which convolutions and matrix products are of that type, and everything else float32."""
    return torch.autocast("cpu", precision, enabled=precision != torch.float32)


def pack_module(name: str) -> ModuleType:
    """A module of the pack as ComfyUI has loaded it, by its dotted name."""
    pack = next(name for name, module in sys.modules.items() if getattr(module, "__path__", None) == [str(REPO)])
    return importlib.import_module(f"{pack}.{name}")


class SmallModel(Sampler):
    """A trained model, and nodes of ComfyUI and of the pack, called directly."""

    def __init__(self, name: str = "unet", checkpoint: Path | None = None):
        import nodes

        async def load() -> bool:
            extras = Path(nodes.__file__).parent / "comfy_extras"
            packs = (extras / "nodes_custom_sampler.py", extras / "nodes_pag.py", REPO)
            return all([await nodes.load_custom_node(str(pack)) for pack in packs])

        if not asyncio.run(load()):
            raise RuntimeError(f"ComfyUI could not load the packs in {REPO}; its log above says why.")
        self._nodes = nodes.NODE_CLASS_MAPPINGS
        super().__init__(name, checkpoint)

    def node(self, node_id: str, **inputs: Any) -> tuple:
        """The outputs of a node."""
        cls = self._nodes[node_id]
        with torch.inference_mode():
            if hasattr(cls, "define_schema"):
                return cls.execute(**inputs).result
            return getattr(cls(), cls.FUNCTION)(**inputs)

    def latent(self, images: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The LATENT of images [h w 3], 0..1."""
        return {"samples": self.vae.encode(torch.from_numpy(np.stack(images)).float()).detach()}

    def decode(self, latent: dict[str, Tensor]) -> np.ndarray:
        """Images [b h w 3], 0..1."""
        return self.decoded(latent["samples"])

    def invert(self, caption: list, latent: dict[str, Tensor], steps: int, **settings: Any) -> tuple:
        """The LATENT and the NOISE that EBCA Invert makes, at its defaults but for `settings`."""
        defaults = dict(
            scheduler="normal", lambda_auto_corr=20.0, lambda_kl=20.0, reg_steps=5, rolls=5, seed=0,
            fixed_point_iterations=0,
        )  # fmt: skip
        return self.node(
            "EBCAInvert", model=self.model, caption=caption, latent=latent, steps=steps, **(defaults | settings)
        )

    def sample(
        self, model: Any, latent: dict[str, Tensor], positive: list, negative: list, *, start_at_step: int = 0,
        **settings: Any,
    ) -> dict:  # fmt: skip
        """The LATENT that KSampler (Advanced) makes of an inverted one: no noise added."""
        return self.node(
            "KSamplerAdvanced", model=model, add_noise="disable", noise_seed=0, positive=positive, negative=negative,
            latent_image=latent, start_at_step=start_at_step, end_at_step=10000, return_with_leftover_noise="disable",
            **settings,
        )[0]  # fmt: skip

    def sample_inverted(
        self, model: Any, inverted: tuple, latent: dict[str, Tensor], positive: list, negative: list, **settings: Any
    ) -> dict:
        """The LATENT that a sampler makes of what `invert` has made of `latent`; settings as of sample_custom.

        A flow-matching model starts from the NOISE, as its run from sigma 1 does not read a latent.
        """
        start, noise = inverted
        if pack_module("comfyui_binding.samplers.inversion_run").inverts_to_noise(self.model):
            return self.sample_custom(model, noise, latent, positive, negative, **settings)
        return self.sample(model, start, positive, negative, **settings)

    def sample_custom(
        self, model: Any, noise: Any, latent: dict[str, Tensor], positive: list, negative: list, *, steps: int,
        cfg: float, sampler_name: str, scheduler: str,
    ) -> dict:  # fmt: skip
        """The LATENT that SamplerCustomAdvanced makes with a NOISE."""
        (guider,) = self.node("CFGGuider", model=model, positive=positive, negative=negative, cfg=cfg)
        (sampler,) = self.node("KSamplerSelect", sampler_name=sampler_name)
        (sigmas,) = self.node("BasicScheduler", model=model, scheduler=scheduler, steps=steps, denoise=1.0)
        return self.node(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas, latent_image=latent
        )[0]


def sheet(
    shown: Mapping[str, Sequence[np.ndarray]], columns: int = 10, heads: Sequence[str] = ()
) -> Image.Image:
    """The first pictures of each method, a row each, under its name; heads: what stands above the columns."""
    caption = 20
    height = len(next(iter(shown.values()))[0])
    side = height * max(round(TILE / height), 1)
    top = 14 * max((len(_wrapped(head)) for head in heads), default=0)
    sheet = Image.new("RGB", (columns * side, top + len(shown) * (side + caption)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads[:columns]):
        pen.text((column * side + 4, 2), "\n".join(_wrapped(head)), "black", ImageFont.load_default(11))
    for name, images in shown.items():
        pen.text((4, top + 3), name, "black", ImageFont.load_default(13))
        for column, image in enumerate(images[:columns]):
            picture = Image.fromarray((np.clip(image, 0, 1) * 255).round().astype(np.uint8))
            enlarged = picture.resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * side, top + caption))
        top += side + caption
    return sheet


def _wrapped(head: str) -> list[str]:
    return textwrap.wrap(head, 22)
