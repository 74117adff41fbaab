"""The conventions of other packs that EBCA relies on, and how their data is recognised.

Each function names the packs by their public names, with the key or the shape by which they are recognised. No other
module knows a name of another pack's. What is done about replaced attention: docs/neighbours.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def images_of_window(transformer_options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Which images of the batch a call of the model holds; None where no pack says so.

    ComfyUI's context windows: `context_window`, an object with `dim` (0 for the batch), `index_list` and, in newer
    versions, `causal_anchor_index`: an image that the window puts in front and drops afterwards.
    AnimateDiff-Evolved: `ad_params["sub_idxs"]`, None outside its sliding windows. IPAdapter_plus and
    Advanced-ControlNet read it too.
    """
    window = _core_window(transformer_options, dim=0)
    if window is not None:
        return window
    params = transformer_options.get("ad_params")
    indices = params.get("sub_idxs") if isinstance(params, Mapping) else None
    return None if indices is None else tuple(map(int, indices))


def frames_of_window(transformer_options: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Which frames of its videos a call of the model holds, by ComfyUI's context windows; None for all."""
    return _core_window(transformer_options, dim=2)


def _core_window(transformer_options: Mapping[str, Any], dim: int) -> tuple[int, ...] | None:
    """What ComfyUI's context window selects of a dimension of the latent, [b, c, (frames,) height, width]."""
    window = transformer_options.get("context_window")
    if window is None or getattr(window, "dim", None) != dim:
        return None
    anchor = getattr(window, "causal_anchor_index", None)
    return (*([] if anchor is None else [anchor]), *map(int, window.index_list))


def holds_keys_and_values_in_turns(text: Tensor) -> bool:
    """Whether a text [b, t, c] holds a key and a value for each token, one after the other.

    NegPip (ComfyUI-ppm, prompt-control, cd-tuner_negpip): a CLIP that encodes so, and an attn2_patch on the MODEL that
    takes the two apart. A value is its key, or minus its key where the weight of the word is negative.
    """
    if text.shape[1] % 2:
        return False
    keys, values = text[:, 0::2], text[:, 1::2]
    return bool(text.any()) and bool((keys.abs() == values.abs()).all())
