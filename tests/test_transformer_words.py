"""Words of prompts on transformers: token weights and attention maps through ComfyUI's own tokenizers and encoders."""

from __future__ import annotations

import logging
import re
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Tokenizer, T5TokenizerFast

from support import toy, toy_dit, toy_dit_more, toy_text_encoders
from support.host import node
from support.log_messages import messages
from support.transformer_runs import run

LION = "a red cat wearing a blue shirt"


@pytest.fixture(params=toy_text_encoders.FAMILIES)
def family(request):
    if not toy_text_encoders.exists(request.param):
        pytest.skip("this ComfyUI does not have the family")
    return request.param


def weigh(comfy, clip, text, weights):
    with torch.inference_mode():
        return node(comfy, "EBCATokenWeights").execute(clip=clip, text=text, weights=weights)


def encoded(clip, text):
    """A CONDITIONING as CLIP Text Encode makes it; the lyrics of ACE-Step fit the toy's vocabulary."""
    with torch.inference_mode():
        ((made, options),) = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    if "conditioning_lyrics" in options:
        options["conditioning_lyrics"] = torch.tensor([[1, 2, 3]])
    return [[made, options]]


def network(family):
    model = toy_text_encoders.FAMILIES[family].toy.model(family)
    if family in ("anima", "ltxav", "kandinsky5"):
        names = dict(anima="llm_adapter", ltxav="", kandinsky5="text_transformer_blocks")[family]
        part = model.model.diffusion_model.get_submodule(names)
        if family == "ltxav":
            part = torch.nn.ModuleList([part.video_embeddings_connector, part.audio_embeddings_connector])
        toy_text_encoders.without_mixing(part)
    return model


def sampled(family, model, positive):
    if toy_text_encoders.FAMILIES[family].toy is toy_dit:
        return run(model, family, positive, positive, steps=1, cfg=1.0)
    return toy_dit_more.sample(model, family, positive, steps=1)


@pytest.fixture
def laid(comfy, pack, monkeypatch):
    """(family, clip, positive, weights) -> keys [t, c] of the first layer, and the weights of its tokens, [t]."""
    module, seen = pack.comfyui_binding.runtime.denoiser_call, []
    computed = module.key_step

    def watched(*args, **kwargs):
        seen.append((args[0], args[6]))
        return computed(*args, **kwargs)

    monkeypatch.setattr(module, "key_step", watched)

    def run_once(family, positive, weights):
        model = node(comfy, "EBCAContextUpdate").execute(
            model=network(family), gamma_attn=0.01, gamma_norm=0.0, token_weights=weights
        )[0]
        seen.clear()
        sampled(family, model, positive)
        keys, values = seen[0]
        return keys[0], None if values is None else values[0].flatten()

    return run_once


def test_weights_lie_on_the_rows_that_the_word_changes(comfy, laid, family, caplog):
    """Found in what the first layer reads, behind adapters and beside the network's own tokens."""
    clip = toy_text_encoders.clip(family)
    toy_text_encoders.without_mixing(clip.cond_stage_model)
    found = []
    for word in ("red", "blue"):
        text = f"a lion and a {word} cat, and a dog"
        weights, _ = weigh(comfy, clip, text, f"{word} = 2.0")
        found.append(laid(family, encoded(clip, text), weights))
    (red, values), (blue, others) = found
    assert torch.equal(values, others)
    changes = (red - blue).norm(dim=-1)
    assert values.eq(2).nonzero().flatten().tolist() == changes.gt(0.3 * changes.max()).nonzero().flatten().tolist()
    assert set(values.unique().tolist()) == {1.0, 2.0}
    assert not messages(caplog)


# --- positions, as the libraries of the tokenizers have them ---------------------------------------------------------


