"""Everything one does with a checkout, in one command each (Python 3.11 to 3.13, standard library only).

    python run.py demo                        before/after pictures on a model that ships with the repository
    python run.py demo --count 6              the same for seeds 0 to 5, all of them drawn and counted
    python run.py test                        tier 1, for every push: the newest ComfyUI, the interfaces of the oldest
                                              (ten minutes on two cores)
    python run.py test --quick                tier 0, before a commit: without server and sampling (a minute)
    python run.py test --all                  the nightly tier: everything on the newest and the oldest ComfyUI, and the
                                              fast tests on those between (over an hour)
    python run.py test tests/test_host.py     what pytest is told, on the newest ComfyUI only
    python run.py test --host 0.24.1          all tests on another version of ComfyUI
    python run.py twins                       every workflow file on such a model, and the pictures it shows
    python run.py twins 09                    the file with 09 in its name
    python run.py twins --docs                the thumbnails of the files, the pictures of README and of the help pages
    python run.py comfyui_tests               ComfyUI's own execution tests, with the pack installed
    python run.py bench                       speed and memory
    python run.py bench editing               edits of pictures by EBCA and without it, counted
    python run.py bench removal --model joint    one object of a caption removed at cfg 1, counted
    python run.py bench inpainting            inpainting with and without EBCA and RePaint, counted
    python run.py bench round_trip            how exactly a picture returns from its inversion
    python run.py bench attention_maps        how often the attention map of a word peaks on its object
    python run.py bench alignment             how well pictures follow captions: EBCA beside other methods, counted
    python run.py bench choosing              what is gained by choosing among runs by their attention, counted
    python run.py bench plain_model           what the small models draw without EBCA, counted
    python run.py bench real_checkpoints      the same question on your own checkpoint and servers, by CLIP
    python run.py bench real_edits            the paper's edits on your own photographs, checkpoint and servers
    python run.py bench import_time           how long ComfyUI takes to load the pack
    python run.py bench joint_attention       what edits cost where text and image attend to each other
    python run.py bench templates             which of ComfyUI's own templates have a model that EBCA accepts
    python run.py archive                     what users install, as the registry packs it, in dist/

demo, twins, test and bench NAME take --help too. The first call makes an environment in `.host` and fetches ComfyUI,
unless COMFYUI_PATH names one or the pack lies in one's custom_nodes.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from devtools import environment, subprocesses, tiers

REPO = Path(__file__).absolute().parent
#: What `bench` runs by name: `bench/` measures the product, `research/` the method on small models.
BENCHES = {
    "speed": "bench/speed.py",
    "import_time": "bench/import_time.py",
    "templates": "bench/templates.py",
    "joint_attention": "bench/joint_attention.py",
    "alignment": "research/alignment/compare.py",
    "attention_maps": "research/attention_maps.py",
    "choosing": "research/choosing/choose.py",
    "editing": "research/editing.py",
    "inpainting": "research/inpainting.py",
    "plain_model": "research/plain_model.py",
    "real_checkpoints": "research/real_checkpoints.py",
    "real_edits": "research/real_edits.py",
    "removal": "research/removal.py",
    "round_trip": "research/round_trip.py",
}
#: Those that run on servers that are there.
ON_SERVERS = ("real_checkpoints", "real_edits")


def demo(options: argparse.Namespace, rest: list[str]) -> int:
    host = environment.prepare(options.host)
    script = REPO / "demo" / "before_after.py"
    return subprocesses.call([host.python, script, "--comfyui", host.comfyui, "--out", REPO / "output", *rest])


def twins(options: argparse.Namespace, rest: list[str]) -> int:
    host = environment.prepare(options.host)
    script = REPO / "devtools" / "twin_pictures.py"
    return subprocesses.call([host.python, script, "--comfyui", host.comfyui, *rest])


def bench(options: argparse.Namespace, rest: list[str]) -> int:
    name, rest = (rest[0], rest[1:]) if rest and not rest[0].startswith("-") else ("speed", rest)
    if name not in BENCHES:
        print(f"Expected one of the benches {', '.join(BENCHES)}, got {name}.", file=sys.stderr)
        return 2
    host = environment.prepare(options.host)
    comfyui = [] if name in ON_SERVERS else ["--comfyui", host.comfyui]
    return subprocesses.call([host.python, REPO / BENCHES[name], *comfyui, *rest])


def comfyui_tests(options: argparse.Namespace, rest: list[str]) -> int:
    host = environment.prepare(options.host)
    return subprocesses.call([host.python, REPO / "devtools" / "comfyui_tests.py", "--comfyui", host.comfyui, *rest])


def archive(options: argparse.Namespace, rest: list[str]) -> int:
    return subprocesses.call([environment.prepare(options.host).python, REPO / "devtools" / "archive.py", *rest])


def test(options: argparse.Namespace, rest: list[str]) -> int:
    host = environment.prepare(options.host)
    option = "".join(rest)
    if options.host or option not in tiers.TIERS:
        return subprocesses.call(_pytest(host, rest or [REPO / "tests"]), COMFYUI_PATH=host.comfyui)
    tier, tools = tiers.TIERS[option], True
    if tier == "tier 1":
        tools, why = tiers.need_tool_tests()
        print(f"In {tier}, the tests of the tools {'run' if tools else 'are left out'}: {why}.", flush=True)
    commands = {"ruff": subprocesses.Command([host.python, "-m", "ruff", "check", REPO])}
    for name, part in tiers.parts(tier, environment.NEWEST if host.fetched else None, tools).items():
        if part.version in (None, environment.NEWEST):
            command = _pytest(host, part.arguments)
        else:  # a process that fetches that ComfyUI when its turn has come, beside another part
            command = [sys.executable, REPO / "run.py", "--host", part.version, "test", *part.arguments]
        variables = {"COMFYUI_PATH": host.comfyui, "OMP_NUM_THREADS": "1", **part.variables}
        commands[name] = subprocesses.Command(command, variables)
    begun = time.monotonic()
    # Two at once, each with one busy thread, in the tests or in the server that they ask, and some gigabytes of memory.
    results = list(subprocesses.call_together(commands, REPO / "output" / "tests", at_once=2))
    return _report(tier, results, time.monotonic() - begun)


def _pytest(host: environment.Host, arguments: Sequence[str | Path]) -> list[str | Path]:
    return [host.python, "-m", "pytest", f"--rootdir={REPO}", *arguments]


def _report(tier: str, results: list[subprocesses.Result], seconds: float) -> int:
    print()
    for result in results:
        passed = "passed" if result.code == 0 else "FAILED"
        print(f"{passed}  {result.name} ({result.seconds:.0f} s, of the CPU {result.cpu_seconds:.0f} s)")
    cpu_seconds = sum(result.cpu_seconds for result in results)
    print(f"{tier}: {seconds / 60:.1f} minutes, of the CPU {cpu_seconds / 60:.1f}")
    return next((result.code for result in results if result.code), 0)


COMMANDS = {
    "demo": demo,
    "twins": twins,
    "test": test,
    "bench": bench,
    "archive": archive,
    "comfyui_tests": comfyui_tests,
}


def main(arguments: list[str]) -> int:
    """Run one command; its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=arguments[:1] in (["-h"], ["--help"]),  # after a command it asks for that command's own
    )  # fmt: skip
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--host", metavar="VERSION", help=f"ComfyUI version: {', '.join(environment.VERSIONS)}")
    options, rest = parser.parse_known_args(arguments)
    try:
        return COMMANDS[options.command](options, rest)
    except environment.EnvironmentProblem as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    subprocesses.exit_on_terminate()
    sys.exit(main(sys.argv[1:]))
