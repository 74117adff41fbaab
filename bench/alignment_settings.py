"""The settings that `alignment.py` compares: candidates on the tuning captions, and what is scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: For every method but those that say otherwise; chosen for speed (docs/alignment.md).
SAMPLER = {"name": "dpmpp_2m", "scheduler": "normal", "steps": 10}
CFG = 1.25


@dataclass(frozen=True)
class Method:
    """kind: a function of `alignment_methods.py`; settings: its arguments, all plain values."""

    name: str
    kind: str = "plain"
    settings: dict[str, Any] = field(default_factory=dict)


PLAIN = Method("plain")


def _ebca(gamma_attn: float, gamma_norm: float, said: str = "", **settings) -> Method:
    name = f"EBCA {gamma_attn:g}, {gamma_norm:g}{said and ', '}{said}"
    return Method(name, "ebca", {"gamma_attn": gamma_attn, "gamma_norm": gamma_norm, **settings})


def _experiment(said: str, gamma: float, tokens: str | None = None, apply_to: str = "positive", **of) -> Method:
    settings = {"apply_to": apply_to, "experiment": of} | ({"tokens": tokens} if tokens else {})
    return _ebca(gamma, 0.0, said, **settings)


def _cfg(cfg: float) -> Method:
    return Method(f"cfg {cfg:g}", "plain", {"cfg": cfg})


def _words(weight: float) -> Method:
    return Method(f"(word:{weight:g})", "weighted_words", {"weight": weight})


def _excite(step_size: float, subjects: str = "shapes", refines: bool = False, **settings) -> Method:
    said = f"{subjects}{', refined' * refines}{''.join(f', {name} {value:g}' for name, value in settings.items())}"
    settings |= {"step_size": step_size, "subjects": subjects, "refines": refines}
    return Method(f"Attend-and-Excite {step_size:g}, {said}", "attend_and_excite", settings)


def _nag(scale: float, tau: float = 2.5, alpha: float = 0.25) -> Method:
    settings = {"scale": scale, "tau": tau, "alpha": alpha}
    return Method(f"NAG {scale:g}, {tau:g}, {alpha:g}", "normalised_attention", settings)


def _pag(scale: float) -> Method:
    return Method(f"PAG {scale:g}", "perturbed_attention", {"scale": scale})


def _composable(strength: float | None = None) -> Method:
    if strength is None:
        return Method("composable, objects alone", "composable")
    return Method(f"composable, whole caption and objects at {strength:g}", "composable", {"strength": strength})


def _objects(alpha: float, start: float = 0.0, end: float = 1.0) -> Method:
    settings = {"alpha": alpha, "start": start, "end": end}
    return Method(f"EBCA Compose, each object at {alpha:g} from {start:g} to {end:g}", "object_contexts", settings)


EULER = Method(
    "plain, euler, 25 steps", "plain", {"sampler": {"name": "euler", "scheduler": "normal", "steps": 25}}
)  # fmt: skip
FLOAT32 = Method("plain, float32", "plain", {"precision": "float32"})

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
    # Rivals.
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
    # Variations.
    _experiment("reversed", 0.1, "content", name="reversed_pull"),
    _experiment("balanced", 0.1, "content", name="balanced", temperature=1.0),
    _experiment("competing", 0.1, "content", name="competing", sharpness=1.0, temperature=None),
    _experiment("competing, least found word", 0.1, "content", name="competing", sharpness=4.0, temperature=0.3),
    _experiment("centred", 0.1, name="centred"),
    _experiment("centred", 0.4, name="centred"),
    _experiment("competing, least found word", 0.4, "content", name="competing", sharpness=4.0, temperature=0.3),
    _experiment("relative, content words", 0.1, "content", name="relative", per_token=True),
    _experiment("five small steps", 0.02, apply_to="both", name="small_steps", count=5),
    # Under stronger guidance, where plain draws more objects, and more that nobody asked for.
    _cfg(1.75),
    _ebca(0.0, 0.06, "cfg 2.5", cfg=2.5),
    _ebca(0.1, 0.0, "cfg 2.5", cfg=2.5),
    _ebca(0.0, 0.1, "cfg 3", cfg=3.0),
    _excite(5.0, cfg=2.5),
    EULER,
    FLOAT32,
]

HIGHER = _cfg(2.5)
EXCITE_HIGHER = _excite(5.0, cfg=2.5)
EBCA_HIGHER = _ebca(0.0, 0.06, "cfg 2.5", cfg=2.5)
METHODS = [
    PLAIN,
    HIGHER,
    _words(1.3),
    _excite(5.0),
    EXCITE_HIGHER,
    _pag(0.3),
    _nag(0.5),
    _nag(3.0),
    _ebca(0.01, 0.02),
    _ebca(0.1, 0.0),
    _ebca(0.0, 0.06),
    EBCA_HIGHER,
]
#: Pairs whose difference is printed below the table.
COMPARED = [(EBCA_HIGHER, HIGHER), (EXCITE_HIGHER, HIGHER), (EBCA_HIGHER, EXCITE_HIGHER)]
FIGURE = [METHODS[i] for i in (0, 1, 3, 4, 8, 11)]