def pieces_of(family, text):
    """[(first, last) character of each token] by the tokenizer's own library; a space of its own has none."""
    tokenizer = toy_text_encoders.clip(family).tokenizer
    inner = next(getattr(tokenizer, name).tokenizer for name in INNER if hasattr(tokenizer, name))
    if isinstance(inner, T5TokenizerFast | Qwen2Tokenizer):
        found = inner(text, return_offsets_mapping=True, add_special_tokens=False)
        spaces = [piece == "\u2581" for piece in inner.convert_ids_to_tokens(found["input_ids"])]
        return [(0, 0) if space else at for space, at in zip(spaces, found["offset_mapping"], strict=True)]
    ids, decode = inner.tokenizer.encode(text, add_bos=False, add_eos=False), inner.tokenizer.decode
    return list(pairwise(len(decode(ids[:count]).rstrip("\ufffd")) for count in range(len(ids) + 1)))


INNER = ("t5xxl", "clip_t5xxl", "clip_t5base", "clip_umt5xxl", "umt5base", "qwen25_7b", "gemma3_12b")
PROMPTS = {
    "one word": ("A cat wearing a shirt", "shirt", r"shirt"),
    "other letter case": ("A Cat wearing a SHIRT", "shirt", r"SHIRT"),
    "first word": ("lion with a crown", "lion", r"lion"),
    "every occurrence": ("a red cat and a red dog, red", "red", r"\bred\b"),
    "several tokens": ("a floccinaucinihil dog", "floccinaucinihil", r"floccinaucinihil"),
    "phrase": ("a red shirt, a blue shirt", "red shirt", r"red shirt"),
    "phrase that overlaps itself": ("very very very old", "very very", r"very very very"),
    "phrase with punctuation": ("a cat, a dog", "cat, a", r"cat, a\b"),
    "whole words only": ("a tshirt, shirts and a floccinaucinihil shirt hil", "hil", r"\bhil"),
    "inside a hyphenated word": ("a red-haired woman", "haired", r"haired"),
    "word with hyphen": ("a red-haired woman", "red-haired", r"red-haired"),
    "apostrophe": ("the dog's bone", "dog", r"dog"),
    "quotes": ('the words "red cat" on a wall', "red cat", r"red cat"),
    "accents": ("un café noir", "CAFÉ", r"café"),
}
BEYOND_T5 = {
    "rare accents": ("un café, Ünïcödé", "ünïcödé", r"Ünïcödé"),
    "script without spaces": ("一只红色的猫和一只狗", "猫", r"猫"),
    "phrase without spaces": ("一只红色的猫和一只狗", "红色的猫", r"红色的猫"),
}
CASES = [
    pytest.param(family, *case, id=f"{family}-{name}")
    for family in ("pixart", "wan", "kandinsky5", "ltxav")  # one of each vocabulary
    for name, case in (PROMPTS if family == "pixart" else PROMPTS | BEYOND_T5).items()
]


@pytest.mark.parametrize(("family", "text", "phrase", "pattern"), CASES)
def test_phrase_is_found_where_the_tokenizer_library_has_it(comfy, family, text, phrase, pattern):
    if not toy_text_encoders.exists(family):
        pytest.skip("this ComfyUI does not have the family")
    spans = [match.span() for match in re.finditer(pattern, text)]
    offsets = pieces_of(family, text)
    expected = [
        i
        for i, (start, end) in enumerate(offsets)
        if text[start:end].strip() and any(start < b and a < end for a, b in spans)
    ]
    weights, _ = weigh(comfy, toy_text_encoders.clip(family), text, f"{phrase} = 2.0")
    found = weights.values.eq(2).nonzero().flatten().tolist()
    first = {"kandinsky5": 0, "ltxav": 1}.get(family, 0)  # LTX-2's prompts have a start token
    assert [place - first for place in found if text[slice(*offsets[place - first])].strip()] == expected


def test_template_around_the_prompt_has_no_words(comfy):
    """Kandinsky's describes what an assistant does, in words that may be the prompt's."""
    clip = toy_text_encoders.clip("kandinsky5")
    with pytest.raises(ValueError, match=r"`background` is not in the prompt.* are: `a` `red` `cat`$"):
        weigh(comfy, clip, "a red cat", "background = 2")
    weights, _ = weigh(comfy, clip, "a background of objects", "background = 2")
    assert weights.values.eq(2).sum() == 1


def test_character_that_a_vocabulary_does_not_have_is_refused(comfy):
    """T5 reads every emoji and every Chinese character as one and the same token."""
    with pytest.raises(ValueError, match="`🐈` has a character that the text encoder does not know"):
        weigh(comfy, toy_text_encoders.clip("pixart"), "a 🐶 and a 🐈", "🐈 = 2")


