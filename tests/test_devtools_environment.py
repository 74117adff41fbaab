"""Which ComfyUI and which Python run.py takes, and what it says when it cannot."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from devtools import environment, subprocesses
from devtools.environment import EnvironmentProblem

_spec = importlib.util.spec_from_file_location("run", environment.REPO / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


@pytest.fixture
def comfyui(tmp_path):
    """A folder that looks like a ComfyUI."""
    root = tmp_path / "ComfyUI"
    (root / "custom_nodes" / "pack").mkdir(parents=True)
    (root / "main.py").write_text("")
    return root


def test_comfyui_path_comes_first(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert environment.own_comfyui() == comfyui


def test_comfyui_path_without_comfyui_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"COMFYUI_PATH is .*, where there is no main.py"):
        environment.own_comfyui()


def test_comfyui_around_the_pack_is_found(comfyui, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment, "REPO", comfyui / "custom_nodes" / "pack")
    assert environment.own_comfyui() == comfyui


def test_a_checkout_by_itself_has_no_comfyui(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(environment, "REPO", tmp_path / "pack")
    assert environment.own_comfyui() is None


def test_own_python_of_a_comfyui_is_used_and_left_alone(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setattr(environment, "_tools_environment", lambda interpreter: ("tools over", interpreter))
    host = environment.prepare()
    assert host == environment.Host(("tools over", Path(sys.executable)), comfyui, fetched=False)


def test_own_python_without_venv_gives_way_to_the_pinned_packages(comfyui, monkeypatch):
    """As in the portable package for Windows."""
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setattr(environment, "_imports", lambda interpreter, module: module != "venv")
    monkeypatch.setattr(environment, "_pinned_environment", lambda: Path("pinned"))
    assert environment.prepare() == environment.Host(Path("pinned"), comfyui, fetched=False)


def test_unknown_version_names_the_known_ones():
    with pytest.raises(EnvironmentProblem, match=r"Expected one of the ComfyUI versions .*0\.30\.0, got 9\.9"):
        environment._fetched_comfyui(Path(sys.executable), "9.9")


def test_other_python_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "HOST", tmp_path)
    monkeypatch.setattr(environment, "PYTHONS", ((3, 98), (3, 99)))
    with pytest.raises(EnvironmentProblem, match=r"Expected Python 3\.98 to 3\.99, got 3\."):
        environment._pinned_environment()


def test_python_without_venv_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_imports", lambda interpreter, module: module != "ensurepip")
    with pytest.raises(EnvironmentProblem, match="has no venv module"):
        environment._make_venv(Path(sys.executable), tmp_path / "venv")


def test_a_front_end_that_is_not_pinned_is_refused(tmp_path):
    (tmp_path / "requirements.txt").write_text("torch\ncomfyui-frontend-package>=1.47\n")
    with pytest.raises(EnvironmentProblem, match=r"Expected comfyui-frontend-package==\(a version\) in .*requirements"):
        environment.front_end_of(tmp_path)


def test_a_front_end_that_is_fetched_in_part_is_fetched_anew(tmp_path, monkeypatch):
    def interrupted(python, *arguments):
        (arguments[arguments.index("--target") + 1] / "half").write_text("")
        raise KeyboardInterrupt

    def fetched(python, *arguments):
        (arguments[arguments.index("--target") + 1] / arguments[-1]).write_text("")

    monkeypatch.setattr(environment, "HOST", tmp_path / ".host")
    (tmp_path / "requirements.txt").write_text("comfyui-frontend-package==0.0.1\n")
    monkeypatch.setattr(environment, "_pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        environment.front_end_of(tmp_path)
    monkeypatch.setattr(environment, "_pip", fetched)
    folder = environment.front_end_of(tmp_path).parents[1]
    assert [file.name for file in folder.iterdir()] == ["comfyui-frontend-package==0.0.1"]
    assert list(folder.parent.iterdir()) == [folder]


def test_another_front_end_can_be_asked_for(tmp_path, monkeypatch):
    asked = []

    def fetched(python, *arguments):
        asked.append(arguments[-1])

    monkeypatch.setattr(environment, "HOST", tmp_path / ".host")
    monkeypatch.setattr(environment, "_pip", fetched)
    (tmp_path / "requirements.txt").write_text("comfyui-frontend-package==0.0.1\n")
    monkeypatch.setenv("EBCA_FRONT_END", "0.0.2")
    assert environment.front_end_of(tmp_path).parents[1].name == "front-end-0.0.2"
    assert asked == ["comfyui-frontend-package==0.0.2"]


def test_of_two_programs_that_make_a_folder_the_quicker_is_heard(tmp_path):
    folder = tmp_path / "made"
    with environment.made_whole(folder) as slow:
        (slow / "slow").write_text("")
        with environment.made_whole(folder) as quick:
            (quick / "quick").write_text("")
    assert [file.name for file in folder.iterdir()] == ["quick"]
    assert list(tmp_path.iterdir()) == [folder]


def test_stamp_tells_requirements_apart(tmp_path):
    python = environment.interpreter_in(tmp_path)
    python.parent.mkdir(parents=True)
    python.write_text("")
    assert not environment._is_stamped(tmp_path, "a")
    (tmp_path / "stamp").write_text("a")
    assert environment._is_stamped(tmp_path, "a")
    assert not environment._is_stamped(tmp_path, "b")


def test_stage_prints_its_seconds(capsys):
    with environment.stage("Waiting"):
        pass
    assert capsys.readouterr().out == "Waiting ... 0 s\n"


def test_exit_code_of_a_child_is_passed_on():
    assert subprocesses.call([sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['CODE']))"], CODE="7") == 7


def test_programs_that_run_together_show_what_they_printed_once_they_end(tmp_path, capsys):
    release = tmp_path / "release"
    wait = "[time.sleep(0.05) for _ in range(1200) if not os.path.exists(os.environ['RELEASE'])]"
    say = "import os, sys, time\n{}\nprint('I am', os.environ['NAME']); sys.exit({})"
    commands = {
        name: subprocesses.Command([sys.executable, "-c", say.format(task, code)], {"NAME": name, "RELEASE": release})
        for name, task, code in (("first", wait, 3), ("second", "", 0), ("third", "", 0))
    }
    found = []
    for ended in subprocesses.call_together(commands, tmp_path, at_once=2):
        found.append(ended)
        if ended.name == "third":
            release.touch()
    assert [(ended.name, ended.code) for ended in found] == [("second", 0), ("third", 0), ("first", 3)]
    seconds = {ended.name: ended.seconds for ended in found}
    assert 0 < seconds["second"] + seconds["third"] < seconds["first"]  # one after the other beside it
    assert [(tmp_path / f"{name}.log").read_text() for name in commands] == [f"I am {name}\n" for name in commands]
    printed = capsys.readouterr().out
    assert printed.index("I am second") < printed.index("I am third") < printed.index("I am first")


@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell the time of programs that ended")
def test_the_cpu_seconds_of_programs_that_run_together_are_told_apart(tmp_path):
    programs = {"idle": "", "busy": "import time\nwhile time.process_time() < 1: pass"}
    commands = {name: subprocesses.Command([sys.executable, "-c", code]) for name, code in programs.items()}
    found = {ended.name: ended.cpu_seconds for ended in subprocesses.call_together(commands, tmp_path, at_once=2)}
    assert found["idle"] < 0.8 < found["busy"] < 2


def test_programs_that_run_together_end_with_the_one_that_called_them(tmp_path, monkeypatch):
    processes, start = [], subprocesses.Command.start
    monkeypatch.setattr(subprocesses.Command, "start", lambda *call: processes.append(start(*call)) or processes[-1])
    lasting = subprocesses.Command([sys.executable, "-c", "import time; time.sleep(600)"])
    brief = subprocesses.Command([sys.executable, "-c", ""])
    running = subprocesses.call_together({"lasting": lasting, "brief": brief}, tmp_path, at_once=2)
    assert next(running).name == "brief"
    assert processes[0].poll() is None
    running.close()
    assert processes[0].poll() is not None


def test_problem_is_printed_without_a_traceback(monkeypatch, capsys):
    def fail(version):
        raise EnvironmentProblem("no network")

    monkeypatch.setattr(environment, "prepare", fail)
    assert run.main(["bench"]) == 2
    assert capsys.readouterr().err == "no network\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["demo"], "demo/before_after.py"),
        (["bench", "--quick"], "bench/speed.py --comfyui /comfyui --quick"),
        (["archive"], "devtools/archive.py"),
        (["comfyui_tests", "-k", "jobs"], "devtools/comfyui_tests.py --comfyui /comfyui -k jobs"),
        (["test", "tests/x.py", "-k", "y"], "tests/x.py -k y"),
        (["test", "--host", "0.24.1", "-x"], "-x"),
        (["test", "--host", "0.24.1"], "/tests"),
    ],
)
def test_commands_call_their_program(command, expected, monkeypatch):
    calls = []

    def call(program, **_):
        calls.append(" ".join(Path(part).as_posix() for part in program))
        return 0

    monkeypatch.setattr(environment, "prepare", lambda version: environment.Host(Path("/py"), Path("/comfyui"), True))
    monkeypatch.setattr(subprocesses, "call", call)
    assert run.main(command) == 0
    assert len(calls) == 1
    assert expected in calls[0]
