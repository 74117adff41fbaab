"""The 276 prompts of Attend-and-Excite with and without EBCA, on your own checkpoint and running ComfyUI servers.

    python run.py bench real_checkpoints --servers http://127.0.0.1:8188 --checkpoint NAME
    python run.py bench real_checkpoints --servers ... --clip openai/clip-vit-large-patch14

The servers need this pack and the checkpoint. What runs is the template EBCA 01 Several things (or another file that
shows "Without EBCA" and "With EBCA") with its settings, but for the prompt, the seed and the checkpoint. Pictures, a
sheet of some of them and results go to --out; what is there is not made again, so the command can be stopped and
started, also with other servers. EBCA Rank's score of each picture is kept beside it. With --clip the pictures are
scored, and a table of CLIP similarities is printed, and how well EBCA Rank's score agrees with them.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from bootstrap import Estimate, mean_of, statistic_of  # noqa: E402
from clip_similarity import ClipSimilarity, concepts, scores  # noqa: E402
from devtools import workflows  # noqa: E402
from devtools.twins import pictures  # noqa: E402
from kept_scores import kept_scores  # noqa: E402
from server_runs import Task, api_prompt, argument_parser, make, report  # noqa: E402

PROMPTS = REPO / "research" / "data" / "attend_and_excite_prompts.json"
WITHOUT, WITH = "Without EBCA", "With EBCA"
WORKFLOW = REPO / "workflows" / "EBCA 01 Several things (SD 1.5).json"


@dataclass(frozen=True)
class PromptTask(Task):
    """One prompt under one seed: a picture without EBCA and one with it."""

    group: str
    prompt: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.group}/{self.prompt.replace(' ', '_')}-{self.seed}"

    @property
    def label(self) -> str:
        return f"{self.prompt}, seed {self.seed}"

    def concepts(self) -> list[str]:
        return concepts(self.prompt) if self.prompt else []


def tasks(groups: dict[str, list[str]], seeds: int) -> list[PromptTask]:
    """Every prompt under the first seed, then under the second, and so on: a run that is stopped has seen them all."""
    return [PromptTask(group, prompt, seed) for seed in range(seeds) for group in groups for prompt in groups[group]]


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


class PromptGraph:
    """The prompt of a workflow file for one task, with EBCA Rank beside each picture: see `server_runs.Graph`."""

    def __init__(self, options: argparse.Namespace):
        self._api = api_prompt(options)
        self.pictures = pictures(self._api)
        if set(self.pictures) != {WITHOUT, WITH}:
            raise SystemExit(
                f"Expected pictures '{WITHOUT}' and '{WITH}' in {options.workflow}, but got {list(self.pictures)}."
            )
        self._positive = prompt_inputs(self._api)
        self.texts = {title: add_rank(self._api, node) for title, node in self.pictures.items()}

    def of(self, task: PromptTask) -> workflows.Prompt:
        api = workflows.substitute(
            self._api, {("PrimitiveInt", "value"): task.seed, ("KSampler", "seed"): task.seed}
        )  # fmt: skip
        for node, name in self._positive:
            api[node]["inputs"][name] = task.prompt
        for rank in workflows.node_ids(api, "EBCARank"):
            api[rank]["inputs"] |= {"prompt": task.prompt, "concepts": "\n".join(task.concepts())}
        return api

    def settings(self) -> workflows.Prompt:
        return self.of(PromptTask("", "", 0))


def score(clip: str, similarity: ClipSimilarity, done: Sequence[PromptTask], folder: Path) -> list[dict]:
    """A line for each picture: group, prompt, seed, title, full and minimum similarity, EBCA Rank's score."""

    def measure(task: PromptTask, title: str) -> dict:
        rank = score_in(task.file(folder, title, ".txt").read_text(encoding="utf-8"))
        return scores(similarity, task.picture(folder, title), task.prompt) | {"one place": rank}

    return kept_scores(folder / "scores.jsonl", [
        ({"clip": clip, **vars(task), "picture": title}, functools.partial(measure, task, title))
        for task in done for title in (WITHOUT, WITH)
    ])  # fmt: skip


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
                f"| {change.text('+.4f')} |"
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
        cells = [title, *(one.text("+.2f") for one in found)]
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
    parser = argument_parser(__doc__, WORKFLOW, REPO / "output" / "real_checkpoints")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt, each way")
    parser.add_argument("--prompts", type=int, help="only the first of each group")
    options = parser.parse_args(arguments)
    groups = json.loads(PROMPTS.read_text(encoding="utf-8"))["prompts"]
    wanted = tasks({group: prompts[: options.prompts] for group, prompts in groups.items()}, options.seeds)
    graph = PromptGraph(options)
    similarity = ClipSimilarity(options.clip) if options.clip else None  # before the pictures, as it can fail
    if not make(options, graph, wanted):
        return 1
    if similarity:
        lines = score(options.clip, similarity, wanted, options.out)
        report(options.out, table(lines), agreement(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