def test_prompt_that_two_encoders_read_in_turn_is_refused(comfy):
    from comfy.text_encoders.hydit import HyditTokenizer

    vocabulary = toy_text_encoders.vocabulary(**toy_text_encoders.UMT5)
    tokenizer = HyditTokenizer(tokenizer_data={"mt5xl.spiece_model": vocabulary})
    clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
    with pytest.raises(ValueError, match=r"HyditTokenizer, tokens for hydit_clip, mt5xl\): two text encoders read"):
        weigh(comfy, clip, "a shirt", "shirt = 2")


def test_weights_in_parentheses_are_no_part_of_the_text(comfy):
    clip = toy_text_encoders.clip("pixart")
    _, description = weigh(comfy, clip, "(a (red:1.3) shirt), ((cat))", "red shirt = 2.0")
    rows = [line.split() for line in description.splitlines()[1:-1]]
    assert [row[2] for row in rows if row[1] == "2"] == ["red", "shirt"]


def test_description_lists_the_tokens(comfy):
    _, description = weigh(comfy, toy_text_encoders.clip("pixart"), "A Red floccinaucinihil", "red = 2.5")
    rows = [line.split() for line in description.splitlines()[1:-1]]
    assert rows[:2] == [["0", "1", "A"], ["1", "2.5", "Red"]]
    assert {tuple(row[-2:]) for row in rows[2:]} == {("in", "floccinaucinihil")}


def test_text_that_is_in_no_prompt_is_said(comfy, laid, family, caplog):
    clip = toy_text_encoders.clip(family)
    weights, _ = weigh(comfy, clip, LION, "cat = 2.0")
    _, values = laid(family, encoded(clip, "a lion and a dog"), weights)
    assert values is None
    (message,) = messages(caplog)
    assert "the token weights have no effect" in message


def test_weights_lie_on_their_part_of_joined_prompts(comfy, laid, caplog):
    """Of Wan all prompts have 512 tokens; of Anima the tokens of the second are lost."""
    dog = "a dog on green grass"
    for family, found in (("wan", True), ("anima", False)):
        if not toy_text_encoders.exists(family):
            continue
        clip = toy_text_encoders.clip(family)
        weights, _ = weigh(comfy, clip, LION, "cat = 2.0")
        places = weights.values.eq(2).nonzero().flatten().tolist()
        joined = node(comfy, "ConditioningConcat").execute(
            conditioning_to=encoded(clip, dog), conditioning_from=encoded(clip, LION)
        )[0]
        caplog.clear()
        _, values = laid(family, joined, weights)
        if found:
            assert values.eq(2).nonzero().flatten().tolist() == [512 + place for place in places]
        assert (values is None) == bool(messages(caplog)) == (not found)


# --- attention maps --------------------------------------------------------------------------------------------------

PICTURES = ("pixart", "ltxv", "wan", "anima", "kandinsky5", "cosmos1")


def traced(comfy, family, positive):
    model, trace = node(comfy, "EBCATrace").execute(model=network(family), attention_maps=True)
    sampled(family, model, positive)
    return trace


@pytest.mark.parametrize("family", [*PICTURES, "ace"])
def test_maps_of_a_word_are_those_of_the_rows_that_it_changes(comfy, pack, family):
    """Of two runs that differ in one word, in their first layer: that word's maps differ most."""
    if not toy_text_encoders.exists(family):
        pytest.skip("this ComfyUI does not have the family")
    clip = toy_text_encoders.clip(family)
    toy_text_encoders.without_mixing(clip.cond_stage_model)
    texts = ["a lion and a red cat, and a dog", "a lion and a blue cat, and a dog"]
    (red,), (blue,) = (traced(comfy, family, encoded(clip, text)).record.maps[0].by_grid for text in texts)
    find = pack.comfyui_binding.trace.word_positions.positions_of_words
    with torch.inference_mode():
        found, prompt = find(clip, texts[0], "red")
    assert prompt.length <= red.shape[1]
    differences = (red - blue).flatten(2).norm(dim=-1)[0] / red.flatten(2).norm(dim=-1)[0]
    assert differences.nan_to_num().argmax() in found["red"]  # no attention is paid to masked tokens


