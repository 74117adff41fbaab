"""Run the programs that run.py consists of. Standard library only."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    """How a program ended: its exit code, how long it ran, and the CPU seconds of it and the programs it started."""

    name: str
    code: int
    seconds: float
    cpu_seconds: float  # 0 on Windows


@dataclass(frozen=True)
class Command:
    """A program to run, by its arguments and further environment variables."""

    arguments: Sequence[str | Path]
    variables: Mapping[str, str | Path] = field(default_factory=dict)

    def start(self, output=None) -> subprocess.Popen:
        """output: an open file for what it prints, instead of the terminal."""
        environment = {**os.environ, **{name: str(value) for name, value in self.variables.items()}}
        return subprocess.Popen(
            list(map(str, self.arguments)), env=environment, stdout=output, stderr=output and subprocess.STDOUT
        )


def call(arguments: Sequence[str | Path], **variables: str | Path) -> int:
    """Run a program with further environment variables; its exit code."""
    with _ended([Command(arguments, variables).start()]) as (process,):
        return process.wait()


def call_together(commands: Mapping[str, Command], folder: Path, at_once: int) -> Iterator[Result]:
    """Run programs by their names, some at once: the result of each as it ends.

    What each prints goes to a file in the folder, and is shown when it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running = list(commands), {}
    with contextlib.ExitStack() as stack:
        processes = stack.enter_context(_ended([]))
        while waiting or running:
            while waiting and len(running) < at_once:
                name = waiting.pop(0)
                file = stack.enter_context((folder / f"{name}.log").open("w+", encoding="utf-8", errors="replace"))
                print(f"== {name}: begins, see {file.name}", flush=True)
                processes.append(commands[name].start(file))
                running[name] = (processes[-1], file, time.monotonic())
            time.sleep(0.2)
            for name, (process, file, began) in list(running.items()):
                before = _cpu_seconds_of_ended()
                if process.poll() is not None:
                    cpu_seconds = _cpu_seconds_of_ended() - before
                    del running[name]
                    file.seek(0)
                    print(f"\n== {name}\n{file.read()}", flush=True)
                    yield Result(name, process.returncode, time.monotonic() - began, cpu_seconds)


def _cpu_seconds_of_ended() -> float:
    """Of all programs that this one has started and whose end it has noticed."""
    times = os.times()
    return times.children_user + times.children_system


@contextlib.contextmanager
def _ended(processes: list[subprocess.Popen]) -> Iterator[list[subprocess.Popen]]:
    """When this process is interrupted or asked to end, so are the programs, and they get time to put things away: a
    server that one of them started must not outlive it."""
    try:
        yield processes
    except KeyboardInterrupt:
        # Ctrl-C reaches every program of the terminal: they are ending by themselves, and a second signal would cut
        # that short.
        for process in processes:
            _wait(process)
        raise
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            if not _wait(process):
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen, seconds: float = 200) -> bool:
    # Tests may have to wait for a command of the browser (150 s), for its end (10 s) and that of two servers (30 s).
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    return process.poll() is not None


def exit_on_terminate() -> None:
    """Let a request to end (SIGTERM) unwind the program as Ctrl-C does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
