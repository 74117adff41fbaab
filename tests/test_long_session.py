"""One server, many runs: memory stays, and the last picture is the first."""

import statistics

import psutil
import pytest

RUNS = 300
WARM = 50  # runs in which ComfyUI and PyTorch fill their caches
SIZE = {"width": 512, "height": 512}  # 64 x 64 for the shapes model

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.nightly]


def graph(updates: int, edits: int, token_weights: bool, seed: int) -> dict:
    """A picture of the shapes model, with so many nodes of the pack on its way."""

    def text(words: str) -> dict:
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": words}}

    prompt = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "shapes.safetensors"}},
        "positive": text("a red square"), "negative": text(""), "blue": text("blue circle"), "red": text("red square"),
        "latent": {"class_type": "EmptyLatentImage", "inputs": {**SIZE, "batch_size": 1}},
        "weights": {"class_type": "EBCATokenWeights", "inputs": {
            "clip": ["model", 1], "text": "a red square", "weights": "red = 2.5"}},
    }  # fmt: skip
    model = ["model", 0]
    for number in range(updates):
        prompt[f"update {number}"] = {"class_type": "EBCAContextUpdate", "inputs": {
            "model": model, "gamma_attn": 0.01 + 0.0001 * seed, "gamma_norm": 0.02, "start_percent": 0.0,
            "end_percent": 1.0, **({"token_weights": ["weights", 0]} if token_weights else {}),
        }}  # fmt: skip
        model = [f"update {number}", 0]
    if edits:
        for number in range(edits):
            prompt[f"edit {number}"] = {"class_type": "EBCAEditContext", "inputs": {
                "conditioning": [("blue", "red")[number % 2], 0], "direction": ("add", "remove")[number % 2],
                "alpha": 0.4, "start_percent": 0.15, "end_percent": 1.0, "gamma_attn": 0.0005, "gamma_norm": 0.0005,
                "gamma_start_percent": 0.15, "gamma_end_percent": 1.0,
            }}  # fmt: skip
        wires = {f"edits.edit{number}": [f"edit {number}", 0] for number in range(edits)}
        prompt["compose"] = {"class_type": "EBCACompose", "inputs": {"model": model, **wires}}
        model = ["compose", 0]
    prompt["sampler"] = {"class_type": "KSampler", "inputs": {
        "model": model, "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["latent", 0],
        "seed": seed, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }}  # fmt: skip
    prompt["decoded"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}}
    prompt["picture"] = {"class_type": "PreviewImage", "inputs": {"images": ["decoded", 0]}}
    return prompt


def graphs() -> list[dict]:
    """Nodes are added, changed and removed from run to run; the last graph is the first."""
    made = [graph(run % 3, run // 3 % 4, run % 5 == 0, seed=run) for run in range(1, RUNS - 1)]
    first = graph(1, 2, True, seed=0)
    return [first, *made, first]


def test_300_runs_in_one_server(server, capsys):
    process = psutil.Process(server.process_id)
    pictures, memory = [], []
    for prompt in graphs():
        pictures.append(server.images(server.run(prompt)))
        server.post("/history", {"clear": True})  # of all prompts that ran, which ComfyUI keeps
        memory.append(process.memory_info().rss / 2**20)
    assert len(pictures) == RUNS
    growth = 100 * statistics.linear_regression(range(RUNS - WARM), memory[WARM:]).slope
    with capsys.disabled():
        print(f"\n{memory[0]:.1f} MiB after a run, {memory[WARM]:.1f} after {WARM}, {memory[-1]:.1f} after {RUNS}: "
              f"{growth:+.2f} MiB in 100 runs")  # fmt: skip
    assert pictures[-1] == pictures[0]
    assert pictures[1] != pictures[0]
    assert growth <= 1
