"""There and back on the shapes model: how exactly a picture returns from its inversion, without any edit.

    python run.py bench round_trip

Drawn pictures of one object are inverted and sampled again under the same caption at cfg 1. Errors are mean absolute
differences of latents, whose values reach from -1 to 1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from shapes.cases import cases
from shapes.drawing import draw
from small_model import SmallModel, bench_parser, boot

SEED = 3
SETTINGS = dict(cfg=1.0, scheduler="normal")
VARIANTS = {
    "regularised": {},
    "regularised, one fixed-point iteration": {"fixed_point_iterations": 1},
    "not regularised": {"reg_steps": 0},
    "not regularised, one fixed-point iteration": {"reg_steps": 0, "fixed_point_iterations": 1},
    "not regularised, three fixed-point iterations": {"reg_steps": 0, "fixed_point_iterations": 3},
}


class RoundTrip:
    """Pictures, and how far they are from themselves after inversion and sampling."""

    def __init__(self, shapes: SmallModel, count: int):
        self._shapes = shapes
        chosen = cases(count, SEED)
        self._latent = shapes.latent([draw(case.picture) for case in chosen])
        self._caption = shapes.encode([case.caption(case.old) for case in chosen])

    def inverted(self, steps: int, **settings) -> tuple:
        return self._shapes.invert(self._caption, self._latent, steps, **settings)

    def error(self, inverted: tuple, steps: int, sampler: str = "euler") -> float:
        """Of the latents after sampling from inverted ones."""
        settings = SETTINGS | dict(steps=steps, sampler_name=sampler)
        prompts = self._caption, self._caption
        return self._distance(
            self._shapes.sample_inverted(self._shapes.model, inverted, self._latent, *prompts, **settings)
        )

    def error_of_last_step(self, steps: int) -> float:
        """Of the pictures themselves after the sampler's last step alone: what the model cannot draw."""
        settings = SETTINGS | dict(steps=steps, sampler_name="euler", start_at_step=steps - 1)
        return self._distance(
            self._shapes.sample(self._shapes.model, self._latent, self._caption, self._caption, **settings)
        )

    def _distance(self, sampled: dict) -> float:
        return float((sampled["samples"] - self._latent["samples"]).abs().mean())


def main(arguments: Sequence[str]) -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=int, default=16, help="pictures")
    parser.add_argument("--steps", type=int, nargs="*", default=[20, 50, 200], help="sampling steps, a column each")
    parser.add_argument("--samplers", type=int, default=50, help="steps for the table of samplers; 0 leaves it out")
    options = parser.parse_args(arguments)
    boot(options)
    trip = RoundTrip(SmallModel(options.model, options.checkpoint), options.images)
    alone = trip.error_of_last_step(max(options.steps))
    print(f"{options.images} pictures, euler, normal; the last step alone errs by {alone:.4f}\n")
    _print_variants(trip, options.steps)
    if options.samplers:
        _print_samplers(trip, options.samplers)
    return 0


def _print_variants(trip: RoundTrip, columns: Sequence[int]) -> None:
    print("| inversion | " + " | ".join(f"{steps} steps" for steps in columns) + " | calls a step |")
    print("|---" * (len(columns) + 2) + "|")
    for name, settings in VARIANTS.items():
        errors = [trip.error(trip.inverted(steps, **settings), steps) for steps in columns]
        calls = max(1, settings.get("fixed_point_iterations", 0))
        print(f"| {name} | " + " | ".join(f"{error:.4f}" for error in errors) + f" | {calls} |", flush=True)


def _print_samplers(trip: RoundTrip, steps: int) -> None:
    """Every sampler of ComfyUI, from one inversion that is not regularised, with one fixed-point iteration."""
    import comfy.samplers

    inverted = trip.inverted(steps, reg_steps=0, fixed_point_iterations=1)
    print(f"\n| sampler | error after {steps} steps | seconds |\n|---|---|---|")
    for sampler in comfy.samplers.SAMPLER_NAMES:
        begun = time.monotonic()
        try:
            error = f"{trip.error(inverted, steps, sampler):.4f}"
        except Exception as failure:  # some samplers need packages that ComfyUI does not bring
            error = f"fails: {type(failure).__name__}"
        print(f"| {sampler} | {error} | {time.monotonic() - begun:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
