"""The paper's three edits of photographs, with the authors' settings where they are known."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """What changes in the caption, and EBCA's settings: texts, alphas and gammas of what is added and removed.

    old: a pattern of the words of the caption that `new` replaces. caption: of photos that have none of their own.
    start: from where on alphas and gammas hold, as a share of the noise schedule.
    """

    old: str
    new: str
    caption: str
    texts: tuple[str, str]
    alphas: tuple[float, float]
    gammas: tuple[float, float]
    start: float

    def swapped(self, caption: str) -> str:
        """The caption of the edited photo."""
        return re.sub(rf"\b({self.old})\b", self.new, caption, flags=re.IGNORECASE)


EDITS = {
    "cat_to_dog": Edit("cat", "dog", "a photo of a cat", ("dog", "cat"), (0.75, 0.65), (6e-4, 5e-4), 0.5),
    # The authors' strengths are not known here: these are the dog's, with nothing removed.
    "cat_to_cat_with_glasses": Edit(
        "cat", "cat with glasses", "a photo of a cat", ("glasses", ""), (0.75, 0.0), (6e-4, 0.0), 0.5
    ),
    "horse_to_zebra": Edit(
        "brown horse|horse", "zebra", "a photo of a horse", ("zebra", "brown horse"), (0.6, 0.5), (5e-4, 4e-4), 0.3
    ),
}
