"""EBCATokenWeights, with ComfyUI's real tokenizers and narrow text encoders.

Expected positions come from the transformers library's offsets of each token in the plain text, or from the text
encoder itself: it is causal, so the first row that differs between two prompts is the first token that differs.
"""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import pytest
import torch
from comfy.supported_models_base import ClipTarget
from safetensors.torch import save_file
from transformers import CLIPTokenizerFast

from support import other_packs, toy
from support.host import node
from support.log_messages import messages
from support.sampling import sample

FAMILIES = ["sd1", "sd2", "sdxl", "sdxl_refiner"]
LONG = "a lion with a crown next to a castle, "  # 10 tokens


def build_clip(family):
    if family != "sdxl_refiner":
        return toy.clip(family)
    # As comfy.supported_models.SDXLRefiner has it: SDXL's tokenizer, one text encoder.
    target = ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLRefinerClipModel)
    options = {"clip_g_model_config": toy._clip_config(toy.WIDTH), "dtype": torch.float32}
    made = comfy.sd.CLIP(target, model_options=options)
    toy.fill(made.cond_stage_model, 1)
    return made


@pytest.fixture(scope="module")
def make_clip():
    return cache(build_clip)


@pytest.fixture(params=FAMILIES)
def clip(request, make_clip):
    return make_clip(request.param)


@pytest.fixture
def weigh(comfy):
    """(clip, text, weights) -> values [t], description."""

    def run(clip, text, weights=""):
        weights, description = node(comfy, "EBCATokenWeights").execute(clip=clip, text=text, weights=weights)
        return weights.values, description

    return run


def encode(clip, text):
    with torch.inference_mode():
        return clip.encode_from_tokens(clip.tokenize(text))


def positions(values, weight=2.0):
    assert set(values.unique().tolist()) <= {1.0, weight}
    return values.eq(weight).nonzero().flatten().tolist()


@cache
def plain_tokenizer():
    return CLIPTokenizerFast.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")


