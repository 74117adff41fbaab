"""Run the programs that run.py consists of. Standard library only."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def call(command: Sequence[str | Path], **variables: str | Path) -> int:
    """Run a program with further environment variables; its exit code.

    When this process is interrupted or asked to end, the program is interrupted and given time to put things away:
    a server that it started must not outlive it.
    """
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    process = subprocess.Popen(list(map(str, command)), env=environment)
    try:
        return process.wait()
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
    try:
        process.wait(30)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def exit_on_terminate() -> None:
    """Let a request to end (SIGTERM) unwind the program as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
