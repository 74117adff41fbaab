"""The archive that the registry hands out, made as its command line tool makes it. Needs the tools installed.

    python run.py archive

What git tracks, less what .comfyignore names, goes into dist/.
"""

import contextlib
import io
import os
from pathlib import Path
from zipfile import ZipFile

import tomllib

REPO = Path(__file__).absolute().parents[1]


def build(folder: Path) -> Path:
    """Write the archive into a folder; its path. Raises RuntimeError outside a git checkout."""
    from comfy_cli.file_utils import list_git_tracked_files, zip_files

    if not list_git_tracked_files(REPO):
        raise RuntimeError(f"Expected {REPO} to be a git checkout, whose files the archive holds, but git lists none.")
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / f"{project['name']}-{project['version']}.zip"
    before = Path.cwd()
    os.chdir(REPO)  # the tool takes the folder that it is called in
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            zip_files(str(path))
    finally:
        os.chdir(before)
    return path


def main() -> None:
    path = build(REPO / "dist")
    with ZipFile(path) as archive:
        for entry in archive.infolist():
            print(f"{entry.file_size:9} {entry.filename}")
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