@pytest.mark.parametrize("family", PICTURES)
def test_attention_maps_are_drawn_for_the_prompt(comfy, family, caplog):
    if not toy_text_encoders.exists(family):
        pytest.skip("this ComfyUI does not have the family")
    clip = toy_text_encoders.clip(family)
    trace = traced(comfy, family, encoded(clip, LION))
    draw = node(comfy, "EBCAAttentionMaps").execute
    with torch.inference_mode():
        sheet = draw(trace=trace, image=toy.noise(1, 64, 64, 3).sigmoid(), clip=clip, text=LION, words="cat, shirt")[0]
        assert sheet.std() > 0
        assert not messages(caplog)
        draw(trace=trace, image=sheet, clip=clip, text="a blue cat wearing a red shirt", words="")
    (message,) = messages(caplog)
    assert "not the encoded text of this node" in message


def test_reroll_of_a_video_keeps_the_mask_of_each_frame(comfy, caplog):
    """The run that is kept is that of its seed without EBCA Reroll; the mask is black for the first frame alone."""
    clip, frames, model = toy_text_encoders.clip("wan"), 3, network("wan")
    prompts, mask = [encoded(clip, text) for text in (LION, "")], torch.ones(frames, 8, 8)
    mask[0] = 0
    caplog.set_level(logging.INFO, "ebca")
    with torch.inference_mode():
        edit = node(comfy, "EBCAEditContext").execute(conditioning=encoded(clip, "a blue car"), alpha=0.7, mask=mask)[0]
        edited = node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]
        rerolled = node(comfy, "EBCAReroll").execute(
            model=edited, clip=clip, prompt=LION, concepts="a red cat\na blue shirt", at=1.0
        )[0]
        got = run(rerolled, "wan", *prompts, frames=frames, steps=2, seed=5)
        (said,) = [message for message in messages(caplog) if "EBCA Reroll: kept" in message]
        seed = int(re.search(r"seed (\d+)", said)[1])
        assert torch.equal(got, run(edited, "wan", *prompts, frames=frames, steps=2, seed=seed))
        assert not torch.equal(got, run(model, "wan", *prompts, frames=frames, steps=2, seed=seed))


@pytest.mark.parametrize("family", PICTURES)
def test_runs_are_scored_by_the_words_of_the_prompt(comfy, family, caplog):
    """EBCA Reroll reads the maps of one call, EBCA Rank those of the trace: of one call, they are the same."""
    if not toy_text_encoders.exists(family):
        pytest.skip("this ComfyUI does not have the family")
    clip, about = toy_text_encoders.clip(family), {"prompt": LION, "concepts": "a red cat\na blue shirt"}
    positive, empty = encoded(clip, LION), encoded(clip, "")
    is_of = toy_text_encoders.FAMILIES[family].toy
    latent = torch.zeros(toy_dit.shape(family)) if is_of is toy_dit else toy_dit_more.latent(family, 1)
    caplog.set_level(logging.INFO, "ebca")
    with torch.inference_mode():
        rerolled = node(comfy, "EBCAReroll").execute(
            model=network(family), clip=clip, at=1.0, tries=2, policy="best", threshold=0.0, preview_steps=0, **about
        )[0]
        model, trace = node(comfy, "EBCATrace").execute(model=rerolled, attention_maps=True)
        node(comfy, "KSampler").execute(
            model=model, seed=5, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", positive=positive,
            negative=empty, latent_image={"samples": latent}, denoise=1.0,
        )  # fmt: skip
        image = toy.noise(trace.record.maps[0].images, 64, 64, 3).sigmoid()
        found = node(comfy, "EBCARank").execute(
            trace=[trace], image=[image], clip=[clip], **{name: [text] for name, text in about.items()}
        )
    (said,) = [message for message in messages(caplog) if "EBCA Reroll: kept" in message]
    scores = [float(score) for score in said.rpartition("scores ")[2].split(", ")]
    assert float(found[4].splitlines()[1].split()[-1]) == pytest.approx(max(scores), abs=0.006)
