"""Steps go back through transformers' weights as ComfyUI stores them. Compiled code is bypassed while EBCA is on."""

from __future__ import annotations

import comfy.ops
import comfy.weight_adapter
import pytest
import torch
from comfy.model_patcher import LowVramPatch
from comfy.patcher_extension import CallbacksMP

from support import toy, toy_dit, transformer_oracle
from support.host import node
from support.log_messages import messages
from support.sampling import relative_error
from support.transformer_runs import ebca, run

TOLERANCE = 1e-5
FP8 = torch.float8_e4m3fn

each_family = pytest.mark.parametrize("family", toy_dit.FAMILIES)
KEY_LAYERS = ("k", "k_proj", "to_k", "to_key", "kv_linear", "kv_proj")


def key_layers(model, family):
    """[(cross-attention module, name of its linear layer that makes keys)]."""
    found = transformer_oracle.modules(family, model.model.diffusion_model).values()
    return [(module, next(name for name in KEY_LAYERS if hasattr(module, name))) for module in found]


def lora(layer, seed):
    """An adapter of rank 2, and what it adds to the weight at full strength."""
    up = toy.noise(layer.weight.shape[0], 2, seed=seed)
    down = toy.noise(2, layer.weight.shape[1], seed=seed + 1) / layer.weight.shape[1] ** 0.5
    return comfy.weight_adapter.LoRAAdapter(set(), (up, down, 2.0, None, None, None)), up @ down


def merged(model, family):
    """The model with LoRAs of strength 0.5 in its weights."""
    for seed, (module, name) in enumerate(key_layers(model, family)):
        layer = getattr(module, name)
        layer.weight.data += 0.5 * lora(layer, seed)[1]
    return model


def bypass_lora(model, family):
    for seed, (module, name) in enumerate(key_layers(model, family)):
        layer = getattr(module, name)
        comfy.weight_adapter.BypassForwardHook(layer, lora(layer, seed)[0], multiplier=0.5).inject()
    return model


def lora_on_the_fly(model, family):
    """As ComfyUI loads an offloaded layer: the LoRA is applied to each cast copy of the weight."""

    def loaded(*_):
        for seed, (module, name) in enumerate(key_layers(model, family)):
            layer = getattr(module, name)
            patches = {"weight": [(0.5, lora(layer, seed)[0], 1.0, None, None)]}
            layer.weight_function = [LowVramPatch("weight", patches)]
            layer.comfy_cast_weights = True

    model.add_callback(CallbacksMP.ON_LOAD, loaded)
    return model


class PackedLinear(comfy.ops.manual_cast.Linear):
    """As GGUF packs do it: raw bytes for a weight, which only the module's own cast can read."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.scale = float(layer.weight.abs().max()) / 127
        packed = (layer.weight / self.scale).round().to(torch.int8).view(torch.uint8)
        self.weight, self.bias = torch.nn.Parameter(packed, requires_grad=False), layer.bias

    def cast_bias_weight(self, input):
        weight = (self.weight.view(torch.int8) * self.scale).to(input)
        return weight, None if self.bias is None else self.bias.to(input)

    def forward_comfy_cast_weights(self, input):
        return torch.nn.functional.linear(input, *self.cast_bias_weight(input))


def packed(model, family):
    for module, name in key_layers(model, family):
        setattr(module, name, PackedLinear(getattr(module, name)))
    return model


#: name: (the MODEL with EBCA, the one that is run by hand)
STORED = {
    "bf16": (lambda family: toy_dit.model(family, dtype=torch.bfloat16, compute=torch.float32),) * 2,
    "fp8": (lambda family: toy_dit.model(family, dtype=FP8, compute=torch.float32),) * 2,
    "GGUF": (lambda family: packed(toy_dit.model(family), family),) * 2,
    "LoRA on the fly": (
        lambda family: lora_on_the_fly(toy_dit.model(family), family),
        lambda family: merged(toy_dit.model(family), family),
    ),
    "bypass LoRA": (
        lambda family: bypass_lora(toy_dit.model(family), family),
        lambda family: merged(toy_dit.model(family), family),
    ),
}


@each_family
@pytest.mark.parametrize("stored", STORED)
def test_run_equals_the_loop_over_texts(comfy, pack, family, stored):
    (model, by_hand), case = (make(family) for make in STORED[stored]), ebca(family)
    with case.applied(family, by_hand):
        expected = run(by_hand, family, steps=2)
    assert relative_error(run(case.on(comfy, pack, model), family, steps=2), expected) < TOLERANCE


@each_family
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_effect_in_half_precision_is_that_by_hand(comfy, pack, family, dtype, tolerance):
    """By hand the layers compute in float64; the rest of the network is the same."""
    model, case = toy_dit.model(family, dtype=dtype), ebca(family)
    with case.applied(family, model):
        expected = run(model, family, steps=1)
    got, plain = run(case.on(comfy, pack, model), family, steps=1), run(model, family, steps=1)
    assert (got - expected).norm() < tolerance * (expected - plain).norm()


# --- torch.compile ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_traces():
    yield
    torch._dynamo.reset()


class Backend:
    """Runs the traced graphs as they are, and counts the runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, example_inputs, **options):
        def counted(*args):
            self.runs += 1
            return graph(*args)

        return counted


def core(comfy, model, backend):
    return node(comfy, "TorchCompileModel").execute(model=model, backend=backend)[0]


def its_blocks(comfy, model, backend):
    """As other packs do it."""
    model = model.clone()
    for number in range(len(model.model.diffusion_model.blocks)):
        path = f"diffusion_model.blocks.{number}"
        model.add_object_patch(path, torch.compile(model.get_model_object(path), backend=backend))
    return model


WAYS = {"core's node": core, "blocks swapped": its_blocks}


@pytest.mark.parametrize("order", ["compile first", "EBCA first"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["wan", "pixart"])
def test_compiled_model_equals_the_uncompiled_one(comfy, pack, caplog, family, way, order):
    model, case, backend = toy_dit.model(family), ebca(family), Backend()
    expected = run(case.on(comfy, pack, model), family, steps=2)
    plain = WAYS[way](comfy, model, backend)
    before = run(plain, family, steps=2)  # traced without EBCA
    runs, backend.runs = backend.runs, 0
    assert runs > 0
    if order == "compile first":
        compiled = case.on(comfy, pack, plain)
    else:
        compiled = WAYS[way](comfy, case.on(comfy, pack, model), backend)
    assert relative_error(run(compiled, family, steps=2), expected) < TOLERANCE
    assert backend.runs == 0
    assert [message for message in messages(caplog) if "torch.compile" in message] == messages(caplog)
    assert torch.equal(run(plain, family, steps=2), before)
    assert backend.runs == runs
