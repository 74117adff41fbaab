"""What edits cost in joint attention: blocks of ComfyUI's Flux class in the proportions of Flux 1 at 1024 x 1024.

    python run.py bench joint_attention [--rounds N]

A quarter of the size: width 768, 1,024 image tokens, 128 text tokens, 2 + 4 blocks. One call of the model without a
negative prompt; the plain model and each case take turns in one thread. Printed is the median of the ratios of
neighbouring calls in the CPU time of the process, with its quartiles, and the ratio by the count of multiplications.
"shared": with shared_attention of EBCA Compose. All calls of a case are of one run, whose first call is not measured:
it compares both forms.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from devtools import inprocess  # noqa: E402

WIDTH, HEADS, DOUBLE, SINGLE, TEXT, SIDE = 768, 6, 2, 4, 128, 64
IMAGE = (SIDE // 2) ** 2
EDITS = (1, 2, 4)


def counted(texts: int, shared: bool = False, passes: int = 1) -> float:
    """Multiplications of the blocks for so many texts beside one image: linear layers, and one attention for each.

    shared: the image's attention to itself is computed once.
    """
    tokens = IMAGE + texts * TEXT
    linear = (DOUBLE + SINGLE) * 12 * WIDTH**2 * tokens
    pairs = texts * (IMAGE + TEXT) ** 2 - (texts - 1) * shared * IMAGE**2
    return passes * (linear + (DOUBLE + SINGLE) * 2 * WIDTH * pairs)


def calls(rows: int, edits: int, shared: bool = False) -> Callable[[], None]:
    """A call of the model for `rows` images, with so many edits."""
    import comfy.model_patcher
    import comfy.supported_models
    import torch

    import nodes

    settings = dict(
        image_model="flux", in_channels=16, patch_size=2, out_channels=16, vec_in_dim=None, context_in_dim=64,
        hidden_size=WIDTH, mlp_ratio=4.0, num_heads=HEADS, depth=DOUBLE, depth_single_blocks=SINGLE,
        axes_dim=[16, 56, 56], theta=10000, qkv_bias=True, guidance_embed=False, txt_ids_dims=[],
    )  # fmt: skip
    config = comfy.supported_models.Flux(settings)
    config.set_inference_dtype(torch.float32, None)
    base = config.get_model({}, device=torch.device("cpu")).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in base.diffusion_model.parameters():
        size = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.data.normal_(generator=generator).mul_(size)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu)
    texts = torch.randn(edits + 1, 1, TEXT, 64, generator=generator)
    if edits:
        strengths = dict(start_percent=0.0, end_percent=1.0, gamma_attn=0.0, gamma_norm=0.0, gamma_start_percent=0.0,
                         gamma_end_percent=1.0)  # fmt: skip
        made = {
            f"edit{i}": nodes.NODE_CLASS_MAPPINGS["EBCAEditContext"].execute(
                conditioning=[[text, {}]], direction="add", alpha=0.5, **strengths
            ).result[0]
            for i, text in enumerate(texts[1:])
        }  # fmt: skip
        compose = nodes.NODE_CLASS_MAPPINGS["EBCACompose"]
        (model,) = compose.execute(model=model, edits=made, shared_attention=shared).result
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "cond_or_uncond": [0]}
    if edits:
        runtime = f"{compose.__module__.removesuffix('.nodes.edit_nodes')}.comfyui_binding.runtime"
        run = sys.modules[f"{runtime}.sampling_run"].Run(options["ebca"], base.model_sampling)
        options[sys.modules[f"{runtime}.settings"].RUN_KEY] = run
    x, sigma = torch.randn(rows, 16, SIDE, SIDE, generator=generator), torch.ones(rows)

    def call() -> None:
        with torch.inference_mode():
            base.apply_model(x, sigma, c_crossattn=texts[0].expand(rows, -1, -1), transformer_options=dict(options))

    return call


def seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI; run.py passes it")
    parser.add_argument("--rounds", type=int, default=6, help="how often each case is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ebca_bench_", ignore_cleanup_errors=True) as base:
        inprocess.boot(options.comfyui, Path(base), inprocess.CPU_FLAGS)
        import nodes

        asyncio.run(nodes.load_custom_node(str(REPO)))
        plain = calls(1, 0)
        cases = {}
        for edits, shared in itertools.product(EDITS, (False, True)):
            name = f"{edits} edit{'s' * (edits > 1)}{', shared' * shared}"
            cases[name] = calls(1, edits, shared), counted(1 + edits, shared)
        cases["a second pass"] = calls(2, 0), counted(1, passes=2)
        ratios: dict[str, list[float]] = {name: [] for name in cases}
        for call in (plain, *(call for call, _ in cases.values())):
            call()  # memory and kernels are ready afterwards
        for _ in range(options.rounds):
            for name, (call, _) in cases.items():
                ratios[name].append(seconds(call) / seconds(plain))
    print(f"| case | CPU time, median (quartiles) of {options.rounds} | counted |\n|---|---|---|")
    for name, (_, count) in cases.items():
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        print(f"| {name} | {middle:.3f} ({low:.3f}-{high:.3f}) | {count / counted(1):.3f} |")


if __name__ == "__main__":
    main()
