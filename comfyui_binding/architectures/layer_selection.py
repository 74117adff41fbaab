"""The names of layers, and the grammar of the `blocks` input: `d1-d2,m0,u0.4` or `b0-b9,b12`.

A layer is named by a letter for the part of the network, the number of its block in that part and the number of the
layer in the block: d1.0. Blocks are d (down), m (middle) and u (up) in U-Nets and b in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

LETTERS = "dmubva"
_BLOCK = rf"([{LETTERS}])(\d+)(?:\.(\d+))?"


class LayerName(NamedTuple):
    letter: str
    block: int
    depth: int

    def __str__(self) -> str:
        return f"{self.letter}{self.block}.{self.depth}"


def parse_name(name: str) -> LayerName:
    block, depth = name[1:].split(".")
    return LayerName(name[0], int(block), int(depth))


def parse_blocks(names: Sequence[str], text: str) -> frozenset[str] | None:
    """`d1-d2,m0,u0-u3,u0.4` -> names of layers; empty text -> None, for all.

    names: all layers of the model, in the order of a call. Raises ValueError for what the model does not have.
    """
    if not text.strip():
        return None
    layers = [parse_name(name) for name in names]
    try:
        items = block_items(text)
    except ValueError as error:
        raise ValueError(f"{error} The model has {_available(layers)}.") from None
    return frozenset(str(layer) for item in items for layer in _chosen(item, layers))


def block_items(text: str) -> list[re.Match]:
    """The items of `blocks`, matched. Raises ValueError for syntax that is malformed on any model."""
    items = [item for item in re.split(r"[,\s]+", text) if item] or [text] * bool(text.strip())
    matches = [re.fullmatch(rf"{_BLOCK}(?:-{_BLOCK})?", item) for item in items]
    if None in matches:
        wrong = items[matches.index(None)]
        raise ValueError(f"'{wrong}' in blocks is not a block. Write blocks as in d0-d2, m0, u1 or u0.4, or b0-b9.")
    return matches


def _chosen(item: re.Match, layers: Sequence[LayerName]) -> Sequence[LayerName]:
    first, last = item.group(1, 2, 3), item.group(4, 5, 6) if item.group(4) else item.group(1, 2, 3)
    inside = layers[_find(first, layers)[0] : _find(last, layers)[-1] + 1]
    if not inside:
        raise ValueError(f"blocks: the range {item.group()} ends before it begins. The model has {_available(layers)}.")
    return inside


def _find(wanted: tuple[str, str, str | None], layers: Sequence[LayerName]) -> list[int]:
    letter, block, depth = wanted
    found = [
        index
        for index, layer in enumerate(layers)
        if layer[:2] == (letter, int(block)) and depth in (None, str(layer.depth))
    ]
    if not found:
        asked = f"{letter}{block}" + (f".{depth}" if depth is not None else "")
        raise ValueError(f"blocks: the model has no attention block {asked}. It has {_available(layers)}.")
    return found


def _available(layers: Sequence[LayerName]) -> str:
    depths: dict[tuple[str, int], int] = {}
    for letter, block, depth in layers:
        depths[letter, block] = max(depths.get((letter, block), 0), depth)
    return ", ".join(
        f"{letter}{block}" + (f" (layers {letter}{block}.0 to {letter}{block}.{depth})" if depth else "")
        for (letter, block), depth in depths.items()
    )
