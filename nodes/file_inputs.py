"""Files that nodes write into folders of ComfyUI's output folder, and offer again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from safetensors import SafetensorError

#: What `graph_metadata` needs of a node.
HIDDEN = [io.Hidden.prompt, io.Hidden.unique_id, io.Hidden.extra_pnginfo]


def prefix_input(default: str, folder: str) -> io.String.Input:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip=f"Beginning of the file's name, in the folder {folder} of the output folder.",
    )


@contextmanager
def refusing_bad_names(prefix: str) -> Iterator[None]:
    """Raises ValueError, in words for the node's user, where a file of that name cannot be written."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"Expected filename_prefix to be the beginning of a file's name that can be written, but with "
            f"{prefix[:80]!r} came: {error}. Take a shorter, simpler one, and see that the disk has room."
        ) from None


def next_file(folder: str, prefix: str, extension: str) -> tuple[Path, dict[str, str]]:
    """The next file's path, and what the front end is told of it."""
    place, name, counter, subfolder, _ = folder_paths.get_save_image_path(
        f"{folder}/{prefix}", folder_paths.get_output_directory()
    )
    file = f"{name}_{counter:05}_{extension}"
    return Path(place) / file, {"filename": file, "subfolder": subfolder, "type": "output"}


def saved_files(folder: str, extension: str) -> list[str]:
    """Files below a folder of the output folder, newest first, as ComfyUI marks them; then the input folder's."""
    output, inputs = Path(folder_paths.get_output_directory()), Path(folder_paths.get_input_directory())
    files = [path for path in (output / folder).rglob(f"*{extension}") if path.is_file()]
    saved = sorted(files, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
    return [f"{path.relative_to(output).as_posix()} [output]" for path in saved] + sorted(
        path.name for path in inputs.glob(f"*{extension}")
    )


def path_of(file: str) -> Path:
    """The path of one of `saved_files`."""
    return Path(folder_paths.get_annotated_filepath(file))


def graph_metadata(hidden) -> dict[str, str]:
    """The graph, as ComfyUI's own nodes put it into files; with --disable-metadata nothing."""
    if not hidden or args.disable_metadata:
        return {}
    graph = {"prompt": hidden.prompt, **(hidden.extra_pnginfo or {})}
    return {name: json.dumps(value) for name, value in graph.items()}
