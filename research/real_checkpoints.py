"""The 276 prompts of Attend-and-Excite with and without EBCA, on your own checkpoint and running ComfyUI servers.

    python run.py bench real_checkpoints --servers http://127.0.0.1:8188 --checkpoint NAME
    python run.py bench real_checkpoints --servers ... --clip openai/clip-vit-large-patch14

The servers need this pack and the checkpoint. What runs is the template EBCA 01 Several things (or another file that
shows "Without EBCA" and "With EBCA") with its settings, but for the prompt, the seed and the checkpoint. Pictures and
results go to --out; what is there is not made again, so the command can be stopped and started, also with other
servers. EBCA Rank's score of each picture is kept beside it. With --clip the pictures are scored, and a table of CLIP
similarities is printed, and how well EBCA Rank's score agrees with them.
"""

from __future__ import annotations

import argparse
import io
import json
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from bootstrap import Estimate, mean_of, statistic_of  # noqa: E402
from clip_similarity import ClipSimilarity, concepts, scores  # noqa: E402
from devtools import workflows  # noqa: E402
from devtools.server import Client, ServerError  # noqa: E402
from devtools.twins import pictures  # noqa: E402

PROMPTS = REPO / "research" / "data" / "attend_and_excite_prompts.json"
WITHOUT, WITH = "Without EBCA", "With EBCA"
WORKFLOW = REPO / "workflows" / "EBCA 01 Several things (SD 1.5).json"


@dataclass(frozen=True)
class Task:
    """One prompt under one seed: a picture without EBCA and one with it."""

    group: str
    prompt: str
    seed: int

    def file(self, folder: Path, title: str, suffix: str = ".png") -> Path:
        """Of a picture, or with ".txt" of its EBCA Rank."""
        name = f"{self.prompt.replace(' ', '_')}-{self.seed}-{title.replace(' ', '_')}{suffix}"
        return folder / self.group / name

    def concepts(self) -> list[str]:
        return concepts(self.prompt) if self.prompt else []

    def is_done(self, folder: Path) -> bool:
        return all(self.file(folder, title).exists() for title in (WITHOUT, WITH))


def tasks(groups: dict[str, list[str]], seeds: int) -> list[Task]:
    """Every prompt under the first seed, then under the second, and so on: a run that is stopped has seen them all."""
    return [Task(group, prompt, seed) for seed in range(seeds) for group in groups for prompt in groups[group]]


#: {node that encodes a positive prompt: its input with the text}
TEXT_INPUTS = {"CLIPTextEncode": "text", "EBCAConcepts": "prompt"}


def prompt_inputs(api: workflows.Prompt) -> set[tuple[str, str]]:
    """The inputs, as pairs of node and name, whose text is the positive prompt of a KSampler."""
    found = set()
    for sampler in workflows.node_ids(api, "KSampler"):
        source = api[sampler]["inputs"]["positive"][0]
        kind = api[source]["class_type"]
        if kind not in TEXT_INPUTS:
            raise SystemExit(
                f"The positive prompt of KSampler {sampler} comes from {kind}. Use a workflow file in which it comes "
                f"from {' or '.join(TEXT_INPUTS)}."
            )
        found.add((source, TEXT_INPUTS[kind]))
    return found


def add_rank(api: workflows.Prompt, picture: str) -> str:
    """Trace the run of a picture with its attention maps and rank it: the node that shows the rank as text."""
    decode = api[picture]["inputs"]["images"]
    sampler = api[decode[0]]["inputs"]["samples"][0]
    inputs, names = api[sampler]["inputs"], [f"{picture}-{part}" for part in ("trace", "rank", "text")]
    trace, rank, text = names
    api[trace] = {"class_type": "EBCATrace", "inputs": {"model": inputs["model"], "attention_maps": True}}
    clip = api[inputs["positive"][0]]["inputs"]["clip"]
    wired = {"trace": [trace, 1], "image": decode, "clip": clip, "prompt": "", "concepts": ""}
    api[rank] = {"class_type": "EBCARank", "inputs": wired}
    api[text] = {"class_type": "PreviewAny", "inputs": {"source": [rank, 4]}}
    inputs["model"] = [trace, 0]
    return text


