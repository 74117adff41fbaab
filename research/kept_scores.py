"""Scores of pictures in a file of lines, where what is known is not measured again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from json_lines import read_lines


def kept_scores(
    path: Path, wanted: Iterable[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """For each key a line of its entries and of what was measured for it. New lines are added to the file.

    wanted: keys, all with the same names, each with the function that measures for it.
    """
    wanted = list(wanted)
    names = list(wanted[0][0]) if wanted else []
    known = {tuple(line.get(name) for name in names): line for line in read_lines(path)}
    with path.open("a", encoding="utf-8", buffering=1) as file:  # line by line, so that a stop loses nothing
        for key, measure in wanted:
            values = tuple(key.values())
            if values not in known:
                known[values] = key | measure()
                file.write(json.dumps(known[values]) + "\n")
    return [known[tuple(key.values())] for key, _ in wanted]
