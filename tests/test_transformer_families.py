"""Transformers beyond those of support/toy_dit.py: variants of Wan, Anima, Cosmos 1, LTX-2, Stable Audio, ACE-Step.

A layer by hand is ComfyUI's own module, run with another text; its energy is differentiated by autograd.
"""
from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.ldm.lightricks.model as ltx
import comfy.ldm.modules.attention as attention
import comfy.ldm.wan.model as wan
import pytest
import torch
from einops import rearrange
from torch import Tensor

from support import toy_dit_more as toy
from support.host import node
from support.sampling import relative_error

UPDATED = [family for family in toy.FAMILIES if family != "stable_audio3"]
#: Its rotation of keys computes in float32.
TOLERANCE = {"ace": 1e-5}


@pytest.fixture
def family(request):
    if not toy.exists(request.param):
        pytest.skip("this ComfyUI does not have the family")
    return request.param


each_family = pytest.mark.parametrize("family", toy.FAMILIES, indirect=True)
each_updated = pytest.mark.parametrize("family", UPDATED, indirect=True)


@pytest.fixture(scope="module")
def registry(pack):
    return importlib.import_module(f"{pack.__name__}.comfyui_binding.architectures.registry")


@pytest.fixture(scope="module")
def denoiser_call(pack):
    return importlib.import_module(f"{pack.__name__}.comfyui_binding.runtime.denoiser_call")


def updated(comfy, model, gamma: float = 0.05, **inputs):
    return node(comfy, "EBCAContextUpdate").execute(model=model, gamma_attn=gamma, gamma_norm=0.0, **inputs)[0]


def edit(comfy, conditioning, alpha: float, gamma: float = 0.0, **inputs):
    return node(comfy, "EBCAEditContext").execute(
        conditioning=conditioning, alpha=alpha, start_percent=0.0, gamma_attn=gamma, gamma_norm=0.0,
        gamma_start_percent=0.0, **inputs,
    )[0]  # fmt: skip


def composed(comfy, model, *edits):
    return node(comfy, "EBCACompose").execute(model=model, edits={f"edit{i}": one for i, one in enumerate(edits)})[0]


# --- a layer by hand ---


