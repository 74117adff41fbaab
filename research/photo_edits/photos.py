"""A folder of photographs: beside photo.jpg may lie photo.txt, its caption, and photo.mask.png, white on the object."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from photo_edits.edits import PhotoEdit
from server_runs import Task

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class PhotoTask(Task):
    """A photograph with its caption, and the caption that it is to have.

    digest: of the photo and the caption, so that another photo of the same name is another task.
    """

    photo: Path
    caption: str
    new_caption: str
    digest: str

    @property
    def name(self) -> str:
        return f"{self.photo.stem}-{self.digest}"

    @property
    def label(self) -> str:
        return f"{self.photo.name}: {self.caption}"

    @property
    def uploaded(self) -> str:
        """The photo's name on the servers."""
        return f"ebca_{self.digest}{self.photo.suffix.lower()}"

    @property
    def uploads(self) -> Mapping[str, Path]:
        return {self.uploaded: self.photo}

    @property
    def mask(self) -> Path | None:
        path = self.photo.with_suffix(".mask.png")
        return path if path.exists() else None


def tasks(folder: Path, edit: PhotoEdit) -> list[PhotoTask]:
    """The photographs of a folder.

    Raises:
        SystemExit: there are none, or one cannot be read, has a mask of another size or a caption without the word.
    """
    photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found = [_task(photo, edit) for photo in photos if not photo.name.endswith(".mask.png")]
    if not found:
        raise SystemExit(f"Expected photographs ({', '.join(SUFFIXES)}) in {folder}, but found none.")
    plain = sum(not task.photo.with_suffix(".txt").exists() for task in found)
    if plain:
        print(f"{plain} of {len(found)} photos have no .txt with a caption: theirs is '{edit.caption}'.")
    return found


def _task(photo: Path, edit: PhotoEdit) -> PhotoTask:
    text = photo.with_suffix(".txt")
    caption = " ".join(text.read_text(encoding="utf-8").split()) if text.exists() else edit.caption
    new_caption = edit.swapped(caption)
    if new_caption == caption:
        raise SystemExit(f"Expected '{edit.old.replace('|', ' or ')}' in {text}, but got '{caption}'.")
    digest = hashlib.sha256(photo.read_bytes() + caption.encode()).hexdigest()[:10]
    task, size = PhotoTask(photo, caption, new_caption, digest), opened(photo).size
    if task.mask and (got := opened(task.mask).size) != size:
        raise SystemExit(f"Expected {task.mask} to have the photo's size {size}, but got {got}.")
    return task


def opened(path: Path) -> Image.Image:
    """A picture, turned as its camera says: Load Image does so too."""
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except OSError as error:
        raise SystemExit(f"{path} cannot be read as a picture: {error}") from None
