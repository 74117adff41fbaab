"""Run the programs that run.py consists of. Standard library only."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def call(command: Sequence[str | Path], **variables: str | Path) -> int:
    """Run a program with further environment variables; its exit code.

    When this process is interrupted or asked to end, so is the program, and it gets time to put things away: a server
    that it started must not outlive it.
    """
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    process = subprocess.Popen(list(map(str, command)), env=environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reaches every program of the terminal: the child is ending by itself, and a second signal would cut
        # that short.
        _wait(process)
        raise
    finally:
        process.terminate()
        if not _wait(process):
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, seconds: float = 20) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def exit_on_terminate() -> None:
    """Let a request to end (SIGTERM) unwind the program as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
