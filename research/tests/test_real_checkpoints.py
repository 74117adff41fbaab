"""The benchmark of real checkpoints, from a server to the table, on the shapes model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import clip_similarity
import real_checkpoints
from support.scoring_models import clip_folder

NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers there


def test_all_prompts_have_two_concepts():
    groups = json.loads(real_checkpoints.PROMPTS.read_text())["prompts"]
    prompts = [prompt for group in groups.values() for prompt in group]
    assert len(set(prompts)) == len(prompts) == 276
    assert all(" ".join(clip_similarity.concepts(p)) == p.replace(" and ", " ").replace(" with ", " ") for p in prompts)
    with pytest.raises(ValueError, match="Expected two concepts"):
        clip_similarity.concepts("a cat")


def test_similarities_are_the_cosines_of_clips_own_embeddings(tmp_path, comfyui_root):
    from transformers import CLIPImageProcessor, CLIPModel

    folder = clip_folder(tmp_path, comfyui_root)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    prompt = "a cat and a frog"
    similarity = clip_similarity.ClipSimilarity(str(folder))
    found = clip_similarity.scores(similarity, picture, prompt)
    model = CLIPModel.from_pretrained(folder).eval()
    try:
        pixels = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)(picture, return_tensors="pt")
    except ImportError:
        pytest.skip("transformers has no image processor here")
    texts = [prompt, "a cat", "a frog"]
    with torch.no_grad():
        tokens = [similarity._tokenizer(text, return_tensors="pt") for text in texts]
        logits = [model(**pixels, **each).logits_per_image for each in tokens]
    full, first, second = (float(each / model.logit_scale.exp()) for each in logits)
    assert found["full"] == pytest.approx(full, abs=1e-3)
    assert found["minimum"] == pytest.approx(min(first, second), abs=1e-3)


def test_a_clip_model_that_is_not_there_is_refused_before_anything_is_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(real_checkpoints, "PromptGraph", lambda options: None)
    monkeypatch.setattr(real_checkpoints, "make", lambda *_: pytest.fail("sampled"))
    call = ["--servers", NOBODY, "--checkpoint", "any", "--out", str(tmp_path), "--clip", str(tmp_path)]
    with pytest.raises(SystemExit, match="Expected the folder or the name of a CLIP model"):
        real_checkpoints.main(call)


def test_table_averages_seeds_and_pairs_prompts():
    lines = [
        {"group": "animals", "prompt": prompt, "seed": seed, "picture": title, "full": value, "minimum": value / 2}
        for title, gain in (("Without EBCA", 0.0), ("With EBCA", 0.1))
        for prompt, base in (("a", 0.2), ("b", 0.4))
        for seed, value in enumerate((base + gain, base + gain + 0.02))
    ]
    full, minimum = real_checkpoints.table(lines).splitlines()[2:]
    assert full == "| animals | 8 | full | 0.3100 | 0.4100 | +0.1000 (+0.1000 to +0.1000) |"
    assert minimum.endswith("| 0.1550 | 0.2050 | +0.0500 (+0.0500 to +0.0500) |")


def test_prompt_goes_to_the_encoder_and_to_the_concepts_of_each_sampler():
    api = {
        "plain": {"class_type": "KSampler", "inputs": {"positive": ["text", 0]}},
        "with": {"class_type": "KSampler", "inputs": {"positive": ["concepts", 1]}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"text": ""}},
        "concepts": {"class_type": "EBCAConcepts", "inputs": {"prompt": ""}},
    }
    assert real_checkpoints.prompt_inputs(api) == {("text", "text"), ("concepts", "prompt")}
    api["text"]["class_type"] = "ConditioningCombine"
    with pytest.raises(SystemExit, match="comes from ConditioningCombine"):
        real_checkpoints.prompt_inputs(api)


def test_rank_reads_the_run_of_its_picture():
    api = {
        "load": {"class_type": "CheckpointLoaderSimple", "inputs": {}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["load", 1]}},
        "sampler": {"class_type": "KSampler", "inputs": {"model": ["load", 0], "positive": ["text", 0]}},
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0]}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }
    text = real_checkpoints.add_rank(api, "show")
    (rank, output) = api[text]["inputs"]["source"]
    trace = api["sampler"]["inputs"]["model"][0]
    assert output == 4
    assert api[rank]["inputs"]["trace"] == [trace, 1]
    assert [api[rank]["inputs"][name] for name in ("image", "clip")] == [["decode", 0], ["load", 1]]
    assert api[trace]["inputs"] == {"model": ["load", 0], "attention_maps": True}


def test_agreement_is_that_of_ranks_and_within_prompts_leaves_their_means_out():
    rank = np.random.default_rng(0).normal(size=(3, 4))
    lines = [
        {"prompt": prompt, "picture": title, "one place": rank[i, j], "minimum": sign * rank[i, j] ** 3}
        for title, sign in (("Without EBCA", -1), ("With EBCA", 1))
        for i, prompt in enumerate("abc") for j in range(4)
    ]  # fmt: skip
    without, with_ebca = real_checkpoints.agreement(lines).splitlines()[2:]
    assert without.startswith("| Without EBCA | -1.00 (-1.00 to -1.00) | ")
    assert with_ebca.startswith("| With EBCA | +1.00 (+1.00 to +1.00) | ")
    for line in lines:  # another level for each prompt, the other way round: only within prompts do both agree
        line["one place"] -= 100 * "abc".index(line["prompt"])
        line["minimum"] = line["one place"] + 1000 * "abc".index(line["prompt"])
    row = real_checkpoints.agreement(lines).splitlines()[2]
    whole, within = (float(cell.split()[0]) for cell in row.split("|")[2:4])
    assert whole < 0
    assert within == 1


@pytest.mark.server
@pytest.mark.slow
def test_from_servers_to_the_table_and_on_where_it_stopped(server, tmp_path, comfyui_root, capsys):
    out, clip = tmp_path / "run", clip_folder(tmp_path / "clip", comfyui_root)
    call = ["--servers", server.url, NOBODY, server.url, "--checkpoint", "shapes.safetensors", "--out", str(out),
            "--prompts", "1", "--seeds", "2", "--size", "512", "--steps", "2", "--clip", str(clip)]  # fmt: skip
    assert real_checkpoints.main(call) == 0
    first = capsys.readouterr().out
    files = sorted(out.rglob("*.png"))
    assert len(files) == 3 * 2 * 2
    assert "6 of 6" in first
    ranks = {file.stem: file.read_text() for file in out.rglob("*.txt")}
    assert set(ranks) == {file.stem for file in files}
    assert "scored: a elephant, a rabbit" in ranks["a_elephant_and_a_rabbit-0-With_EBCA"]
    scored = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    for line in scored:
        name = f"{line['prompt'].replace(' ', '_')}-{line['seed']}-{line['picture'].replace(' ', '_')}"
        assert f"{line['one place']:.3f}" in ranks[name]
    assert len({line["one place"] for line in scored}) > 6
    assert first.count("| With EBCA | ") == 1
    assert f"{NOBODY} is given up" in first
    assert first.count("| animals |") == 2
    assert (out / "results.md").read_text() in first
    without, with_ebca = (np.asarray(Image.open(out / "animals" / f"a_elephant_and_a_rabbit-0-{title}_EBCA.png"), int)
                          for title in ("Without", "With"))  # fmt: skip
    assert without.shape == (64, 64, 3)
    assert np.any(without != with_ebca)
    other_seed = np.asarray(Image.open(out / "animals" / "a_elephant_and_a_rabbit-1-Without_EBCA.png"), int)
    assert np.any(without != other_seed)

    before = {file: file.stat().st_mtime_ns for file in files}
    lines = (out / "scores.jsonl").read_text()
    files[0].unlink()
    assert real_checkpoints.main(call) == 0
    again = capsys.readouterr().out
    assert "1 of 1" in again
    assert (out / "scores.jsonl").read_text() == lines
    assert [file for file in files if file.stat().st_mtime_ns == before[file]] == files[2:]
    assert again.splitlines()[-13:] == first.splitlines()[-13:]
