"""Liu, Li, Du, Torralba, Tenenbaum, "Compositional Visual Generation with Composable Diffusion Models" (ECCV 2022,
arXiv 2206.01714), by ComfyUI's ConditioningCombine, which averages:

    eps = eps(z, "") + cfg mean over concepts i of (eps(z, c_i) - eps(z, ""))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def combined(node: Callable, concepts: Sequence[list]) -> list:
    """One CONDITIONING of several, for `node`, which runs a node of ComfyUI; each has rows for the whole batch."""
    first, *others = concepts
    for other in others:
        (first,) = node("ConditioningCombine", conditioning_1=first, conditioning_2=other)
    return first
