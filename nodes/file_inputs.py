"""Files that nodes write into subfolders of ComfyUI's output folder, and list for loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from safetensors import SafetensorError

#: The hidden inputs that `graph_metadata` reads.
HIDDEN = [io.Hidden.prompt, io.Hidden.unique_id, io.Hidden.extra_pnginfo]


def prefix_input(default: str, folder: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip=f"Prefix of the file name, in the subfolder {folder} of the output folder.",
    )


@contextmanager
def filename_errors(prefix: str) -> Iterator[None]:
    """Turns a failure to write a file with this prefix into a ValueError with a message for the user."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"A file with the filename_prefix {prefix[:80]!r} cannot be written: {error}. Use a shorter, simpler "
            "prefix and check that the disk has free space."
        ) from None


def next_file(folder: str, prefix: str, extension: str) -> tuple[Path, dict[str, str]]:
    """The path of the next file, and its description for the front end."""
    place, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        f"{folder}/{prefix}", folder_paths.get_output_directory()
    )
    file = f"{name}_{counter:05}_{extension}"
    return Path(place) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def saved_files(folder: str, extension: str) -> list[str]:
    """Files below a subfolder of the output folder, newest first and annotated; then the input folder's."""
    output, inputs = Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())
    files = [path for path in (output / folder).rglob(f"*{extension}") if path.is_file()]
    saved = sorted(files, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
    return [f"{path.relative_to(output).as_posix()} [output]" for path in saved] + sorted(
        path.name for path in inputs.glob(f"*{extension}")
    )


def check_file(file: str, folder: str, extension: str) -> None:
    """Raises ValueError for a file that is not one of `saved_files`."""
    if file not in saved_files(folder, extension):
        problem = f"The file {file!r} is missing" if file else "No file is selected"
        raise ValueError(
            f"{problem}. Press R to refresh the list, and select a file from the subfolder {folder} of the output "
            "folder or from the input folder."
        )


def path_of(file: str) -> Path:
    """The path of one of `saved_files`."""
    return Path(folder_paths.get_annotated_filepath(file))


def graph_metadata(hidden) -> dict[str, str]:
    """The graph as metadata, as ComfyUI's own nodes save it; empty with --disable-metadata."""
    if not hidden or args.disable_metadata:
        return {}
    graph = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in graph.items()}