def score_in(table: str) -> float:
    """EBCA Rank's score of a batch of one picture."""
    _, row, *_ = table.splitlines()
    return float(row.split()[-1])


class Graph:
    """The API prompt of a workflow file for one task."""

    def __init__(self, file: Path, object_info: dict, checkpoint: str, size: int | None, steps: int | None):
        api = workflows.to_api(workflows.load(file), object_info)
        values: dict[tuple[str, str], Any] = {("CheckpointLoaderSimple", "ckpt_name"): checkpoint}
        if size:
            values |= {("EmptyLatentImage", side): size for side in ("width", "height")}
        if steps:
            values[("KSampler", "steps")] = steps
        self._api = workflows.substitute(api, values)
        self._titles = pictures(self._api)
        if set(self._titles) != {WITHOUT, WITH}:
            raise SystemExit(f"Expected pictures '{WITHOUT}' and '{WITH}' in {file}, but got {list(self._titles)}.")
        self._positive = prompt_inputs(self._api)
        self._ranks = {title: add_rank(self._api, node) for title, node in self._titles.items()}

    def of(self, task: Task) -> workflows.Prompt:
        api = workflows.substitute(
            self._api, {("PrimitiveInt", "value"): task.seed, ("KSampler", "seed"): task.seed}
        )  # fmt: skip
        for node, name in self._positive:
            api[node]["inputs"][name] = task.prompt
        for rank in workflows.node_ids(api, "EBCARank"):
            api[rank]["inputs"] |= {"prompt": task.prompt, "concepts": "\n".join(task.concepts())}
        return api

    def settings(self) -> workflows.Prompt:
        """All that pictures depend on beside their task."""
        return self.of(Task("", "", 0))

    def saved(self) -> dict[str, str]:
        """{title: node that shows the picture}"""
        return self._titles

    def ranks(self) -> dict[str, str]:
        """{title: node that shows the rank of the picture}"""
        return self._ranks


def keep_settings(folder: Path, settings: dict) -> None:
    """Write what the pictures depend on. Raises SystemExit if pictures of other settings are there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "settings.json", json.dumps(settings, indent=1, sort_keys=True)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{folder} holds pictures made with other settings ({path}): give another --out.")
    path.write_text(text, encoding="utf-8")


def sample(servers: Sequence[str], graph: Graph, todo: Sequence[Task], folder: Path, timeout: float) -> None:
    """Make the missing pictures on all servers at once. Raises ServerError if every server has failed."""
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
                history = client.run(graph.of(task), timeout)
                files = {title: client.images(history, node)[0] for title, node in graph.saved().items()}
                ranks = {title: history["outputs"][node]["text"][0] for title, node in graph.ranks().items()}
            except (ServerError, OSError) as error:
                waiting.put(task)  # for another server
                failures.append(f"{url}: {error}")
                print(f"{url} is given up: {error}", flush=True)
                return
            for title, data in files.items():
                _write(task.file(folder, title, ".txt"), ranks[title].encode())
                _write(task.file(folder, title), data)
            with lock:
                finished.append(task)
                print(f"{len(finished)} of {len(todo)}  {task.prompt}, seed {task.seed}  ({url})", flush=True)

    threads = [threading.Thread(target=work, args=[url], daemon=True) for url in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(finished) < len(todo):
        missing = len(todo) - len(finished)
        raise ServerError(f"{missing} prompts are missing. Start the command again to go on.\n" + "\n".join(failures))


def _write(path: Path, data: bytes) -> None:
    """The whole file or none, for a picture that exists is not made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(data)
    part.replace(path)


def score(clip: str, done: Sequence[Task], folder: Path) -> list[dict]:
    """A line for each picture: group, prompt, seed, title, full and minimum similarity, EBCA Rank's score; kept in
    scores.jsonl."""
    path = folder / "scores.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    known = {(line["clip"], line["prompt"], line["seed"], line["picture"]) for line in lines}
    similarity = None
    with path.open("a", encoding="utf-8") as file:
        for task in done:
            for title in (WITHOUT, WITH):
                if (clip, task.prompt, task.seed, title) in known:
                    continue
                similarity = similarity or ClipSimilarity(clip)
                found = scores(similarity, Image.open(io.BytesIO(task.file(folder, title).read_bytes())), task.prompt)
                rank = score_in(task.file(folder, title, ".txt").read_text(encoding="utf-8"))
                line = {"clip": clip, **vars(task), "picture": title, **found, "one place": rank}
                file.write(json.dumps(line) + "\n")
                lines.append(line)
    return [line for line in lines if line["clip"] == clip]


