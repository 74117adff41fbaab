"""A real browser on ComfyUI's front end. Standard library only, besides Node.js and npm.

    with FrontEnd(server.url) as front_end:
        front_end("drop", "workflow.json")
        prompt_id = front_end("run")["prompt_id"]

The commands are those of `browser/driver.js`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from .environment import HOST, EnvironmentProblem, made_whole, stage

_DRIVER = Path(__file__).absolute().parent / "browser"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class NoBrowser(Exception):
    """This machine has no browser or no Node.js; the message says what to install."""


class FrontEndError(Exception):
    """The browser could not do what it was told; the message holds what it says."""


class FrontEnd:
    """A browser on the front end, for as long as a `with` block lasts. Call it with a command and its arguments.

    Args:
        url: the server's address.

    Raises:
        NoBrowser: something that only the user can install is missing.
        EnvironmentProblem: npm could not install the rest.
    """

    def __init__(self, url: str):
        executable, node, npm = browser(), _program("node"), _program("npm")
        self._command = [node, _DRIVER / "driver.js", url, executable]
        self._variables = {**os.environ, "NODE_PATH": str(_packages(npm))}

    def __enter__(self) -> "FrontEnd":
        pipe = subprocess.PIPE
        self._driver = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, encoding="utf-8", env=self._variables)
        self._asked = 0  # commands so far
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
        self._driver.stdout.close()

    def __call__(self, command: str, *arguments: Any) -> Any:
        """The result of one of the driver's commands."""
        self._asked += 1
        try:
            answer = self._exchange({"number": self._asked, "name": command, "arguments": arguments})
        except BaseException:  # an interrupt too: what follows it must not wait for this command
            self._end()
            raise
        if "error" in answer:
            raise FrontEndError(f"{command}{arguments}: {answer['error']}")
        return answer["result"]

    def _exchange(self, command: dict[str, Any]) -> dict[str, Any]:
        """The driver's answer to a command."""
        if self._driver.stdin.closed:
            raise FrontEndError(f"Asked for {command['name']} after the browser's driver had ended.")
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._driver.stdin.write(json.dumps(command) + "\n")
            self._driver.stdin.flush()
        line = self._driver.stdout.readline()
        if not line:
            raise FrontEndError(f"The browser's driver ended at {command['name']}; what it said is above.")
        answer = json.loads(line)
        if answer["number"] != command["number"]:
            raise FrontEndError(f"Expected the answer to command {command['number']}, got that to {answer['number']}.")
        return answer

    def _end(self) -> None:
        """End the driver, which ends its browser, whatever they are at."""
        with contextlib.suppress(BrokenPipeError):
            self._driver.stdin.close()
        try:
            self._driver.wait(10)
        except subprocess.TimeoutExpired:
            self._driver.kill()  # the browser ends when it loses its driver
            self._driver.wait()


def browser() -> str:
    """The browser of this machine.

    Raises:
        NoBrowser: there is none.
    """
    return _program(*_BROWSERS)


def _program(*names: str) -> str:
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise NoBrowser(
            f"Expected {' or '.join(names)} on the PATH, found none. Install Chromium or Chrome (on Debian: apt "
            "install chromium) and Node.js 20 or newer with npm."
        )
    return found


def _packages(npm: str) -> Path:
    """The folder with the driver's packages, installed by npm if they are not there."""
    lock = _DRIVER / "package-lock.json"
    folder = HOST / f"browser-{hashlib.sha256(lock.read_bytes()).hexdigest()[:8]}"
    if not folder.is_dir():
        with stage("Installing the browser's driver"), made_whole(folder) as making:
            for file in (_DRIVER / "package.json", lock):
                shutil.copy(file, making)
            if subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=making).returncode:
                raise EnvironmentProblem("npm ci failed, see above. Does npm reach its registry?")
    return folder / "node_modules"