def expected_positions(plain, pattern):
    """Positions of the tokens inside the matches of a regular expression, in chunks of start, 75 tokens, end."""
    offsets = plain_tokenizer()(plain, return_offsets_mapping=True)["offset_mapping"][1:-1]
    spans = [match.span() for match in re.finditer(pattern, plain, re.IGNORECASE)]
    assert spans
    inside = [i for i, (start, end) in enumerate(offsets) if any(a <= start and end <= b for a, b in spans)]
    return [77 * (i // 75) + 1 + i % 75 for i in inside]


def first_difference(clip, one, other):
    return encode(clip, one).ne(encode(clip, other)).any(-1)[0].nonzero()[0].item()


# prompt, the prompt as plain text ("" if it is that already), line, pattern of the phrase in the plain text
FOUND = {
    "one word": ("A cat wearing a shirt", "", "shirt = 2", r"shirt"),
    "other letter case": ("A Cat wearing a SHIRT", "", "Shirt=2", r"shirt"),
    "every occurrence": ("a red cat and a red dog, red", "", "red = 2", r"\bred\b"),
    "several tokens": ("a floccinaucinihil dog", "", "floccinaucinihil = 2", r"floccinaucinihil"),
    "phrase": ("a red shirt, a blue shirt", "", "red shirt = 2", r"red shirt"),
    "phrase that overlaps itself": ("very very very old", "", "very very = 2", r"very very very"),
    "phrase with punctuation": ("a cat, a dog", "", "cat, a = 2", r"cat, a\b"),
    "whole words only": ("a tshirt, shirts and a floccinaucinihil shirt hil", "", "hil = 2", r"\bhil"),
    "word with hyphen": ("a t-shirt", "", "t-shirt = 2", r"t-shirt"),
    "apostrophe": ("the dog's bone", "", "dog = 2", r"dog"),
    "punctuation, not the padding": ("stop!", "", "! = 2", r"!"),
    "equals sign": ("e = mc on a board", "", "e = mc = 2", r"e = mc"),
    "accents": ("un café, Ünïcödé", "", "ünïcödé = 2", r"Ünïcödé"),
    "accents written in two characters": ("un cafe\u0301 noir", "un café noir", "café = 2", r"café"),
    "other script": ("日本語 and a 🐈 cat", "", "日本語 = 2", r"日本語"),
    "emoji": ("日本語 and a 🐈 cat", "", "🐈 = 2", r"🐈"),
    "weights in parentheses": ("(a (red:1.3) shirt), ((cat))", "a red shirt , cat", "red shirt = 2", r"red shirt"),
    "line with parentheses": ("a (red:1.3) shirt", "a red shirt", "(red:1.3) shirt = 2", r"red shirt"),
    "escaped parentheses": (r"a shirt \(red\) here", "a shirt (red) here", r"shirt \(red\) = 2", r"shirt \(red\)"),
    "new lines": ("a\n  red\nshirt", "a red shirt", "red   shirt = 2", r"red shirt"),
    "second chunk": (LONG * 9 + "shirt", "", "shirt = 2", r"shirt"),
    "all of three chunks": (LONG * 20, "", "lion = 2", r"lion"),
    "phrase over the border of a chunk": (LONG * 9, "", "castle, a lion = 2", r"castle, a lion"),
    "word cut by the border of a chunk": ("a " * 73 + "floccinaucinihil", "", "floccinaucinihil = 2", r"flocc\w+"),
}


@pytest.mark.parametrize(("prompt", "plain", "line", "pattern"), FOUND.values(), ids=FOUND)
def test_phrase_is_found_where_the_tokenizer_library_has_it(weigh, clip, prompt, plain, line, pattern):
    values, _ = weigh(clip, prompt, line)
    assert values.dtype == torch.float32
    assert positions(values) == expected_positions(plain or prompt, pattern)


@pytest.mark.parametrize("prompt", ["", "a cat", "a (red:1.3) cat", "a " * 75, "a " * 76, LONG * 8, LONG * 20])
def test_there_are_as_many_values_as_the_clip_encodes_tokens(weigh, clip, prompt):
    values, _ = weigh(clip, prompt)
    assert values.shape == encode(clip, prompt).shape[1:2]
    assert len(values) % 77 == 0


@pytest.mark.parametrize(
    "prompt",
    [
        "a cat wearing a WORD",
        "(a (WORD:1.3) shirt)",
        r"\(WORD\)",
        LONG * 9 + "WORD",
        "a " * 74 + "(WORD cap:1.2)",  # core moves a short weighted part that does not fit to the next chunk as a whole
    ],
)
def test_weight_is_on_the_row_that_the_word_changes(weigh, clip, prompt):
    one, other = prompt.replace("WORD", "red"), prompt.replace("WORD", "blue")
    values, _ = weigh(clip, one, "red = 2")
    assert positions(values) == [first_difference(clip, one, other)]


def long_clip(tokenizer, encoder, **widths):
    """A CLIP whose clip_l reads 248 tokens at once."""
    options = {f"{name}_model_config": toy._clip_config(width) for name, width in widths.items()}
    options["clip_l_model_config"]["max_position_embeddings"] = 248
    made = comfy.sd.CLIP(
        ClipTarget(tokenizer, encoder),
        tokenizer_data={"clip_l_max_length": 248},
        model_options={**options, "dtype": torch.float32},
    )
    toy.fill(made.cond_stage_model, 1)
    return made


def test_long_clip_has_one_chunk_of_its_own_length(weigh):
    clip = long_clip(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel, clip_l=64)
    values, _ = weigh(clip, LONG * 9 + "shirt", "shirt = 2")
    assert values.shape == encode(clip, LONG * 9).shape[1:2] == (248,)
    assert positions(values) == [91]


def test_long_clip_beside_an_ordinary_one_is_cut_to_it(weigh):
    clip = long_clip(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel, clip_l=32, clip_g=32)
    values, _ = weigh(clip, "a red shirt", "shirt = 2")
    assert values.shape == encode(clip, "a red shirt").shape[1:2] == (77,)
    assert positions(values) == [3]


# Embeddings (textual inversion)


@pytest.fixture
def embedded(tmp_path):
    """Makes a CLIP that reads embeddings; `fits` has 2 vectors of the right widths, `other` 2 of another."""

    def make(family, **files):
        clip = build_clip(family)
        for name, widths in files.items():
            vectors = {f"clip_{key}": toy.noise(2, width, seed=7) for key, width in widths.items()}
            save_file(vectors, tmp_path / f"{name}.safetensors")
        for key in ("clip_l", "clip_h", "clip_g"):
            if hasattr(clip.tokenizer, key):
                getattr(clip.tokenizer, key).embedding_directory = [str(tmp_path)]
        return clip

    return make


WIDTHS = {"sd1": {"l": 64}, "sd2": {"h": 64}, "sdxl": {"l": 32, "g": 32}, "sdxl_refiner": {"l": 32, "g": 64}}


@pytest.mark.parametrize("family", WIDTHS)
def test_embeddings_in_the_prompt_are_counted_and_can_be_weighted(weigh, embedded, family):
    clip = embedded(family, style=WIDTHS[family])
    prompt = "a embedding:style red shirt, (embedding:style:1.2)"
    assert positions(weigh(clip, prompt, "red = 2")[0]) == [4]
    assert positions(weigh(clip, prompt, "embedding:style = 2")[0]) == [2, 3, 7, 8]
    assert positions(weigh(clip, prompt, "embedding:style red = 2")[0]) == [2, 3, 4]
    assert first_difference(clip, prompt, prompt.replace("red", "blue")) == 4
    assert weigh(clip, prompt)[1].count("<embedding>") == 4


def test_embedding_for_another_model_is_left_out_as_core_does(weigh, embedded):
    clip = embedded("sd1", other={"l": 48})
    for prompt in ("a embedding:other red shirt", "a embedding:other " + LONG * 9 + "red shirt"):
        values, _ = weigh(clip, prompt, "red = 2")
        assert positions(values) == [first_difference(clip, prompt, prompt.replace("red", "blue"))]
    with pytest.raises(ValueError, match=r"^`embedding:other` is not in the prompt"):
        weigh(clip, prompt, "embedding:other = 2")


def test_encoders_that_read_the_words_at_different_positions_are_refused(weigh, embedded):
    clip = embedded("sdxl", half={"l": 32, "g": 48})
    prompt = "red embedding:half shirt"
    assert positions(weigh(clip, prompt, "red = 2")[0]) == [1]
    with pytest.raises(ValueError, match=r"at different positions in the two text encoders: \[2\] and \[4\]"):
        weigh(clip, prompt, "shirt = 2")


def test_embedding_that_does_not_exist_is_no_part_of_the_prompt(weigh, embedded):
    clip = embedded("sd1")
    prompt = "a embedding:missing red shirt"
    assert positions(weigh(clip, prompt, "red = 2")[0]) == [first_difference(clip, prompt, "a embedding:missing blue")]


# What is shown


def test_description_lists_the_tokens_of_the_prompt(weigh, make_clip):
    _, description = weigh(make_clip("sd1"), "A (Red:1.3) floccinaucinihil", "red = 2.5\nfloccinaucinihil = 0")
    rows = [line.split() for line in description.splitlines()[1:-1]]
    plain = plain_tokenizer()
    ids = plain("floccinaucinihil")["input_ids"][1:-1]
    pieces = [[str(3 + i), "0", plain.decode([token]), "in", "floccinaucinihil"] for i, token in enumerate(ids)]
    assert rows == [["1", "1", "a"], ["2", "2.5", "red"], *pieces]
    assert description.splitlines()[-1].startswith("77 tokens in total.")


def test_position_in_the_second_chunk_is_shown(weigh, make_clip):
    _, description = weigh(make_clip("sdxl"), LONG * 9 + "shirt", "shirt = 2")
    assert description.splitlines()[-2].split() == ["93", "2", "shirt"]
    assert description.splitlines()[-1].startswith("154 tokens in total.")


@pytest.mark.parametrize("weights", ["", " \n\n  ", "cat = 1"])
def test_nothing_to_weigh_means_ones_and_says_so(weigh, clip, weights):
    values, description = weigh(clip, "a cat", weights)
    assert torch.equal(values, torch.ones(77))
    assert description.startswith("All weights are 1, so nothing changes.")


def test_empty_prompt_is_described(weigh, clip):
    values, description = weigh(clip, "")
    assert torch.equal(values, torch.ones(77))
    assert "The prompt is empty." in description


def test_lines_may_repeat_a_weight_and_leave_lines_blank(weigh, make_clip):
    values, _ = weigh(make_clip("sd1"), "a red shirt", "\n red = 2\r\n\nred shirt = 2e0\n")
    assert positions(values) == [2, 3]


# What is refused

REFUSED = {
    "word that is not there": (
        "a red cat, a 日本語", "hat = 2",
        r"^`hat` is not in the prompt. Did you mean `cat`\? .* are: `a` `red` `cat` `,` `日本語`$"),
    "part of a word": ("a floccinaucinihil", "flocc = 2", "^`flocc` is not in the prompt"),
    "phrase with a gap": ("a red old shirt", "red shirt = 2", "^`red shirt` is not in the prompt"),
    "phrase without a word": ("a (red) shirt", "() = 2", r"^`\(\)` is not in the prompt"),
    "word with a typing error": ("a red shirt", "shirts = 2", r"^`shirts` is not in .* Did you mean `shirt`\?"),
    "phrase with a typing error": (
        "a red old shirt", "Old Shirts = 2", r"^`Old Shirts` is not in the prompt. Did you mean `old shirt`\?"),
    "padding": ("a red shirt", "! = 2", "^`!` is not in the prompt"),
    "any word of an empty prompt": ("", "hat = 2", r"^`hat` is not in the prompt.* are: \(none\)$"),
    "no equals sign": ("a shirt", "shirt 2", "^The line `shirt 2` .*Write it as `shirt = 2.5`"),
    "no word": ("a shirt", "= 2", "^The line `= 2` .*Write it as `shirt = 2.5`"),
    "no weight": ("a shirt", "shirt =", "^The weight of `shirt` is ``.*number from 0 to 1000"),
    "weight in words": ("a shirt", "shirt = two", "^The weight of `shirt` is `two`.*number from 0 to 1000"),
    "decimal comma": ("a shirt", "shirt = 2,5", "^The weight of `shirt` is `2,5`.*number from 0 to 1000"),
    "negative weight": ("a shirt", "shirt = -1", "^The weight of `shirt` is `-1`.*number from 0 to 1000"),
    "nan": ("a shirt", "shirt = nan", "^The weight of `shirt` is `nan`.*number from 0 to 1000"),
    "inf": ("a shirt", "shirt = inf", "^The weight of `shirt` is `inf`.*number from 0 to 1000"),
    "too large": ("a shirt", "shirt = 1e5", "^The weight of `shirt` is `1e5`.*number from 0 to 1000"),
    "two weights": (
        "a red shirt", "red shirt = 2\nred = 3",
        "^The token `red` at position 2 has two weights: `red shirt = 2` and `red = 3`"),
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "weights", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_with_what_came(weigh, clip, prompt, weights, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        weigh(clip, prompt, weights)


def stand_in(tokenizer):
    """All of a CLIP that matters here, without the gigabytes of a T5: its tokenizer, and the names of its encoders."""
    encoders = SimpleNamespace(**{name: None for name in vars(tokenizer) if name != "clip_name"})
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=encoders)


OTHER = {
    "sd3_clip.SD3Tokenizer": "g, l, t5xxl",
    "flux.FluxTokenizer": "l, t5xxl",
    "ace15.ACE15Tokenizer": (
        "lm_prompt, lm_prompt_negative, lyrics, qwen3_06b, lm_metadata): it writes tempo, key and length of the music"
    ),
    "z_image.ZImageTokenizer": "qwen3_4b",
    "sam3_clip.SAM3TokenizerWrapper": "sam3_clip",
}


@pytest.mark.parametrize(("name", "tokens"), OTHER.items(), ids=OTHER)
def test_other_text_encoders_are_refused(weigh, name, tokens):
    module, cls = name.split(".")
    module = pytest.importorskip(f"comfy.text_encoders.{module}", exc_type=ImportError)
    came = f"This CLIP is not supported ({cls}, tokens for {tokens}"
    with pytest.raises(ValueError, match=re.escape(came)):
        weigh(stand_in(getattr(module, cls)()), "a shirt", "shirt = 2")


def test_stable_cascade_is_refused(weigh):
    with pytest.raises(ValueError, match=r"not supported \(StableCascadeTokenizer, tokens for g\)"):
        weigh(stand_in(comfy.sdxl_clip.StableCascadeTokenizer()), "a shirt")


def test_missing_clip_is_refused(weigh):
    with pytest.raises(ValueError, match="The checkpoint has no CLIP"):
        weigh(None, "a shirt")


# The prompts that the weights were made for

LION, DOG = "a red cat and a blue dog", "green grass under a grey sky"
NOT_THERE = "the token weights have no effect"


@pytest.fixture
def laid(comfy, pack, monkeypatch):
    """(clip, text, weights, positive) -> the weights of each row of a call, [rows, t]: the negative prompt first."""
    module, seen = pack.comfyui_binding.runtime.denoiser_call, []
    computed = module.key_step

    def watched(*args, **kwargs):
        seen.append(args[6])
        return computed(*args, **kwargs)

    monkeypatch.setattr(module, "key_step", watched)

    def run(clip, text, weights, positive, model=None, family="sd1"):
        made, _ = node(comfy, "EBCATokenWeights").execute(clip=clip, text=text, weights=weights)
        model = node(comfy, "EBCAContextUpdate").execute(model=model or toy.model(family), token_weights=made)[0]
        seen.clear()
        sample(model, positive, toy.conditioning(99), latent=toy.latent(1, 8, 8), steps=1)
        return None if seen[0] is None else seen[0].squeeze(-1)

    return run


def conditioning(comfy, clip, text):
    return node(comfy, "CLIPTextEncode").execute(clip=clip, text=text)[0]


def test_weights_lie_on_their_prompt_alone(comfy, laid, make_clip, caplog):
    clip = make_clip("sd1")
    both = node(comfy, "ConditioningCombine").execute(
        conditioning_1=conditioning(comfy, clip, LION), conditioning_2=conditioning(comfy, clip, DOG)
    )[0]
    rows = laid(clip, LION, "cat = 2.5", both)
    assert sorted(positions(row, 2.5) for row in rows) == [[], [], [3]]
    rows = laid(clip, DOG, "under = 2.5", both)
    assert sorted(positions(row, 2.5) for row in rows) == [[], [], [3]]
    assert not messages(caplog)


def test_weights_lie_on_a_prompt_with_an_area(comfy, laid, make_clip, caplog):
    clip = make_clip("sd1")
    part = node(comfy, "ConditioningSetArea").execute(
        conditioning=conditioning(comfy, clip, LION), width=64, height=64, x=0, y=0, strength=1.0
    )[0]
    rows = laid(clip, LION, "cat = 2.5", [*conditioning(comfy, clip, DOG), *part])
    assert [at for row in rows if (at := positions(row, 2.5))] == [[3]]
    assert not messages(caplog)


def test_weights_lie_on_their_part_of_joined_prompts(comfy, laid, make_clip, caplog):
    clip = make_clip("sd1")
    first, second = (conditioning(comfy, clip, text) for text in (DOG, LION))
    joined = node(comfy, "ConditioningConcat").execute(conditioning_to=first, conditioning_from=second)[0]
    rows = laid(clip, LION, "cat = 2.5", joined)
    assert positions(rows[-1], 2.5) == [77 + 3]
    assert rows.shape[1] == 154
    rows = laid(clip, DOG, "sky = 2.5", joined)
    assert positions(rows[-1], 2.5) == [6]
    assert not messages(caplog)


def test_weights_lie_on_the_parts_between_breaks(comfy, laid, make_clip, caplog):
    """As packs encode them: each part by itself. ComfyUI's own node reads the word BREAK."""
    clip = make_clip("sd1")
    text = f"{DOG} BREAK {LION}"
    first, second = (conditioning(comfy, clip, part) for part in (DOG, LION))
    joined = node(comfy, "ConditioningConcat").execute(conditioning_to=first, conditioning_from=second)[0]
    assert positions(laid(clip, text, "cat = 2.5\nsky = 2.5", joined)[-1], 2.5) == [6, 77 + 3]
    assert positions(laid(clip, text, "cat = 2.5\nsky = 2.5", conditioning(comfy, clip, text))[-1], 2.5) == [6, 10]
    assert not messages(caplog)


def test_weights_lie_on_either_of_sdxls_two_texts(comfy, laid, make_clip, caplog):
    clip = make_clip("sdxl")
    sizes = dict(width=64, height=64, crop_w=0, crop_h=0, target_width=64, target_height=64)
    for texts in (dict(text_g=LION, text_l=DOG), dict(text_g=DOG, text_l=LION), dict(text_g=LION, text_l=LION)):
        positive = node(comfy, "CLIPTextEncodeSDXL").execute(clip=clip, **texts, **sizes)[0]
        assert positions(laid(clip, LION, "cat = 2.5", positive, family="sdxl")[-1], 2.5) == [3]
    assert not messages(caplog)


def test_weights_of_a_long_prompt_lie_on_both_of_its_chunks(comfy, laid, make_clip, caplog):
    clip, text = make_clip("sd1"), LONG * 7 + "a lion and a red cat"
    rows = laid(clip, text, "crown = 2.0\ncat = 2.0", conditioning(comfy, clip, text))
    assert rows.shape[1] == 154
    assert positions(rows[-1]) == expected_positions(text, r"crown|cat")
    assert not messages(caplog)


def test_weights_lie_on_a_negpip_prompt(comfy, laid, make_clip, caplog):
    """Its text holds a key and a value for each token; the weights are those of the tokens."""
    clip = make_clip("sd1")
    scene = other_packs.negpip(comfy, other_packs.scene(fresh=True))
    positive = [[other_packs.in_turns(conditioning(comfy, clip, LION)[0][0]), {}]]
    encoding = SimpleNamespace(**{name: getattr(clip, name) for name in ("tokenize", "tokenizer", "cond_stage_model")})
    encoding.encode_from_tokens_scheduled = lambda tokens: [
        [other_packs.in_turns(text), options] for text, options in clip.encode_from_tokens_scheduled(tokens)
    ]
    rows = laid(encoding, LION, "cat = 2.5", positive, scene.model)
    assert positions(rows[-1], 2.5) == [3]
    assert [message for message in messages(caplog) if "keys and values" not in message] == []


def test_text_that_is_in_no_prompt_is_said(comfy, laid, make_clip, caplog):
    """As when the prompt was edited in one of the two nodes."""
    clip = make_clip("sd1")
    assert laid(clip, LION, "cat = 2.5", conditioning(comfy, clip, "a red cat and a blue bird")) is None
    (message,) = messages(caplog)
    assert NOT_THERE in message
    assert "Connect one text and one CLIP" in message


def test_text_that_a_pack_puts_in_place_of_the_prompt_has_no_weights(comfy, laid, make_clip, caplog):
    clip = make_clip("sd1")
    for tokens in (77, 64, 154):
        scene = other_packs.swapped_texts(tokens)(comfy, other_packs.scene(fresh=True))
        rows = laid(clip, LION, "cat = 2.5", conditioning(comfy, clip, LION), scene.model)
        assert torch.all(rows == 1)
        assert any("a different text from the prompt" in message for message in messages(caplog))
        caplog.clear()


# The node's format


def test_ids_names_and_types_are_those_of_saved_workflows(comfy):
    cls = comfy.NODE_CLASS_MAPPINGS["EBCATokenWeights"]
    inputs = cls.INPUT_TYPES()
    assert {name: spec[0] for name, spec in inputs["required"].items()} == {
        "clip": "CLIP", "text": "STRING", "weights": "STRING"
    }  # fmt: skip
    assert not inputs.get("optional")
    assert list(cls.RETURN_TYPES) == ["EBCA_TOKEN_WEIGHTS", "STRING"]
    assert cls.CATEGORY == "energy attention/prompt"
    assert all(spec[1]["tooltip"] for spec in inputs["required"].values())
    assert all(cls.OUTPUT_TOOLTIPS)