def table(lines: Sequence[dict]) -> str:
    """Mean similarities of each group, and the change with EBCA with its interval: over prompts, seeds averaged."""
    text = ["| prompts | pictures | similarity | without EBCA | with EBCA | change |", "|---|---|---|---|---|---|"]
    for group in dict.fromkeys(line["group"] for line in lines):
        for kind in ("full", "minimum"):
            values = {title: _by_prompt(lines, group, title, kind) for title in (WITHOUT, WITH)}
            count = sum(line["group"] == group for line in lines)
            change: Estimate = mean_of([values[WITH] - values[WITHOUT]])
            text.append(
                f"| {group} | {count} | {kind} | {values[WITHOUT].mean():.4f} | {values[WITH].mean():.4f} "
                f"| {change.mean:+.4f} ({change.low:+.4f} to {change.high:+.4f}) |"
            )
    return "\n".join(text)


def agreement(lines: Sequence[dict]) -> str:
    """Rank correlation (Spearman) of EBCA Rank's score with the similarity to the concept that a picture is less like:
    of all pictures, and of those of one prompt, each less the mean of its prompt. Intervals are over prompts."""
    text = ["| pictures | rank correlation | within a prompt |", "|---|---|---|"]
    for title in (WITHOUT, WITH):
        by_prompt: dict[str, list[tuple[float, float]]] = {}
        for line in lines:
            if line["picture"] == title:
                by_prompt.setdefault(line["prompt"], []).append((line["one place"], line["minimum"]))
        whole = [np.array(by_prompt[prompt]) for prompt in sorted(by_prompt)]
        found = [_rank_correlation(whole), _rank_correlation([values - values.mean(0) for values in whole])]
        cells = [title, *(f"{r.mean:+.2f} ({r.low:+.2f} to {r.high:+.2f})" for r in found)]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _rank_correlation(prompts: Sequence[np.ndarray]) -> Estimate:
    """prompts: two values of each of their pictures [n, 2]."""
    return statistic_of(lambda drawn: spearmanr(np.concatenate([prompts[i] for i in drawn])).statistic, len(prompts))


def _by_prompt(lines: Sequence[dict], group: str, title: str, kind: str) -> np.ndarray:
    by_prompt: dict[str, list[float]] = {}
    for line in lines:
        if line["group"] == group and line["picture"] == title:
            by_prompt.setdefault(line["prompt"], []).append(line[kind])
    return np.array([np.mean(by_prompt[prompt]) for prompt in sorted(by_prompt)])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", nargs="+", required=True, help="addresses, say http://127.0.0.1:8188")
    parser.add_argument("--checkpoint", required=True, help="name of the checkpoint on the servers")
    parser.add_argument("--workflow", type=Path, default=WORKFLOW)
    parser.add_argument("--out", type=Path, default=REPO / "output" / "real_checkpoints", help="folder of the run")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt, each way")
    parser.add_argument("--prompts", type=int, help="only the first of each group")
    parser.add_argument("--size", type=int, help="width and height in pixels, by default the workflow's")
    parser.add_argument("--steps", type=int, help="by default the workflow's")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one prompt")
    parser.add_argument("--clip", help="a CLIP model of transformers, a folder or a name, to score the pictures with")
    options = parser.parse_args(arguments)
    groups = json.loads(PROMPTS.read_text(encoding="utf-8"))["prompts"]
    wanted = tasks({group: prompts[: options.prompts] for group, prompts in groups.items()}, options.seeds)
    object_info = Client(options.servers[0]).object_info()
    graph = Graph(options.workflow, object_info, options.checkpoint, options.size, options.steps)
    keep_settings(options.out, graph.settings())
    try:
        sample(options.servers, graph, [t for t in wanted if not t.is_done(options.out)], options.out, options.timeout)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{2 * len(wanted)} pictures are in {options.out}")
    if options.clip:
        lines = score(options.clip, wanted, options.out)
        print(table(lines), agreement(lines), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