@dataclass
class Layer:
    """A text cross-attention module of ComfyUI's, and how it is called."""

    name: str
    module: torch.nn.Module
    block: torch.nn.Module | None
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    block_kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def stream(self) -> str:
        return self.name[0] if self.block is not None else ""

    @property
    def keyword(self) -> str | None:
        return next((name for name in ("context", "encoder_hidden_states") if name in self.kwargs), None)

    @property
    def given(self) -> Tensor:
        """The text as the module is given it."""
        return self.args[1] if self.keyword is None else self.kwargs[self.keyword]

    @property
    def image_rows(self) -> int:
        return self.kwargs.get("context_img_len") or 0 if hasattr(self.module, "k_img") else 0

    def text(self) -> Tensor:
        """The text [b, t, c], before the block changes it."""
        if self.block is None:
            given = self.given.transpose(0, 1) if self.is_token_first else self.given
            return given[:, self.image_rows :]
        names = ("a_context",) if self.stream == "a" else ("v_context", "context")
        return next(self.block_kwargs[name] for name in names if name in self.block_kwargs)

    @property
    def is_token_first(self) -> bool:
        return type(self.module).__module__ == "comfy.ldm.cosmos.blocks"

    def placed(self, text: Tensor) -> tuple[tuple, dict[str, Any]]:
        """The module's arguments for another text [b, t, c], as ComfyUI makes them."""
        text = self._as_the_block_makes_it(text)
        if self.image_rows:
            text = torch.cat([self.given[:, : self.image_rows], text], dim=1)
        text = text.transpose(0, 1) if self.is_token_first else text
        if self.keyword is None:
            return (self.args[0], text, *self.args[2:]), self.kwargs
        return self.args, {**self.kwargs, self.keyword: text}

    def _as_the_block_makes_it(self, text: Tensor) -> Tensor:
        if self.block is None or not self.block.cross_attention_adaln:
            return text
        sound = self.stream == "a"
        table = self.block.audio_prompt_scale_shift_table if sound else self.block.prompt_scale_shift_table
        names = ("a_prompt_timestep",) if sound else ("v_prompt_timestep", "prompt_timestep")
        prompt, seen = next(self.block_kwargs[name] for name in names if name in self.block_kwargs), []

        def module(x, context, **kwargs):
            seen.append(context)
            return x

        ltx.apply_cross_attention_adaln(self.args[0], text, module, 0, 0, 1, table, prompt)
        return seen[0]

    def keys_and_queries(self, text: Tensor, call: Callable) -> tuple[Tensor, Tensor, Tensor | None]:
        """The module's keys and queries [b, h, t, d] for a text, and the mean square of its raw keys [b, t, 1]."""
        seen, raw = [], []
        norms = [self.module.to_k[1]] if self.is_token_first else [
            getattr(self.module, name) for name in ("norm_k", "k_norm") if getattr(self.module, name, None) is not None
        ]  # fmt: skip
        before = {
            (place, name): getattr(place, name)
            for place in (sys.modules[type(self.module).__module__], attention)
            for name in ("optimized_attention", "optimized_attention_masked")
            if hasattr(place, name)
        }

        def note(q, k, v, heads, *args, skip_reshape=False, **kwargs):
            seen.append([one if skip_reshape else rearrange(one, "b n (h d) -> b h n d", h=heads) for one in (q, k)])
            return before[attention, "optimized_attention"](q, k, v, heads, *args, skip_reshape=skip_reshape, **kwargs)

        with ExitStack() as stack:
            for (place, name), function in before.items():
                setattr(place, name, note)
                stack.callback(setattr, place, name, function)
            for norm in norms:
                stack.callback(norm.register_forward_pre_hook(lambda module, args: raw.append(args[0])).remove)
            args, kwargs = self.placed(text)
            call(*args, **kwargs)
        q, k = seen[-1]
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        if not raw:
            return k, q, None
        z = raw[-1]
        has_heads_first = self.is_token_first or type(self.module).__module__ == "comfy.ldm.audio.dit"
        z = z.transpose(1, 2) if has_heads_first else z
        return k, q, z.flatten(2).square().mean(dim=-1, keepdim=True)

    def step(self, text: Tensor, call: Callable, not_words: tuple[int, ...]) -> Tensor:
        """m_t times minus the gradient of the attention energy with respect to a text [b, t, c], 0 where no word is."""
        with torch.inference_mode(False), torch.enable_grad():
            self.args, self.kwargs, self.block_kwargs = (
                _copy(one) for one in (self.args, self.kwargs, self.block_kwargs)
            )
            text = text.clone().requires_grad_()
            k, q, scale = self.keys_and_queries(text, call)
            beta = q.shape[-1] ** -0.5
            energy = -torch.logsumexp(beta * torch.einsum("bhtd,bhnd->bhtn", k, q), dim=-1).sum() / beta
            (gradient,) = torch.autograd.grad(energy, text)
            step = -gradient if scale is None else -gradient * scale.detach()
            step = step.detach()
            step[:, list(not_words)] = 0
            return step


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A value with `function` of each tensor in it."""
    if torch.is_tensor(value):
        return function(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map(one, function) for one in value)
    if isinstance(value, dict):
        return {key: _map(one, function) for key, one in value.items()}
    return value


def _copy(value: Any) -> Any:
    """Normal tensors in the place of a run's inference tensors."""
    return _map(value, torch.clone)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return _map(value, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def layers_of(model, family: str) -> list[Layer]:
    """The modules by ComfyUI's own names."""
    network = model.model.diffusion_model
    if family.startswith("ltx"):
        return [
            Layer(f"{letter}{i}.0", getattr(block, name), block)
            for i, block in enumerate(network.transformer_blocks)
            for letter, name in (("b", "attn2"), ("a", "audio_attn2"))
            if hasattr(block, name)
        ]
    if family == "cosmos1":
        modules = [block.blocks[1].block.attn for block in network.blocks.values()]
    elif family.startswith("stable_audio"):
        modules = [block.cross_attn for block in network.transformer.layers]
    else:
        holder = network.decoder.layers if family == "ace15" else getattr(network, "blocks", None)
        modules = [block.cross_attn for block in (holder or network.transformer_blocks)]
    return [Layer(f"b{i}.0", module, None) for i, module in enumerate(modules)]


@contextmanager
def noted(layers: list[Layer], when_called: Callable[[Layer], None] = lambda layer: None):
    """Note the arguments of each layer, and of the block around it, when it is called."""

    def note_block(layer, block, args, kwargs):
        layer.block_kwargs = kwargs

    def note(layer, module, args, kwargs):
        layer.args, layer.kwargs = args, kwargs
        when_called(layer)

    with ExitStack() as stack:
        for layer in layers:
            for module, hook in ((layer.block, note_block), (layer.module, note)):
                if module is not None:
                    handle = module.register_forward_pre_hook(
                        lambda *given, hook=hook, layer=layer: hook(layer, *given), with_kwargs=True
                    )
                    stack.callback(handle.remove)
        yield


@contextmanager
def in_float64(layers: list[Layer]):
    """The layers, and what they read, in float64; ComfyUI's kernels for the rest of a network have no such type."""
    texts = ("context", "v_context", "a_context", "prompt_timestep", "v_prompt_timestep", "a_prompt_timestep")

    def cast_block(block, args, kwargs):
        return args, {key: _cast(one, torch.float64) if key in texts else one for key, one in kwargs.items()}

    with ExitStack() as stack:
        for layer in layers:
            layer.module.double()
            stack.callback(layer.module.float)
            before = layer.module.register_forward_pre_hook(
                lambda module, args, kwargs: _cast((args, kwargs), torch.float64), with_kwargs=True
            )
            after = layer.module.register_forward_hook(lambda module, args, out: _cast(out, torch.float32))
            handles = [before, after]
            if layer.block is not None:
                handles.append(layer.block.register_forward_pre_hook(cast_block, with_kwargs=True))
            for handle in handles:
                stack.callback(handle.remove)
        yield


# --- tests ---


@each_family
def test_layers_and_text_width(registry, family):
    model = toy.model(family)
    assert registry.layer_names(model) == toy.FAMILIES[family].layers
    if "ltxav" not in family:  # its encoders give texts of several widths
        assert registry.context_width(model) == toy.FAMILIES[family].width


@each_updated
def test_mask_lies_on_the_tokens_of_the_picture(comfy, denoiser_call, monkeypatch, family):
    """Rows and columns of patches; the tokens of a reference image or a register lie before or behind them."""
    one, seen = toy.FAMILIES[family], set()
    monkeypatch.setattr(denoiser_call.DenoiserCall, "_update_prompts", lambda self, layer, own_rows: seen.add(
        (layer.stream, layer.q.shape[1], layer.grid, layer.tokens_before_grid)
    ))  # fmt: skip
    toy.sample(updated(comfy, toy.model(family)), family, toy.conditioning(family, 1), steps=1)
    sides = one.shape[-len(one.patch) :]
    grid = tuple(-(-side // patch) for side, patch in zip(sides, one.patch, strict=True))
    tokens = one.before + math.prod(grid) + one.after
    stream = "b" if family.startswith("ltx") else ""
    expected = {(stream, tokens, grid if len(grid) > 1 else (1, *grid), one.before)}
    assert seen == expected | ({("a", 5, (), 0)} if "ltxav" in family else set())


@each_family
def test_zero_strength_and_a_trace_leave_every_bit_and_no_hook(comfy, family):
    model, prompts = toy.model(family), (toy.conditioning(family, 1), toy.conditioning(family, 2))
    plain = toy.sample(model, family, *prompts, cfg=4.0)
    off = composed(comfy, updated(comfy, model, 0.0), edit(comfy, prompts[0], 0.0))
    (traced, _) = node(comfy, "EBCATrace").execute(model=model)[:2]
    for changed in (off, traced):
        assert torch.equal(toy.sample(changed, family, *prompts, cfg=4.0), plain)
    if family != "stable_audio3":
        assert not torch.equal(toy.sample(updated(comfy, model), family, *prompts, cfg=4.0), plain)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.model.modules())
    assert torch.equal(toy.sample(model, family, *prompts, cfg=4.0), plain)


@each_updated
def test_update_is_the_gradient_through_the_model_s_own_keys(comfy, denoiser_call, monkeypatch, family):
    model, seen = toy.model(family), []
    layers = {layer.name: layer for layer in layers_of(model, family)}
    update = denoiser_call.DenoiserCall._update_prompts

    def note(self, layer, own_rows):
        change = update(self, layer, own_rows)
        if change is not None:
            seen.append((layer.name, layer.read_context, change))
        return change

    monkeypatch.setattr(denoiser_call.DenoiserCall, "_update_prompts", note)
    with in_float64(list(layers.values())):
        with noted(list(layers.values())):
            toy.sample(updated(comfy, model), family, toy.conditioning(family, 1), steps=1)
        expected = [
            layers[name].step(read, layers[name].module.forward, toy.FAMILIES[family].not_words)
            for name, read, _ in seen
        ]
    names = toy.FAMILIES[family].layers
    last = {name[0]: name for name in names}.values()  # of each text, which no layer reads after it
    assert {name for name, _, _ in seen} == set(names) - set(last)
    for (_, _, change), by_hand in zip(seen, expected, strict=True):
        assert by_hand.dtype == change.dtype == torch.float64
        assert by_hand.abs().max() > 0
        assert relative_error(change, by_hand) < TOLERANCE.get(family, 1e-9)
        assert not change[:, list(toy.FAMILIES[family].not_words)].any()


@each_family
def test_edit_equal_to_the_prompt_changes_nothing(comfy, family):
    model, prompt = toy.model(family), toy.conditioning(family, 1)
    plain = toy.sample(model, family, prompt)
    same = composed(comfy, model, edit(comfy, prompt, 0.75))
    assert relative_error(toy.sample(same, family, prompt), plain) < 1e-6


@each_family
def test_edits_are_the_explicit_mix_of_the_layers_outputs(comfy, family):
    """Two edits, one of another length; the first one's context is updated, and carried from call to call."""
    model, prompt = toy.model(family), toy.conditioning(family, 1)
    texts, alphas = [toy.conditioning(family, 3), toy.conditioning(family, 4, toy.TOKENS - 2)], [0.75, -0.25]
    gamma = 0.05 if family != "stable_audio3" else 0.0
    plain = toy.sample(model, family, prompt)
    got = toy.sample(
        composed(comfy, model, edit(comfy, texts[0], 0.75, gamma), edit(comfy, texts[1], 0.25, direction="remove")),
        family, prompt,
    )  # fmt: skip
    expected = sample_by_hand(model, family, prompt, texts, alphas, gamma)
    assert relative_error(expected, plain) > 1e-4
    assert relative_error(got, expected) < 1e-5


def sample_by_hand(model, family: str, prompt, texts, alphas, gamma: float) -> Tensor:
    """A run in which each layer's output is the mix, and the first text takes steps of gamma in every layer."""
    read = [texts_by_call(model, family, text) for text in texts]
    changes: dict[str, Tensor] = {}
    layers, calls = layers_of(model, family), {}
    forwards = {layer.name: layer.module.forward for layer in layers}

    def forward(layer: Layer, *args, **kwargs):
        number = calls[layer.name] = calls.get(layer.name, -1) + 1
        call = forwards[layer.name]
        main = call(*args, **kwargs)
        outs = []
        for index, by_call in enumerate(read):
            text, beside = by_call[layer.name][number]
            if index == 0:
                text = text + changes.get(layer.stream, 0)
            placed, placed_kwargs = layer.placed(text)
            outs.append(call(*placed, **{**placed_kwargs, **beside}))
            if index == 0 and gamma:
                step = gamma * layer.step(text, call, toy.FAMILIES[family].not_words)
                changes[layer.stream] = changes.get(layer.stream, 0) + step
        return (main + sum(a * out for a, out in zip(alphas, outs, strict=True))) / (1 + sum(alphas))

    with noted(layers):
        for layer in layers:
            layer.module.forward = lambda *args, layer=layer, **kwargs: forward(layer, *args, **kwargs)
        try:
            return toy.sample(model, family, prompt)
        finally:
            for layer in layers:
                del layer.module.forward


def texts_by_call(model, family: str, conditioning) -> dict[str, list[tuple[Tensor, dict[str, Any]]]]:
    """What each layer reads in each call of a run with a prompt of its own, and what it is given with the text."""
    read = {}

    def note(layer):
        beside = {name: layer.kwargs[name] for name in ("mask", "rotary_freqs_cis_cross") if name in layer.kwargs}
        read.setdefault(layer.name, []).append((layer.text().clone(), beside))

    with noted(layers_of(model, family), note):
        toy.sample(model, family, conditioning)
    return read


@pytest.mark.parametrize("family", ["wan_scail", "ltxav", "ace"], indirect=True)
def test_each_image_of_a_batch_is_as_it_is_alone(comfy, family):
    model, prompt = toy.model(family), toy.conditioning(family, 1)
    model = composed(comfy, updated(comfy, model), edit(comfy, toy.conditioning(family, 3), 0.75, 0.02))
    alone = toy.sample(model, family, prompt)
    assert relative_error(toy.sample(model, family, prompt, batch=2)[:1], alone) < 1e-5


@pytest.mark.parametrize("family", ["stable_audio3"], indirect=True)
def test_update_is_refused_where_layers_subtract_attentions(comfy, caplog, family):
    model, prompt = toy.model(family), toy.conditioning(family, 1)
    with pytest.raises(ValueError, match=r"cannot update the context of StableAudio3: .*Set gamma_attn and"):
        updated(comfy, model)
    with caplog.at_level("INFO", "ebca"):
        got = composed(comfy, model, edit(comfy, prompt, 0.75, 0.01))
    assert "gamma_attn and gamma_norm of the edits have no effect on StableAudio3" in caplog.text
    without = composed(comfy, model, edit(comfy, prompt, 0.75))
    assert torch.equal(*(toy.sample(one, family, prompt) for one in (got, without)))


@pytest.mark.parametrize("family", ["ltxav"], indirect=True)
def test_blocks_that_no_layer_reads_after_are_refused(comfy, family):
    model = toy.model(family)
    with pytest.raises(ValueError, match="only the model's last layer is chosen"):
        updated(comfy, model, blocks="b2")
    updated(comfy, model, blocks="b1")


@pytest.mark.parametrize("family", ["ltxav"], indirect=True)
def test_the_last_layer_of_each_text_takes_no_step(comfy, family):
    model, trace = node(comfy, "EBCATrace").execute(model=updated(comfy, toy.model(family)), attention_maps=False)
    toy.sample(model, family, toy.conditioning(family, 1), steps=1)
    record = trace.record
    sizes = record.values[3, 0, :, record.roles.index("positive")]
    assert {name for name, size in zip(record.layers, sizes, strict=True) if size.isnan()} == {"a2.0", "b2.0"}
    assert all(size > 0 for size in sizes[~sizes.isnan()])


@pytest.mark.parametrize("family", ["ltxav"], indirect=True)
def test_trace_of_video_with_sound_is_plotted_with_its_own_latent_alone(comfy, family):
    model, trace = node(comfy, "EBCATrace").execute(model=toy.model(family), attention_maps=False)
    prompt = toy.conditioning(family, 1)

    def sampled(seed):
        return node(comfy, "KSampler").execute(
            model=model, seed=seed, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", positive=prompt,
            negative=prompt, latent_image={"samples": toy.latent(family)}, denoise=1.0,
        )[0]  # fmt: skip

    other, latent = sampled(1), sampled(2)
    assert latent["samples"].is_nested
    assert node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=latent)[0].std() > 0
    with pytest.raises(ValueError, match="from another run than the trace"):
        node(comfy, "EBCAEnergyPlot").execute(trace=trace, latent=other)


@pytest.mark.parametrize("family", ["ltxav"], indirect=True)
def test_mask_says_where_in_the_picture(comfy, family, caplog):
    """A white mask is no mask; half a mask acts in the layers of the picture alone, and a line says so."""
    model, prompt = toy.model(family), toy.conditioning(family, 1)
    plain, whole = toy.sample(model, family, prompt), toy.sample(updated(comfy, model), family, prompt)
    white = toy.sample(updated(comfy, model, mask=torch.ones(1, 64, 64)), family, prompt)
    assert torch.equal(white, whole)
    half = torch.ones(1, 64, 64)
    half[:, :32] = 0
    assert not torch.equal(toy.sample(updated(comfy, model, mask=half), family, prompt), plain)
    assert "skipped in the layers of the sound" in caplog.text


@pytest.mark.parametrize("family", ["ltxav"], indirect=True)
def test_each_text_moves_apart(comfy, denoiser_call, monkeypatch, family):
    """An edit carries a change of each of its two texts, of the widths of the two streams."""
    model, carried = toy.model(family), {}
    commit = denoiser_call.DenoiserCall.commit

    def note(self):
        carried.update({key[3]: change.shape[-1] for key, change in self._carried_on.items() if key[0] is not None})
        commit(self)

    monkeypatch.setattr(denoiser_call.DenoiserCall, "commit", note)
    model = composed(comfy, model, edit(comfy, toy.conditioning(family, 3), 0.75, 0.02))
    toy.sample(model, family, toy.conditioning(family, 1), steps=1)
    assert carried == {"b": 64, "a": 32}


# --- a second branch ---


class WanAnimate2Model(wan.WanModel):
    """As in a ComfyUI that has it: each block first runs on the frames of a pose, which are fewer, with their text."""

    def forward_orig(self, x, t, context, clip_fea=None, freqs=None, transformer_options=None, **kwargs):
        x = self.patch_embedding(x)
        grid, rows = x.shape[2:], math.prod(x.shape[3:])
        x = x.flatten(2).transpose(1, 2)
        e = self.time_embedding(wan.sinusoidal_embedding_1d(self.freq_dim, t).to(x.dtype)).unsqueeze(1)
        e0 = self.time_projection(e).unflatten(2, (6, self.dim))
        of_pose, pose = self.text_embedding(context), x[:, rows:]
        texts = self.text_embedding(context)
        for block in self.blocks:
            pose = block(pose, e0, freqs[:, rows:], of_pose, transformer_options=transformer_options)
            x = block(x, e0, freqs, texts, transformer_options=transformer_options)
            x = torch.cat([x[:, :rows], x[:, rows:] + 0.1 * pose], dim=1)
        return self.unpatchify(self.head(x, e), grid)


def test_branch_of_a_pose_keeps_its_text(comfy, registry):
    WanAnimate2Model.__module__ = "comfy.ldm.wan.model_animate2"
    family = "wan_22_i2v"
    model, prompt = toy.model(family), toy.conditioning(family, 1)
    model.model.diffusion_model.__class__ = WanAnimate2Model
    assert registry.layer_names(model) == toy.FAMILIES[family].layers
    plain = toy.sample(model, family, prompt, steps=1)
    texts = {layer.name: [] for layer in layers_of(model, family)}
    for layer in layers_of(model, family):  # what is multiplied with W_v is the text that a module reads
        layer.module.v.register_forward_pre_hook(lambda module, args, name=layer.name: texts[name].append(args[0]))
    assert not torch.equal(toy.sample(updated(comfy, model, 0.5), family, prompt, steps=1), plain)
    for name, (of_pose, of_picture) in texts.items():
        assert torch.equal(of_pose, texts["b0.0"][0])
        assert torch.equal(of_picture, texts["b0.0"][1]) == (name == "b0.0")
    same = composed(comfy, model, edit(comfy, prompt, 0.75))
    assert relative_error(toy.sample(same, family, prompt, steps=1), plain) < 1e-6


def test_subclass_works_only_if_it_names_its_family_itself(registry):
    """Its own subclasses do not inherit that: they may read their text in another way."""
    model = toy.model("wan_camera")
    network, layers = model.model.diffusion_model, registry.layer_names(model)
    parent = type(network)
    for members, works in (({}, False), ({"ebca_family": parent}, True), ({}, False)):
        network.__class__ = type("Newer", (type(network),), {"__module__": "another.pack", **members})
        if works:
            assert registry.layer_names(model) == layers
        else:
            with pytest.raises(ValueError, match="has no cross-attention to text that EBCA can reach"):
                registry.layer_names(model)
