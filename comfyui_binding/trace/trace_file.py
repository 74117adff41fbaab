"""Traces in files, for plots elsewhere: safetensors, with everything that is no tensor as JSON in the metadata.

Tensors: `values` [quantity, step, layer, role], for each positive prompt p with attention maps `maps.p.g` [image,
token, rows, columns] for each of its grids g, and `prompt.p` to check the text of a positive prompt. The
metadata's entry `ebca_trace` says what stands at each place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import comfy.utils
import safetensors

from ..runtime.settings import KEY
from .trace_record import QUANTITIES, TraceRecord, WordMaps

TRACE_KEY = f"{KEY}_trace"
VERSION = 1


def save(path: Path, record: TraceRecord, other_metadata: Mapping[str, str]) -> None:
    """Write a record."""
    tensors = {"values": record.values}
    for prompt, maps in enumerate(record.maps):
        tensors |= {f"maps.{prompt}.{number}": grid.contiguous() for number, grid in enumerate(maps.by_grid)}
    tensors |= {f"prompt.{number}": samples for number, samples in enumerate(record.prompts)}
    about = {
        "version": VERSION,
        "quantities": QUANTITIES,
        "layers": record.layers,
        "roles": record.roles,
        "sigmas": record.sigmas,
        "settings": record.settings,
        "is_complete": record.is_complete,
        "map_weights": [maps.weights for maps in record.maps],
        "prompts": len(record.prompts),
    }
    comfy.utils.save_torch_file(tensors, str(path), metadata={**other_metadata, TRACE_KEY: json.dumps(about)})


def load(path: Path) -> TraceRecord:
    """Read what `save` wrote. Raises ValueError for any other file."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[TRACE_KEY])
            maps = [
                WordMaps([file.get_tensor(f"maps.{prompt}.{number}") for number in range(len(weights))], weights)
                for prompt, weights in enumerate(about["map_weights"])
            ]
            prompts = tuple(file.get_tensor(f"prompt.{number}") for number in range(about.get("prompts", 0)))
            values = file.get_tensor("values")
            layers, roles, sigmas = (tuple(about[name]) for name in ("layers", "roles", "sigmas"))
            if values.shape != (len(QUANTITIES), len(sigmas), len(layers), len(roles)):
                raise ValueError(f"values of shape {list(values.shape)}")
            return TraceRecord(
                values, layers, roles, sigmas, about["settings"], about["is_complete"], tuple(maps), prompts=prompts
            )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path.name} is not a file of EBCA Save Trace: {type(error).__name__}, {error}. Choose another file."
        ) from None
