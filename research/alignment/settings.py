"""The settings that `compare.py` compares: candidates on the tuning captions, and what is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.columns import Columns
from worlds import SHAPES, THINGS

IMAGES = 500  # of a cell that is scored


@dataclass(frozen=True)
class Method:
    """kind: a function of `methods.py`; settings: its arguments, all plain values.

    A method with `experiments` in its settings is a variation of the update or of composition that gained nothing. Its
    code was removed: its row is printed from the results, and it is not sampled again.
    """

    name: str
    kind: str = "plain"
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def is_recorded_only(self) -> bool:
        return "experiments" in self.settings


PLAIN = Method("plain")


def _ebca(gamma_attn: float, gamma_norm: float, said: str = "", **settings) -> Method:
    name = f"EBCA {gamma_attn:g}, {gamma_norm:g}{said and ', '}{said}"
    return Method(name, "ebca", {"gamma_attn": gamma_attn, "gamma_norm": gamma_norm, **settings})


def _recorded(
    said: str, gamma_attn: float, gamma_norm: float, *experiments: dict[str, Any], tokens: str | None = None,
    apply_to: str = "positive", cfg: float | None = None,
) -> Method:  # fmt: skip
    settings = {"apply_to": apply_to, "experiments": list(experiments)} | ({"tokens": tokens} if tokens else {})
    return _ebca(gamma_attn, gamma_norm, said + _said(cfg), **settings, **_given(cfg))


def _given(cfg: float | None) -> dict[str, float]:
    return {} if cfg is None else {"cfg": cfg}


def _said(cfg: float | None) -> str:
    return "" if cfg is None else f", cfg {cfg:g}"


def _cfg(cfg: float) -> Method:
    return Method(f"cfg {cfg:g}", "plain", {"cfg": cfg})


def _words(weight: float, cfg: float | None = None) -> Method:
    return Method(f"(word:{weight:g}){_said(cfg)}", "weighted_words", {"weight": weight, **_given(cfg)})


def _excite(step_size: float, subjects: str = "shapes", refines: bool = False, **settings) -> Method:
    said = f"{subjects}{', refined' * refines}{''.join(f', {name} {value:g}' for name, value in settings.items())}"
    settings |= {"step_size": step_size, "subjects": subjects, "refines": refines}
    return Method(f"Attend-and-Excite {step_size:g}, {said}", "attend_and_excite", settings)


def _nag(scale: float, tau: float = 2.5, alpha: float = 0.25, cfg: float | None = None) -> Method:
    settings = {"scale": scale, "tau": tau, "alpha": alpha, **_given(cfg)}
    return Method(f"NAG {scale:g}, {tau:g}, {alpha:g}{_said(cfg)}", "normalised_attention", settings)


def _pag(scale: float, cfg: float | None = None) -> Method:
    return Method(f"PAG {scale:g}{_said(cfg)}", "perturbed_attention", {"scale": scale, **_given(cfg)})


def _composable(strength: float | None = None, end: float = 1.0, cfg: float | None = None) -> Method:
    if strength is None:
        return Method(f"composable, objects alone{_said(cfg)}", "composable", _given(cfg))
    name = f"composable, whole caption and objects at {strength:g}"
    settings = {"strength": strength, **({"end": end} if end < 1 else {}), **_given(cfg)}
    return Method(name + (f" until {end:g}" if end < 1 else "") + _said(cfg), "composable", settings)


def _objects(
    alpha: float, start: float = 0.0, end: float = 1.0, gamma_norm: float = 0.0, gamma_end: float = 1.0,
    cfg: float | None = None, **experiment: Any,
) -> Method:  # fmt: skip
    settings = {"alpha": alpha, "start": start, "end": end, **_given(cfg)}
    name = f"EBCA Compose, each object at {alpha:g} from {start:g} to {end:g}"
    if experiment:
        name += ", " + " ".join(f"{value:g}" if name != "name" else value for name, value in experiment.items())
        settings["experiments"] = [experiment]
    if gamma_norm:
        name += f", and EBCA 0, {gamma_norm:g}"
        settings["gamma_norm"] = gamma_norm
        if gamma_end != 1:
            name += f" until {gamma_end:g}"
            settings["gamma_end"] = gamma_end
    return Method(name + _said(cfg), "object_contexts", settings)


def _part(of: str, alpha: float, start: float = 0.0, end: float = 1.0, direction: str = "add") -> dict[str, Any]:
    return {"of": of, "alpha": alpha, "start": start, "end": end, "direction": direction}


def _texts(*parts: dict[str, Any], cfg: float | None = None, **update: float) -> Method:
    said = ", ".join(_PART[part["of"]] + _said_of(**part) for part in parts)
    if update:
        said += f", and EBCA 0, {update['gamma_norm']:g} until {update['gamma_end']:g}"
    return Method(f"EBCA Compose, {said}{_said(cfg)}", "composed", {"parts": list(parts), **update, **_given(cfg)})


_PART = {
    "objects": "each object",
    "shapes": "each shape without its colour",
    "orders": "the caption in its other orders",
    "all but one": "the caption without one object, for each",
    "ten": "ten names of the objects",
    "nothing": "the empty prompt",
}


def _said_of(of: str, alpha: float, start: float, end: float, direction: str) -> str:
    signed = f" at {'-' * (direction == 'remove')}{alpha:g}"
    return signed if (start, end) == (0, 1) else f"{signed} from {start:g} to {end:g}"


_EACH = _part("objects", 0.1, 0.0, 0.5)
_AWAY = _part("nothing", 0.2, 0.0, 0.5, "remove")
_AWAY_THROUGHOUT = _part("nothing", 0.2, direction="remove")

EULER = Method(
    "plain, euler, 25 steps", "plain", {"sampler": {"name": "euler", "scheduler": "normal", "steps": 25}}
)  # fmt: skip
FLOAT32 = Method("plain, float32", "plain", {"precision": "float32"})

ALL_WORDS = {"name": "competing", "sharpness": 1.0, "temperature": None}
LEAST_FOUND = {"name": "competing", "sharpness": 4.0, "temperature": 0.3}
CENTRED = {"name": "centred"}
KEYS_ONLY = {"name": "keys_only"}
CANDIDATES = [
    PLAIN,
    # The paper's form, its parts.
    _ebca(0.01, 0.02),
    _ebca(0.03, 0.06),
    _ebca(0.1, 0.2),
    _ebca(0.03, 0.0),
    _ebca(0.1, 0.0),
    _ebca(0.3, 0.0),
    _ebca(0.0, 0.06),
    _ebca(0.0, 0.2),
    _ebca(0.03, 0.06, "positive half", apply_to="positive"),
    _ebca(0.1, 0.0, "positive half", apply_to="positive"),
    # Baselines.
    _cfg(2.5),
    _cfg(4.0),
    _cfg(7.5),
    _words(1.1),
    _words(1.3),
    _excite(5.0),
    _excite(10.0),
    _excite(10.0, "content"),
    _excite(20.0),
    _excite(20.0, "content"),
    _excite(40.0),
    _excite(10.0, refines=True),
    _nag(0.5),
    _nag(1.0),
    _nag(3.0),
    _pag(0.3),
    _pag(1.0),
    _composable(),
    _composable(0.1),
    _objects(0.1),
    # Further parts.
    _ebca(0.1, 0.0, "content words", tokens="content"),
    _ebca(0.1, 0.0, "content words, positive half", tokens="content", apply_to="positive"),
    _ebca(0.1, 0.0, "colour words, positive half", tokens="colours", apply_to="positive"),
    _ebca(0.1, 0.0, "first half of the steps", end=0.5),
    # Variations of the update, recorded only.
    _recorded("reversed", 0.1, 0.0, {"name": "reversed_pull"}, tokens="content"),
    _recorded("balanced", 0.1, 0.0, {"name": "balanced", "temperature": 1.0}, tokens="content"),
    _recorded("competing", 0.1, 0.0, ALL_WORDS, tokens="content"),
    _recorded("competing, least found word", 0.1, 0.0, LEAST_FOUND, tokens="content"),
    _recorded("centred", 0.1, 0.0, CENTRED),
    _recorded("centred", 0.4, 0.0, CENTRED),
    _recorded("competing, least found word", 0.4, 0.0, LEAST_FOUND, tokens="content"),
    _recorded("relative, content words", 0.1, 0.0, {"name": "relative", "per_token": True}, tokens="content"),
    _recorded("five small steps", 0.02, 0.0, {"name": "small_steps", "count": 5}, apply_to="both"),
    # Under stronger guidance, where plain draws more objects, and more that nobody asked for.
    _cfg(1.75),
    _ebca(0.0, 0.06, "cfg 2.5", cfg=2.5),
    _ebca(0.1, 0.0, "cfg 2.5", cfg=2.5),
    _ebca(0.0, 0.1, "cfg 3", cfg=3.0),
    _excite(5.0, cfg=2.5),
    _excite(2.5, cfg=2.5),
    _excite(10.0, cfg=2.5),
    _excite(10.0, cfg=3.0),
    _excite(10.0, "content", cfg=2.5),
    _composable(0.1, 0.5, cfg=2.5),
    _composable(0.1, 0.3, cfg=2.5),
    _composable(cfg=3.75),
    _words(1.1, cfg=2.5),
    _words(1.3, cfg=2.5),
    _nag(0.5, cfg=2.5),
    _nag(3.0, cfg=2.5),
    _pag(0.3, cfg=2.5),
    _objects(0.1, 0.0, 0.3, cfg=2.5),
    _objects(0.1, 0.0, 0.3),
    _objects(0.05, 0.0, 0.3, cfg=2.5),
    _objects(0.2, 0.0, 0.3, cfg=2.5),
    _objects(0.1, 0.0, 0.2, cfg=2.5),
    _objects(0.2, 0.0, 0.2, cfg=2.5),
    _objects(0.4, 0.0, 0.2, cfg=2.5),
    _objects(0.1, 0.0, 0.5, cfg=2.5),
    _objects(0.1, 0.0, 0.3, 0.06, cfg=2.5),
    _objects(0.2, 0.0, 0.3, 0.06, cfg=2.5),
    _objects(0.1, 0.0, 0.3, cfg=2.5, name="claimed", sharpness=2.0),
    _objects(0.2, 0.0, 0.3, cfg=2.5, name="claimed", sharpness=2.0),
    _objects(0.1, 0.0, 0.3, cfg=2.5, name="lacking", sharpness=2.0),
    _objects(0.1, 0.0, 0.5, cfg=2.5, name="lacking", sharpness=2.0),
    _objects(0.1, 0.0, 0.5, 0.06, 0.5, cfg=2.5, name="lacking", sharpness=2.0),
    _objects(0.1, 0.0, 0.5, cfg=2.5, name="lacking", sharpness=6.0),
    _objects(0.15, 0.0, 0.5, cfg=2.5, name="lacking", sharpness=2.0),
    _objects(0.1, 0.0, 0.7, cfg=2.5, name="lacking", sharpness=2.0),
    _objects(0.1, 0.0, 0.7, cfg=2.5),
    _cfg(3.0),
    _excite(5.0, cfg=3.0),
    _objects(0.1, 0.0, 0.5, 0.06, 0.5, cfg=3.0),
    _objects(0.1, 0.0, 0.5, cfg=2.0),
    _objects(0.1, 0.0, 0.5, cfg=3.0),
    _objects(0.1, 0.0, 0.5, cfg=4.0),
    _objects(0.1, 0.0, 0.5),
    _ebca(0.0, 0.02, "cfg 2.5", cfg=2.5),
    _ebca(0.0, 0.1, "cfg 2.5", cfg=2.5),
    _ebca(0.0, 0.06, "positive half, cfg 2.5", apply_to="positive", cfg=2.5),
    _ebca(0.0, 0.06, "first half of the steps, cfg 2.5", end=0.5, cfg=2.5),
    _ebca(0.0, 0.06, "until 0.3, cfg 2.5", end=0.3, cfg=2.5),
    _ebca(0.0, 0.12, "first half of the steps, cfg 2.5", end=0.5, cfg=2.5),
    _ebca(0.0, 0.2, "until 0.3, cfg 2.5", end=0.3, cfg=2.5),
    _ebca(0.01, 0.06, "first half of the steps, cfg 2.5", end=0.5, cfg=2.5),
    _ebca(0.1, 0.06, "first half of the steps, cfg 2.5", end=0.5, cfg=2.5),
    _objects(0.1, 0.0, 0.3, 0.06, 0.5, cfg=2.5),
    _objects(0.1, 0.0, 0.3, 0.06, 0.5, cfg=3.0),
    _ebca(0.0, 0.06, "first half of the steps, cfg 3", end=0.5, cfg=3.0),
    _ebca(0.0, 0.06, "second half of the steps, cfg 2.5", start=0.5, cfg=2.5),
    _recorded("competing, least found word", 0.1, 0.0, LEAST_FOUND, tokens="content", cfg=2.5),
    _recorded("competing, least found word", 0.4, 0.0, LEAST_FOUND, tokens="content", cfg=2.5),
    _recorded("competing, least found word", 0.4, 0.06, LEAST_FOUND, tokens="content", cfg=2.5),
    _recorded("competing, least found shape", 0.4, 0.0, LEAST_FOUND, tokens="shapes", cfg=2.5),
    _recorded("competing, least found word, keys only", 0.4, 0.0, LEAST_FOUND, KEYS_ONLY, tokens="content", cfg=2.5),
    _recorded("competing, least found word, keys only", 1.6, 0.0, LEAST_FOUND, KEYS_ONLY, tokens="content", cfg=2.5),
    _recorded("centred", 0.4, 0.0, CENTRED, cfg=2.5),
    _recorded("centred", 1.6, 0.0, CENTRED, cfg=2.5),
    _recorded("centred", 0.4, 0.06, CENTRED, cfg=2.5),
    _recorded("centred, content words", 0.4, 0.0, CENTRED, tokens="content", cfg=2.5),
    _recorded("keys only", 0.1, 0.2, KEYS_ONLY, apply_to="both", cfg=2.5),
    _recorded("keys only", 0.0, 0.06, KEYS_ONLY, apply_to="both", cfg=2.5),
    _recorded("norm spread", 0.0, 0.3, {"name": "spread_norm", "temperature": 200.0}, cfg=2.5),
    _recorded("even norms of words", 0.03, 0.0, {"name": "even_norms"}, tokens="content", cfg=2.5),
    _recorded("even norms of words", 0.1, 0.0, {"name": "even_norms"}, tokens="content", cfg=2.5),
    _recorded("even norms of words", 0.1, 0.06, {"name": "even_norms"}, tokens="content", cfg=2.5),
    # Beside each object, other texts.
    _texts(_part("orders", 1.0), cfg=2.5),
    _texts(_part("orders", 1.0, 0.0, 0.5), cfg=2.5),
    _texts(_part("orders", 1.0), _part("objects", 0.2, 0.0, 0.5), cfg=2.5),
    _texts(_part("orders", 1.0), _part("objects", 0.3, 0.0, 0.5), cfg=2.5),
    _texts(_part("all but one", 0.1, 0.0, 0.5), cfg=2.5),
    _texts(_part("all but one", 0.3, 0.0, 0.5), cfg=2.5),
    _texts(_part("shapes", 0.1, 0.0, 0.5), cfg=2.5),
    _texts(_EACH, _part("objects", 0.05, 0.5, 1.0, "remove"), cfg=2.5),
    _texts(_AWAY_THROUGHOUT, cfg=2.5),
    _texts(_EACH, _part("nothing", 0.1, direction="remove"), cfg=2.5),
    _texts(_EACH, _AWAY_THROUGHOUT, cfg=2.5),
    _texts(_EACH, _part("nothing", 0.3, direction="remove"), cfg=2.5),
    _texts(_part("objects", 0.15, 0.0, 0.5), _AWAY_THROUGHOUT, cfg=2.5),
    _texts(_part("objects", 0.15, 0.0, 0.5), _part("nothing", 0.3, direction="remove"), cfg=2.5),
    _texts(_part("objects", 0.2, 0.0, 0.5), _part("nothing", 0.4, direction="remove"), cfg=2.5),
    _texts(_EACH, _part("nothing", 0.2, 0.5, 1.0, "remove"), cfg=2.5),
    _texts(_EACH, _AWAY, cfg=2.5),
    _texts(_part("all but one", 0.1, 0.0, 0.5), _AWAY_THROUGHOUT, cfg=2.5),
    _texts(_EACH, _AWAY_THROUGHOUT, cfg=2.0),
    _texts(_EACH, _AWAY_THROUGHOUT, cfg=3.0),
    _texts(_EACH, _AWAY, cfg=3.0),
    _texts(_EACH, _AWAY, cfg=3.0, gamma_norm=0.06, gamma_end=0.5),
    # Ten concepts: each as strong as one of three, or the strength of three shared out.
    _texts(_part("ten", 0.1, 0.0, 0.5), _AWAY, cfg=3.0),
    _texts(_part("ten", 0.03, 0.0, 0.5), _AWAY, cfg=3.0),
    _composable(0.1, 0.5, cfg=3.0),
    EULER,
    FLOAT32,
]

HIGHER, HIGHEST = _cfg(2.5), _cfg(3.0)
EXCITE_HIGHER = _excite(5.0, cfg=2.5)
AVERAGED = _composable(0.1, 0.5, cfg=2.5)
AVERAGED_HIGHEST = _composable(0.1, 0.5, cfg=3.0)
AUTHORS, ATTENTION = _ebca(0.01, 0.02), _ebca(0.1, 0.0)
WORDS_HIGHER = _words(1.3, cfg=2.5)
NORM = _ebca(0.0, 0.06)
NORM_HIGHER = _ebca(0.0, 0.06, "cfg 2.5", cfg=2.5)
NORM_EARLY = _ebca(0.0, 0.06, "first half of the steps, cfg 2.5", end=0.5, cfg=2.5)
COMPOSED = _objects(0.1, 0.0, 0.5, cfg=2.5)
AWAY = _texts(_EACH, _AWAY, cfg=2.5)
AWAY_HIGHEST = _texts(_EACH, _AWAY, cfg=3.0)
AWAY_THROUGHOUT = _texts(_EACH, _AWAY_THROUGHOUT, cfg=2.5)
BOTH = _objects(0.1, 0.0, 0.3, 0.06, 0.5, cfg=3.0)
METHODS = [
    PLAIN,
    HIGHER,
    HIGHEST,
    _words(1.3),
    WORDS_HIGHER,
    _excite(5.0),
    EXCITE_HIGHER,
    _composable(0.1),
    AVERAGED,
    AVERAGED_HIGHEST,
    _pag(0.3),
    _nag(0.5),
    _nag(3.0),
    AUTHORS,
    ATTENTION,
    NORM,
    NORM_HIGHER,
    NORM_EARLY,
    COMPOSED,
    BOTH,
    AWAY_THROUGHOUT,
    AWAY,
    AWAY_HIGHEST,
]
#: Pairs whose difference is printed below the table.
COMPARED = [
    (AWAY_HIGHEST, HIGHEST), (AWAY_HIGHEST, EXCITE_HIGHER), (AWAY_HIGHEST, AVERAGED_HIGHEST), (AWAY, HIGHER),
    (AWAY, EXCITE_HIGHER), (AWAY, AVERAGED), (AWAY, COMPOSED), (AWAY_THROUGHOUT, HIGHER),
    (AWAY_THROUGHOUT, COMPOSED), (COMPOSED, HIGHER), (COMPOSED, EXCITE_HIGHER),
    (COMPOSED, AVERAGED), (EXCITE_HIGHER, HIGHER), (AVERAGED, HIGHER), (NORM_EARLY, HIGHER), (NORM_HIGHER, HIGHER),
    (BOTH, HIGHEST), (WORDS_HIGHER, HIGHER),
]  # fmt: skip
FIGURE = [PLAIN, HIGHER, EXCITE_HIGHER, AUTHORS, COMPOSED, AWAY_HIGHEST]

# The transformer, which normalises its keys: the norm term has no effect there. Attend-and-Excite, NAG and PAG are made
# for the layers of a U-Net.
_GAMMAS = (0.03, 0.1, 0.3)  # with 0.3 no picture is right
_LOWER = 1.75
_EMPTY_ALONE = _texts(_AWAY, cfg=2.5)
TRANSFORMER_CANDIDATES = [
    PLAIN,
    *(_cfg(cfg) for cfg in (_LOWER, 2.5, 4.0)),
    AUTHORS,
    *(_ebca(gamma, 0.0) for gamma in _GAMMAS),
    *(_ebca(gamma, 0.0, "cfg 2.5", cfg=2.5) for gamma in (0.03, 0.1)),
    *(_composable(0.1, 0.5, cfg=cfg) for cfg in (_LOWER, 2.5)),
    *(_objects(alpha, 0.0, 0.5, cfg=cfg) for cfg in (_LOWER, 2.5) for alpha in (0.1, 0.2, 0.4)),
    *(_texts(_part("nothing", alpha, 0.0, 0.5, "remove"), cfg=2.5) for alpha in (0.2, 0.4)),
    *(_texts(_EACH, _AWAY, cfg=cfg) for cfg in (1.25, _LOWER, 2.5, 4.0)),
    _texts(_EACH, _AWAY_THROUGHOUT, cfg=2.5),
    *(
        _texts(_part("objects", 0.2, 0.0, 0.5), _part("nothing", 0.4, 0.0, 0.5, "remove"), cfg=cfg)
        for cfg in (_LOWER, 2.5)
    ),
]
TRANSFORMER_METHODS = [
    PLAIN,
    HIGHER,
    HIGHEST,
    _words(1.3),
    AVERAGED,
    AVERAGED_HIGHEST,
    AUTHORS,
    *(_ebca(gamma, 0.0) for gamma in _GAMMAS),
    COMPOSED,
    _EMPTY_ALONE,
    AWAY,
    AWAY_HIGHEST,
]
TRANSFORMER_COMPARED = [
    (AWAY_HIGHEST, HIGHEST), (AWAY_HIGHEST, AVERAGED_HIGHEST), (AWAY, HIGHER), (AWAY, AVERAGED), (AWAY, COMPOSED),
    (COMPOSED, HIGHER), (COMPOSED, AVERAGED), (_EMPTY_ALONE, HIGHER), (AVERAGED, HIGHER),
]  # fmt: skip

# The joint-attention transformer: no update, and the way that its users run it is cfg 1, without a negative prompt.
_NO_GUIDANCE = _cfg(1.0)
AWAY_UNGUIDED = _texts(_EACH, _AWAY, cfg=1.0)
JOINT_CANDIDATES = [
    PLAIN,
    *(_cfg(cfg) for cfg in (1.0, _LOWER, 2.5)),
    *(_objects(alpha, 0.0, 0.5, cfg=cfg) for cfg in (1.0, 2.5) for alpha in (0.05, 0.1, 0.2, 0.4)),
    *(_texts(_part("nothing", alpha, 0.0, 0.5, "remove"), cfg=1.0) for alpha in (0.1, 0.2, 0.4)),
    *(_texts(_EACH, _AWAY, cfg=cfg) for cfg in (1.0, _LOWER, 2.5)),
]
JOINT_METHODS = [PLAIN, _NO_GUIDANCE, HIGHER, AVERAGED, COMPOSED, _EMPTY_ALONE, AWAY, AWAY_UNGUIDED]
JOINT_COMPARED = [
    (AWAY, HIGHER), (AWAY, AVERAGED), (AWAY, COMPOSED), (COMPOSED, HIGHER), (COMPOSED, AVERAGED),
    (_EMPTY_ALONE, HIGHER), (AWAY_UNGUIDED, _NO_GUIDANCE), (AWAY_UNGUIDED, PLAIN),
]  # fmt: skip


SETS = ("two objects", "three objects", "two objects, one a rare pair", "two objects, left of / above")
SCORED = Columns(SETS, SETS[:2], SHAPES.errors, SETS[3])
TUNING = Columns(SETS[1:2], SETS[1:2], SHAPES.errors)


@dataclass(frozen=True)
class Study:
    """What is compared on one trained model.

    parts: of the method, by the names that the figure of all models has, each with what it is compared with.
    picture: what follows the document's name in that of the pictures.
    comments: what stands before `scores` and `candidates` in the document's comments around the tables.
    scored, tuning: the columns of both tables. pictured: the scored ones that the figures show, in words.
    images, tuning_images: of each cell of both tables. document: in docs/. results: the file beside this one.
    """

    candidates: Sequence[Method]
    methods: Sequence[Method]
    compared: Sequence[tuple[Method, Method]]
    figure: Sequence[Method]
    parts: Sequence[tuple[str, Method, Method]]
    picture: str = ""
    comments: str = ""
    scored: Columns = SCORED
    tuning: Columns = TUNING
    pictured: str = "two and of three objects"
    images: int = IMAGES
    tuning_images: int = 200
    document: str = "alignment.md"
    results: str = "results.jsonl"


UNET = "unet"
GUIDANCE, ATTENTION_TERM, AUTHORS_UPDATE = "cfg 3 (no EBCA)", "update: attention term", "update: authors' gammas"
NORM_TERM, EACH_OBJECT = "update: norm term, first half", "each object composed in"
EMPTY_REMOVED, CONCEPTS = "the empty prompt removed too", "both (EBCA Concepts), cfg 3"
PARTS = [
    (GUIDANCE, HIGHEST, PLAIN), (AUTHORS_UPDATE, AUTHORS, PLAIN), (ATTENTION_TERM, ATTENTION, PLAIN),
    (NORM_TERM, NORM_EARLY, HIGHER), (EACH_OBJECT, COMPOSED, HIGHER), (EMPTY_REMOVED, AWAY, COMPOSED),
    (CONCEPTS, AWAY_HIGHEST, HIGHEST),
]  # fmt: skip
JOINT_PARTS = [
    (part, method, other) for part, method, other in PARTS if method in JOINT_METHODS and other in JOINT_METHODS
]
TRANSFORMER_PARTS = [(part, method, other) for part, method, other in PARTS if method in TRANSFORMER_METHODS]

# The things model.
_SPLITS = ("animal-animal", "animal-object", "object-object")
_MORE = 4.0  # a higher cfg than THINGS.cfg
_THINGS_GAMMAS = [(0.03, 0.0), (0.1, 0.0), (0.3, 0.0), (0.0, 0.02), (0.0, 0.06), (0.0, 0.2), (0.03, 0.06)]
_COARSE, _FINE = 8, 16  # sides of the grids that Attend-and-Excite reads
THINGS_CANDIDATES = [
    PLAIN,
    *(_cfg(cfg) for cfg in (1.5, _MORE, 6.0)),
    *(_words(weight, cfg=_MORE) for weight in (1.1, 1.3)),
    *(_excite(step, "nouns", side=side, cfg=_MORE) for step in (5.0, 20.0) for side in (_COARSE, _FINE)),
    *(_composable(0.1, end, cfg=_MORE) for end in (0.5, 1.0)),
    _composable(0.2, 0.5, cfg=_MORE),
    *(_nag(scale, cfg=_MORE) for scale in (0.5, 3.0)),
    AUTHORS,
    *(_ebca(*gammas) for gammas in _THINGS_GAMMAS),
    _ebca(0.0, 0.06, f"first half of the steps, cfg {_MORE:g}", end=0.5, cfg=_MORE),
    *(_objects(alpha, 0.0, 0.5, cfg=_MORE) for alpha in (0.05, 0.1, 0.2, 0.4)),
    *(_texts(_part("nothing", alpha, 0.0, 0.5, "remove"), cfg=_MORE) for alpha in (0.2, 0.4)),
    *(_texts(_EACH, _AWAY, cfg=cfg) for cfg in (None, _MORE)),
    _texts(_EACH, _AWAY_THROUGHOUT, cfg=_MORE),
    _texts(_part("objects", 0.2, 0.0, 0.5), _part("nothing", 0.2, 0.0, 0.5, "remove"), cfg=_MORE),
    _texts(_part("objects", 0.2, 0.0, 0.5), _part("nothing", 0.4, 0.0, 0.5, "remove"), cfg=_MORE),
]
THINGS_HIGHER = _cfg(_MORE)
THINGS_WORDS = _words(1.1, cfg=_MORE)
THINGS_EXCITE = _excite(5.0, "nouns", side=_COARSE, cfg=_MORE)
THINGS_AVERAGED = _composable(0.1, 0.5, cfg=_MORE)
THINGS_NAG = _nag(0.5, cfg=_MORE)
THINGS_NORM = _ebca(0.0, 0.06, f"first half of the steps, cfg {_MORE:g}", end=0.5, cfg=_MORE)
THINGS_COMPOSED = _objects(0.1, 0.0, 0.5, cfg=_MORE)
THINGS_CONCEPTS = _texts(_EACH, _AWAY, cfg=_MORE)
THINGS_METHODS = [
    PLAIN,
    THINGS_HIGHER,
    THINGS_WORDS,
    THINGS_EXCITE,
    THINGS_AVERAGED,
    THINGS_NAG,
    AUTHORS,
    ATTENTION,
    NORM,
    THINGS_NORM,
    THINGS_COMPOSED,
    THINGS_CONCEPTS,
]
THINGS_COMPARED = [
    *((THINGS_CONCEPTS, other) for other in (THINGS_HIGHER, THINGS_EXCITE, THINGS_AVERAGED, THINGS_COMPOSED)),
    *((THINGS_COMPOSED, other) for other in (THINGS_HIGHER, THINGS_EXCITE, THINGS_AVERAGED)),
    *((one, THINGS_HIGHER) for one in (THINGS_EXCITE, THINGS_AVERAGED, THINGS_NORM)),
]
THINGS_PARTS = [
    (f"cfg {_MORE:g} (no EBCA)", THINGS_HIGHER, PLAIN), (AUTHORS_UPDATE, AUTHORS, PLAIN),
    (ATTENTION_TERM, ATTENTION, PLAIN), (NORM_TERM, THINGS_NORM, THINGS_HIGHER),
    (EACH_OBJECT, THINGS_COMPOSED, THINGS_HIGHER), (EMPTY_REMOVED, THINGS_CONCEPTS, THINGS_COMPOSED),
    (f"both (EBCA Concepts), cfg {_MORE:g}", THINGS_CONCEPTS, THINGS_HIGHER),
]  # fmt: skip
STUDIES = {
    UNET: Study(CANDIDATES, METHODS, COMPARED, FIGURE, PARTS),
    "transformer": Study(
        TRANSFORMER_CANDIDATES, TRANSFORMER_METHODS, TRANSFORMER_COMPARED,
        [PLAIN, HIGHER, AUTHORS, COMPOSED, AWAY_HIGHEST], TRANSFORMER_PARTS, "_transformer", "transformer ",
    ),
    "joint": Study(
        JOINT_CANDIDATES, JOINT_METHODS, JOINT_COMPARED, [PLAIN, HIGHER, COMPOSED, AWAY, AWAY_UNGUIDED], JOINT_PARTS,
        "_joint", "joint ", images=300,
    ),
    "things": Study(
        THINGS_CANDIDATES, THINGS_METHODS, THINGS_COMPARED,
        [PLAIN, THINGS_HIGHER, THINGS_EXCITE, AUTHORS, THINGS_COMPOSED, THINGS_CONCEPTS], THINGS_PARTS,
        scored=Columns(_SPLITS, _SPLITS, THINGS.errors), tuning=Columns(_SPLITS, _SPLITS, THINGS.errors),
        pictured="the three sets of prompts", tuning_images=100, document="things.md", results="things.jsonl",
    ),
}
