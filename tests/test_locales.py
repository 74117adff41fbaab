"""Chinese, Japanese and Korean: every text of the nodes is there, says the English of today, and is served."""

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from comfy_api.latest import io

REPO = Path(__file__).resolve().parents[1]
#: The English texts that the translations say, by path.
TRANSLATED = REPO / "tests" / "data" / "translated_english.json"

HAN, KANA, HANGUL = "\u4e00-\u9fff", "\u3041-\u30ff", "\uac00-\ud7a3"
#: What a sentence of the language has, and what it never has.
SCRIPTS = {"zh": (HAN, KANA + HANGUL), "ja": (KANA, HANGUL), "ko": (HANGUL, HAN + KANA)}
in_each_language = pytest.mark.parametrize("language", SCRIPTS)

# Numbers, ids, blocks like u0.4 and quoted prompts: the same in every language.
KEPT = re.compile(r"(?<![\w'])'[a-z ]+'|[a-z0-9.,_-]*[0-9_][a-z0-9.,_-]*", re.ASCII | re.IGNORECASE)


def node_texts(schema: io.Schema) -> dict:
    """A node's English texts in the form of nodeDefs.json. An output without a name shows its type, which is core's."""
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {item.id: {"name": item.display_name or item.id, "tooltip": tooltip(item)} for item in schema.inputs},
        "outputs": {
            str(number): {**({"name": item.display_name} if item.display_name else {}), "tooltip": item.tooltip}
            for number, item in enumerate(schema.outputs)
        },
    }


def tooltip(item: io.Input) -> str | None:
    return item.template.input.tooltip if isinstance(item, io.Autogrow.Input) else item.tooltip


def by_path(texts: dict, prefix: str = "") -> dict[str, str]:
    """Nested texts as {"EBCACompose.inputs.edits.tooltip": text}, in their order."""
    found = {}
    for key, value in texts.items():
        found |= by_path(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def is_name(path: str) -> bool:
    return path.endswith("name")


def read(language: str, file: str) -> dict:
    return json.loads((REPO / "locales" / language / file).read_text(encoding="utf-8"))


def translation(language: str) -> dict[str, str]:
    return by_path(read(language, "nodeDefs.json"))


@pytest.fixture(scope="module")
def schemas(pack) -> list[io.Schema]:
    return [node.define_schema() for node in pack.nodes.NODES]


@pytest.fixture(scope="module")
def english(schemas) -> dict[str, str]:
    return by_path({schema.node_id: node_texts(schema) for schema in schemas})


def kept(text: str, english: dict[str, str]) -> Counter:
    nodes = [name for path, name in english.items() if path.endswith(".display_name") and name in text]
    return Counter([word.strip(".,-") for word in KEPT.findall(text)] + nodes)


def test_every_text_is_there_in_english(english):
    assert not [path for path, text in english.items() if not text]


@in_each_language
def test_every_text_is_there(language, english):
    said = translation(language)
    assert not [path for path in english if path not in said], "a text of a schema is not in locales/"
    assert not [path for path in said if path not in english], "a text in locales/ is in no schema"
    assert list(said) == list(english), "locales/ has the texts in the order of the schemas"
    assert not [path for path, text in said.items() if not text.strip()]


def test_translations_say_the_english_of_today(english):
    translated = json.loads(TRANSLATED.read_text(encoding="utf-8"))
    changed = [path for path in {**translated, **english} if translated.get(path) != english.get(path)]
    lines = [
        f"  {path}\n    was {json.dumps(translated.get(path))}\n    is  {json.dumps(english.get(path))}"
        for path in changed
    ]
    assert not changed, (
        "English texts changed after they were translated:\n" + "\n".join(lines) + "\n"
        f"Translate them anew in locales/{{{','.join(SCRIPTS)}}}/nodeDefs.json, then write the new English to "
        f"{TRANSLATED.relative_to(REPO)}."
    )


@in_each_language
def test_sentences_are_in_the_language(language, english):
    own, foreign = SCRIPTS[language]
    sentences = {path: text for path, text in translation(language).items() if not is_name(path)}
    assert not {path: text for path, text in sentences.items() if not re.search(f"[{own}]", text)}
    assert not {path: text for path, text in translation(language).items() if re.search(f"[{foreign}]", text)}


@in_each_language
def test_numbers_ids_and_names_of_nodes_are_kept(language, english):
    said = translation(language)
    differing = {
        path: (text, said[path])
        for path, text in english.items()
        if not is_name(path) and kept(text, english) != kept(said[path], english)
    }
    assert not differing


@in_each_language
def test_options_of_a_combo_are_kept(language, schemas):
    said = translation(language)
    for schema in schemas:
        for item in schema.inputs:
            if isinstance(item, io.Combo.Input):
                options = [option for option in item.options if re.search(rf"\b{re.escape(option)}\b", item.tooltip)]
                path = f"{schema.node_id}.inputs.{item.id}.tooltip"
                assert all(option in said[path] for option in options), f"{path} explains {options}"


@in_each_language
def test_labels_show_the_ids_that_texts_speak_of(language, english):
    said = translation(language)
    spoken_of = {word for path, text in english.items() if not is_name(path) for word in kept(text, english)}
    names = {path: text for path, text in english.items() if is_name(path) and text in spoken_of}
    assert {"EBCACompose.display_name", "EBCAContextUpdate.inputs.gamma_attn.name"} <= set(names)
    assert not {path: said[path] for path, text in names.items() if text not in said[path]}


@in_each_language
def test_the_same_english_reads_the_same(language, english):
    said = defaultdict(set)
    for path, text in translation(language).items():
        said[english[path]].add(text)
    assert not [texts for texts in said.values() if len(texts) > 1]


@in_each_language
def test_nothing_reads_as_syntax(language):
    """The front end takes names and descriptions as messages of vue-i18n, to which these characters mean something."""
    assert not {path: text for path, text in translation(language).items() if re.search(r"[{}@|<>]", text)}


@in_each_language
def test_categories_are_translated(language, schemas):
    names = {name for schema in schemas for name in schema.category.split("/")}
    assert set(read(language, "main.json")["nodeCategories"]) == names


@pytest.mark.server
def test_comfyui_serves_them(server):
    assert server.get("/i18n") == {
        language: {**read(language, "main.json"), "nodeDefs": read(language, "nodeDefs.json")} for language in SCRIPTS
    }
