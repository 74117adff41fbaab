"""A real ComfyUI server, started for as long as a `with` block lasts, or one that is there. Standard library only.

    with Server(host.comfyui, host.python, packs={"energy-based-cross-attention": REPO}) as server:
        history = server.run(prompt)
        picture = server.images(history)[0]
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import inprocess

# The name of this pack's folder in custom_nodes when it is installed from the registry.
PACK = "energy-based-cross-attention"
# What a copy of the pack does without, where links are not allowed.
_NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "output", "dist", "tests")


class ServerError(Exception):
    """ComfyUI did not start, refused a prompt, or a node failed; the message holds what ComfyUI said."""


class Client:
    """A ComfyUI that runs at an address.

    Attributes:
        url: the server's address. interval: seconds between two questions whether a prompt is finished.
    """

    interval = 0.05

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def get(self, path: str) -> Any:
        """The JSON at a path of the server."""
        return json.loads(self._read(path))

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON body, None where the answer is empty."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def object_info(self) -> dict[str, Any]:
        """What the server says of its nodes."""
        return self.get("/object_info")

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queue a prompt in API format; its id.

        Raises:
            ServerError: the prompt was refused; the message names node, input and reason.
        """
        try:
            return self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ServerError(_refusal(json.loads(error.read()))) from None

    def wait(self, prompt_id: str, timeout: float = 300) -> dict[str, Any]:
        """The history entry of a queued prompt, once it is finished.

        Raises:
            ServerError: a node failed, or the time is over.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            except OSError:  # the server is gone or busy
                self._check_that_it_runs()
                entry = None
            if entry and entry.get("status"):
                if entry["status"].get("status_str") != "success":
                    raise ServerError(_failure(entry["status"]))
                return entry
            time.sleep(self.interval)
        raise ServerError(f"Not finished after {timeout:.0f} s.{self._last_words()}")

    def run(self, prompt: Mapping[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Queue a prompt in API format and wait for its history entry."""
        return self.wait(self.queue(prompt), timeout)

    def images(self, history: Mapping[str, Any], node_id: str | None = None) -> list[bytes]:
        """The picture files that a run saved or previewed, in the order of the node ids; of one node if given."""
        outputs = history["outputs"]
        nodes = [node_id] if node_id else sorted(outputs, key=_numeric)
        infos = [info for node in nodes for info in outputs[node].get("images", [])]
        return [self._read("/view?" + urllib.parse.urlencode(info)) for info in infos]

    def upload_image(self, path: Path, name: str) -> None:
        """Put a picture into the server's input folder under a name, in the place of one that is there."""
        boundary = uuid.uuid4().hex
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + path.read_bytes() + f"\r\n--{boundary}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        request = urllib.request.Request(f"{self.url}/upload/image", body, kind)
        urllib.request.urlopen(request, timeout=60).close()

    def _read(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def _check_that_it_runs(self) -> None:
        """Raises ServerError if it is known to have stopped."""

    def _last_words(self) -> str:
        """What a message about a failure ends in."""
        return ""


class Server(Client):
    """ComfyUI with a base directory of its own, which is gone when the server is.

    Args:
        comfyui: the folder with ComfyUI's main.py.
        python: the interpreter that runs it.
        packs: {name in custom_nodes: the pack's folder}.
        models: {path below models, say "checkpoints/x.safetensors": the file}.
        inputs: {name in the input folder: the file}.
        flags: further command line flags.
        threads: for torch; tiny models are fastest with 1. None leaves it to torch.
        settings: the front end's settings.
        patience: seconds to wait for the start.

    Attributes:
        url: the server's address. base: its base directory (input, output, models, custom_nodes, user).
        log: the file with everything the server printed. started_in: seconds that the start took.
    """

    def __init__(
        self,
        comfyui: Path,
        python: Path = Path(sys.executable),
        packs: Mapping[str, Path] | None = None,
        models: Mapping[str, Path] | None = None,
        inputs: Mapping[str, Path] | None = None,
        flags: str = inprocess.CPU_FLAGS,
        threads: int | None = 1,
        settings: Mapping[str, Any] | None = None,
        patience: float = 180,
    ):
        self.comfyui, self.python, self.patience = Path(comfyui).absolute(), python, patience
        self.packs, self.models, self.inputs = dict(packs or {}), dict(models or {}), dict(inputs or {})
        self.flags, self.threads = flags, threads
        self.settings = {"Comfy.TutorialCompleted": True, **(settings or {})}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "Server":
        _interrupt_on_terminate()
        self.base = Path(tempfile.mkdtemp(prefix="ebca_server_"))
        self.log = self.base / "server.log"
        try:
            self._furnish()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process:
            _stop(self._process)
            self._process = None
        shutil.rmtree(self.base, ignore_errors=True)

    def restart(self) -> None:
        """Stop and start again with the same base directory, as one does after a pack is installed or removed."""
        _stop(self._process)
        self._start()

    def _furnish(self) -> None:
        for name, folder in self.packs.items():
            link_or_copy(Path(folder), self.base / "custom_nodes" / name)
        for name, file in self.models.items():
            link_or_copy(Path(file), self.base / "models" / name)
        settings = self.base / "user" / "default" / "comfy.settings.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(self.settings))
        for name in inprocess.FOLDERS:
            (self.base / name).mkdir(exist_ok=True)
        for name, file in self.inputs.items():  # copied: ComfyUI refuses links that lead out of its input folder
            shutil.copyfile(file, self.base / "input" / name)

    def _start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # The default database lies in ComfyUI's own folder, where servers that run side by side lock each other out.
        database = f"sqlite:///{(self.base / 'comfyui.db').as_posix()}"
        command = [
            self.python, self.comfyui / "main.py", *inprocess.arguments(self.flags, self.base), "--listen", "127.0.0.1",
            "--port", str(port), "--disable-auto-launch", "--database-url", database,
        ]  # fmt: skip
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        if self.threads:
            variables["OMP_NUM_THREADS"] = str(self.threads)
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.comfyui, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() - begun > self.patience:
                raise ServerError(f"ComfyUI did not start. The end of its log:\n{self.log_text()[-4000:]}")
            time.sleep(0.1)
        self.started_in = time.monotonic() - begun

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    @property
    def process_id(self) -> int:
        return self._process.pid

    def log_text(self) -> str:
        """All that the server has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def _check_that_it_runs(self) -> None:
        if self._process.poll() is not None:
            raise ServerError(f"ComfyUI stopped while it ran.{self._last_words()}")

    def _last_words(self) -> str:
        return f" The end of its log:\n{self.log_text()[-4000:]}"


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` stand for `source`: a link, or a copy where links are not allowed (Windows)."""
    if not source.exists():
        raise FileNotFoundError(f"Expected a file or folder at {source}, found nothing.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.absolute(), target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=_NOT_COPIED)
        else:
            shutil.copyfile(source, target)


def _interrupt_on_terminate() -> None:
    """Let a request to end this process (SIGTERM) unwind it as Ctrl-C does, so that its server ends too."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _stop(process: subprocess.Popen) -> None:
    """Ask, then insist."""
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _numeric(node_id: str) -> tuple[int, str]:
    return (int(node_id) if node_id.isdigit() else sys.maxsize, node_id)


def _refusal(answer: dict) -> str:
    """ComfyUI's answer to a prompt that it refuses, in lines."""
    lines = [f"ComfyUI refused the prompt: {answer.get('error', {}).get('message', answer)}"]
    for node_id, node in answer.get("node_errors", {}).items():
        lines += [f"  node {node_id} ({node['class_type']}): {e['message']} {e['details']}" for e in node["errors"]]
    return "\n".join(lines)


def _failure(status: dict) -> str:
    """What the status of a failed run says, in lines."""
    for kind, data in status.get("messages", []):
        if kind == "execution_error":
            return (
                f"Node {data['node_id']} ({data['node_type']}) failed: {data['exception_type']}: "
                f"{data['exception_message']}\n{''.join(data['traceback'])}"
            )
        if kind == "execution_interrupted":
            return f"Interrupted at node {data['node_id']} ({data['node_type']})."
    return f"The run failed: {status}"
