"""The paper's three edits of photographs, with the authors' strengths where they are known."""

from __future__ import annotations

import re
from dataclasses import dataclass

from authors_edits import CAT_TO_DOG, HORSE_TO_ZEBRA, Edit


@dataclass(frozen=True)
class PhotoEdit:
    """What changes in the caption, the texts of what is added and removed, and their strengths.

    old: a pattern of the words of the caption that `new` replaces. caption: of photos that have none of their own.
    """

    old: str
    new: str
    caption: str
    texts: tuple[str, str]
    strengths: Edit

    def swapped(self, caption: str) -> str:
        """The caption of the edited photo."""
        return re.sub(rf"\b({self.old})\b", self.new, caption, flags=re.IGNORECASE)


#: The dog's, with nothing removed: the authors' are not known here.
_GLASSES = Edit((0.75, 0.0), 0.5, (6e-4, 0.0))
EDITS = {
    "cat_to_dog": PhotoEdit("cat", "dog", "a photo of a cat", ("dog", "cat"), CAT_TO_DOG),
    "cat_to_cat_with_glasses": PhotoEdit("cat", "cat with glasses", "a photo of a cat", ("glasses", ""), _GLASSES),
    "horse_to_zebra": PhotoEdit(
        "brown horse|horse", "zebra", "a photo of a horse", ("zebra", "brown horse"), HORSE_TO_ZEBRA
    ),
}
