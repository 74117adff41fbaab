"""Pictures made on running ComfyUI servers and kept in a folder: a run that was stopped goes on where it was, also on
other servers. `real_checkpoints` and `real_edits` are made of it."""

from __future__ import annotations

import argparse
import json
import queue
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from picture_sheet import sheet

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from devtools import workflows  # noqa: E402
from devtools.server import Client, ServerError  # noqa: E402
from devtools.twins import steps  # noqa: E402

ROWS_OF_THE_SHEET = 12


class Task:
    """What one prompt for a server makes: a picture for each title of its graph.

    Attributes:
        name: the path of its files below the folder of the run, without title and suffix.
        label: what stands in the progress and on the sheet.
        uploads: {name in the server's input folder: the file}
    """

    name: str
    label: str
    uploads: Mapping[str, Path] = {}

    def file(self, folder: Path, title: str, suffix: str = ".png") -> Path:
        """Of a picture, or with ".txt" of the text about it."""
        return folder / f"{self.name}-{title.replace(' ', '_')}{suffix}"

    def picture(self, folder: Path, title: str) -> Image.Image:
        with Image.open(self.file(folder, title)) as file:
            return file.convert("RGB")


class Graph(Protocol):
    """The API prompts of a workflow file.

    Attributes:
        pictures: {title: the node that shows the picture}, in the order of the sheet. texts: {title: the node that
        shows a text about the picture}
    """

    pictures: Mapping[str, str]
    texts: Mapping[str, str]

    def of(self, task: Task) -> workflows.Prompt:
        """The prompt of a task."""

    def settings(self) -> workflows.Prompt:
        """All that pictures depend on beside their task."""


def argument_parser(description: str, workflow: Path, out: Path) -> argparse.ArgumentParser:
    """The options that all commands on servers have, with the defaults of one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", required=True, help="addresses, say http://127.0.0.1:8188")
    parser.add_argument("--checkpoint", required=True, help="name of the checkpoint on the servers")
    parser.add_argument("--workflow", type=Path, default=workflow, help=f"by default {workflow.name}")
    parser.add_argument("--out", type=Path, default=out, help="folder of the run")
    parser.add_argument("--size", type=int, help="width and height in pixels, by default the workflow's")
    parser.add_argument("--steps", type=int, help="by default the workflow's")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one prompt")
    parser.add_argument("--clip", help="a CLIP model of transformers, a folder or a name, to score the pictures with")
    return parser


def api_prompt(options: argparse.Namespace) -> workflows.Prompt:
    """The workflow file as the first server that answers understands it, with the checkpoint, size and steps asked for.

    Raises:
        SystemExit: no server answers, or it lacks a node.
    """
    values: dict[tuple[str, str], Any] = {("CheckpointLoaderSimple", "ckpt_name"): options.checkpoint}
    if options.size:
        sized = ("EmptyLatentImage", "ImageScale")
        values |= {(node, side): options.size for node in sized for side in ("width", "height")}
    if options.steps:
        values |= steps(options.steps)
    object_info = _object_info(options.servers)
    try:
        return workflows.substitute(workflows.to_api(workflows.load(options.workflow), object_info), values)
    except workflows.WorkflowProblem as error:
        raise SystemExit(str(error)) from None


def _object_info(servers: Sequence[str]) -> dict:
    failures = []
    for url in servers:
        try:
            return Client(url).object_info()
        except OSError as error:
            failures.append(f"{url}: {error}")
    raise SystemExit("Expected a running ComfyUI at one of --servers, but none answers.\n" + "\n".join(failures))


def make(options: argparse.Namespace, graph: Graph, tasks: Sequence[Task]) -> bool:
    """Make the pictures that are missing, and a sheet of some of them; whether all are there."""
    keep_settings(options.out, graph.settings())
    missing = [task for task in tasks if not all(task.file(options.out, title).exists() for title in graph.pictures)]
    try:
        sample(options.servers, graph, missing, options.out, options.timeout)
    except ServerError as error:
        print(error, file=sys.stderr)
        return False
    print(f"{len(graph.pictures) * len(tasks)} pictures are in {options.out}")
    shown = tasks[:: -(-len(tasks) // ROWS_OF_THE_SHEET)]  # evenly spaced, not selected
    rows = {task.label: [task.picture(options.out, title) for title in graph.pictures] for task in shown}
    sheet(list(graph.pictures), rows).save(options.out / "sheet.jpg", quality=90)
    print(f"{len(rows)} rows of them are on {options.out / 'sheet.jpg'}")
    return True


def report(folder: Path, *tables: str) -> None:
    """Print tables, and keep them in results.md."""
    text = "\n\n".join(tables)
    (folder / "results.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def keep_settings(folder: Path, settings: dict) -> None:
    """Write what the pictures depend on. Raises SystemExit if pictures of other settings are there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
    holds_pictures = path.exists() and any(folder.rglob("*.png"))  # not if the servers have refused the settings
    if holds_pictures and path.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{folder} holds pictures made with other settings ({path}): give another --out.")
    path.write_text(text, encoding="utf-8")


def sample(servers: Sequence[str], graph: Graph, todo: Sequence[Task], folder: Path, timeout: float) -> None:
    """Make the pictures of tasks on all servers at once. Raises ServerError if every server has failed."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in todo:
        waiting.put(task)
    finished, lock, failures = [], threading.Lock(), []

    def work(url: str) -> None:
        client = Client(url)
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                _run(client, graph, task, folder, timeout)
            except (ServerError, OSError) as error:
                waiting.put(task)  # for another server
                failures.append(f"{url}: {error}")
                print(f"{url} is given up: {error}", flush=True)
                return
            with lock:
                finished.append(task)
                print(f"{len(finished)} of {len(todo)}  {task.label}  ({url})", flush=True)

    threads = [threading.Thread(target=work, args=[url], daemon=True) for url in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(finished) < len(todo):
        missing = len(todo) - len(finished)
        raise ServerError(f"{missing} prompts are missing. Start the command again to go on.\n" + "\n".join(failures))


def _run(client: Client, graph: Graph, task: Task, folder: Path, timeout: float) -> None:
    for name, path in task.uploads.items():
        client.upload_image(path, name)
    history = client.run(graph.of(task), timeout)
    files = {task.file(folder, title): client.images(history, node)[0] for title, node in graph.pictures.items()}
    for title, node in graph.texts.items():
        _write(task.file(folder, title, ".txt"), history["outputs"][node]["text"][0].encode())
    for path, data in files.items():
        _write(path, data)


def _write(path: Path, data: bytes) -> None:
    """The whole file or none, for a picture that exists is not made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)
