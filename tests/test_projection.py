"""A step in the keys goes back through W_k as the layer has it, for every way in which ComfyUI stores W_k.

Dynamic VRAM needs a GPU: here it is only checked that the weight comes from ComfyUI's own loan, and goes back.
"""
from __future__ import annotations

import importlib
import json

import comfy.ops
import comfy.quant_ops
import comfy.utils
import comfy.weight_adapter
import folder_paths
import pytest
import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher

from support import toy
from support.host import node
from support.sampling import relative_error, sample

pytestmark = pytest.mark.interface

KEYS, WIDTH = 64, 256  # W_k is [KEYS, WIDTH]; the quantised layouts want powers of two
FLOAT = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def weight(seed=0):
    return toy.noise(KEYS, WIDTH, seed=seed) / WIDTH**0.5


# --- layers: (module, its W_k as float64) ----------------------------------------------------------------------------


def stored(operations, dtype, bias=False):
    """A layer of ComfyUI's with a weight in dtype."""
    layer = operations.Linear(WIDTH, KEYS, bias=bias, dtype=dtype)
    layer.weight.data.copy_(weight().to(dtype))
    if bias:
        layer.bias.data.copy_(toy.noise(KEYS, seed=5).to(dtype))
    return layer, layer.weight.detach().double()


def quantised(form, full_precision=False, compute=torch.bfloat16, pre_quant_scale=False, bias=False, **conf):
    """A layer of `mixed_precision_ops`, loaded from a state dict as a checkpoint has it."""
    if form not in comfy.quant_ops.QUANT_ALGOS:
        pytest.skip(f"this ComfyUI has no {form}")
    layout = comfy.quant_ops.QUANT_ALGOS[form]["comfy_tensor_layout"]
    rotated = {**conf, "per_channel": True} if conf else {}
    q = comfy.quant_ops.QuantizedTensor.from_float(weight().to(compute), layout, **rotated)
    state = q.state_dict("weight")
    state["comfy_quant"] = torch.tensor(list(json.dumps({"format": form, **conf}).encode()), dtype=torch.uint8)
    if bias:
        state["bias"] = toy.noise(KEYS, seed=5).to(compute)
    layer = comfy.ops.mixed_precision_ops({}, compute, full_precision).Linear(WIDTH, KEYS, bias=bias, device="cpu")
    layer.load_state_dict(state)
    effective = q.dequantize().double()
    if pre_quant_scale:
        if "pre_quant_scale" not in comfy.quant_ops.QUANT_ALGOS["nvfp4"]["parameters"]:
            pytest.skip("this ComfyUI has no pre_quant_scale")
        layer.pre_quant_scale = torch.nn.Parameter(toy.noise(WIDTH, seed=6).exp().to(compute), requires_grad=False)
        effective = effective * layer.pre_quant_scale.detach().double()
    return layer, effective


def lora(seed=7, rank=4):
    up, down = toy.noise(KEYS, rank, seed=seed), toy.noise(rank, WIDTH, seed=seed + 1) / WIDTH**0.5
    return comfy.weight_adapter.LoRAAdapter(set(), (up, down, float(rank), None, None, None)), (up @ down).double()


def with_lora_on_the_fly(operations, dtype):
    """As ComfyUI loads an offloaded layer: the LoRA is applied to each cast copy of the weight."""
    layer, effective = stored(operations, dtype)
    adapter, change = lora()
    patches = {"to_k.weight": [(0.5, adapter, 1.0, None, None)]}
    layer.weight_function = [LowVramPatch("to_k.weight", patches)]
    layer.comfy_cast_weights = True
    return layer, effective + 0.5 * change


def with_bypass_lora(layer, effective):
    adapter, change = lora()
    comfy.weight_adapter.BypassForwardHook(layer, adapter, multiplier=0.5).inject()
    return layer, effective + 0.5 * change


class PackedLinear(comfy.ops.manual_cast.Linear):
    """As GGUF packs do it: raw bytes for a weight, which only the module's own cast can read."""

    def __init__(self):
        super().__init__(WIDTH, KEYS, bias=False)
        self.scale = float(weight().abs().max()) / 127
        packed = (weight() / self.scale).round().to(torch.int8).view(torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)

    def cast_bias_weight(self, input):
        return (self.weight.view(torch.int8) * self.scale).to(input), None

    def forward_comfy_cast_weights(self, input):
        return torch.nn.functional.linear(input, *self.cast_bias_weight(input))


def packed():
    layer = PackedLinear()
    return layer, (layer.weight.view(torch.int8) * layer.scale).double()


class ScaledCast(comfy.ops.manual_cast.Linear):
    """A pack's layer that changes how the weight is cast, and leaves forward to ComfyUI."""

    def forward_comfy_cast_weights(self, input):
        return 2 * super().forward_comfy_cast_weights(input)


class ScaledForward(comfy.ops.manual_cast.Linear):
    """A pack's layer with a forward of its own."""

    def forward(self, input):
        return 2 * super().forward(input)


def of_class(cls):
    layer, effective = stored(type("Operations", (), {"Linear": cls}), torch.float32)
    return layer, 2 * effective


def with_forward_hook():
    layer, effective = stored(comfy.ops.disable_weight_init, torch.float32, bias=True)
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return layer, 2 * effective


def with_pre_hook():
    layer, effective = stored(comfy.ops.disable_weight_init, torch.float32)
    layer.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    return layer, 3 * effective


def with_own_forward():
    layer, effective = stored(comfy.ops.disable_weight_init, torch.float32)
    original = layer.forward
    layer.forward = lambda x: 2 * original(x)
    return layer, 2 * effective


def torch_linear():
    layer = torch.nn.Linear(WIDTH, KEYS)
    return layer, layer.weight.detach().double()


def two_layers():
    first, second = torch.nn.Linear(WIDTH, 8, bias=False), torch.nn.Linear(8, KEYS)
    return torch.nn.Sequential(first, second), (second.weight @ first.weight).detach().double()


PLAIN, MANUAL = comfy.ops.disable_weight_init, comfy.ops.manual_cast
#: name: (the layer and its W_k, the type of the keys). Here the weight is lent, without a call of the layer.
LENT = {
    **{f"plain {dtype}": (lambda d=dtype: stored(PLAIN, d), dtype) for dtype in FLOAT},
    **{
        f"{kept} cast to {dtype}": (lambda d=kept: stored(MANUAL, d), dtype)
        for kept in (*FLOAT, *FP8) for dtype in FLOAT if kept != dtype
    },
    "plain with bias": (lambda: stored(PLAIN, torch.float32, bias=True), torch.float32),
    "cast with bias": (lambda: stored(MANUAL, torch.float16, bias=True), torch.float32),
    "--fast fp8 matrices": (lambda: stored(comfy.ops.fp8_ops, torch.float8_e4m3fn), torch.bfloat16),
    "--fast fp8 matrices, bias": (lambda: stored(comfy.ops.fp8_ops, torch.float8_e4m3fn, bias=True), torch.bfloat16),
    "LoRA on the fly, fp32": (lambda: with_lora_on_the_fly(PLAIN, torch.float32), torch.float32),
    "LoRA on the fly, fp16": (lambda: with_lora_on_the_fly(PLAIN, torch.float16), torch.float16),
    "LoRA on the fly, fp8": (lambda: with_lora_on_the_fly(MANUAL, torch.float8_e4m3fn), torch.bfloat16),
    "LoRA on the fly, --fast fp8": (lambda: with_lora_on_the_fly(comfy.ops.fp8_ops, FP8[0]), torch.bfloat16),
    "not quantised among quantised": (lambda: stored_unquantised(), torch.bfloat16),
    **{
        f"{form}{', full precision' if full else ''}": (lambda f=form, p=full: quantised(f, p), torch.bfloat16)
        for form in ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "convrot_w4a4", "mxfp8", "nvfp4")
        for full in (False, True)
    },
    "int8, rotated": (lambda: quantised("int8_tensorwise", convrot=True, convrot_groupsize=64), torch.bfloat16),
    "fp8 quantised, computed in fp16": (lambda: quantised("float8_e4m3fn", compute=torch.float16), torch.float16),
    "fp8 quantised, keys in fp32": (lambda: quantised("float8_e4m3fn", full_precision=True), torch.float32),
    "fp8 quantised, bias": (lambda: quantised("float8_e4m3fn", bias=True), torch.bfloat16),
    "fp8 quantised, smoothed": (lambda: quantised("float8_e4m3fn", pre_quant_scale=True), torch.bfloat16),
    "nvfp4, smoothed": (lambda: quantised("nvfp4", True, pre_quant_scale=True), torch.bfloat16),
    "fp8 quantised, LoRA on the fly": (lambda: quantised_with_lora("float8_e4m3fn"), torch.bfloat16),
}  # fmt: skip
#: Of these the layer itself says what W_k is.
ASKED = {
    "bypass LoRA": (lambda: with_bypass_lora(*stored(PLAIN, torch.float32)), torch.float32),
    "bypass LoRA, bias": (lambda: with_bypass_lora(*stored(PLAIN, torch.float32, bias=True)), torch.float32),
    "bypass LoRA, fp8": (lambda: with_bypass_lora(*stored(MANUAL, torch.float8_e4m3fn)), torch.float32),
    "bypass LoRA, quantised": (lambda: with_bypass_lora(*quantised("float8_e4m3fn", True)), torch.bfloat16),
    "GGUF": (packed, torch.float32),
    "GGUF, fp16": (packed, torch.float16),
    "a pack's own cast": (lambda: of_class(ScaledCast), torch.float32),
    "a pack's own forward": (lambda: of_class(ScaledForward), torch.float32),
    "a forward put on the layer": (with_own_forward, torch.float32),
    "forward hook": (with_forward_hook, torch.float32),
    "forward pre-hook": (with_pre_hook, torch.float32),
    "torch's own Linear": (torch_linear, torch.float32),
    "two layers": (two_layers, torch.float32),
}


def stored_unquantised():
    layer = comfy.ops.mixed_precision_ops({}, torch.bfloat16).Linear(WIDTH, KEYS, bias=False, device="cpu")
    layer.load_state_dict({"weight": weight()})
    return layer, layer.weight.detach().double()


def quantised_with_lora(form):
    layer, effective = quantised(form)
    adapter, change = lora()
    patches = {"to_k.weight": [(0.5, adapter, 1.0, None, None)]}
    layer.weight_function = [LowVramPatch("to_k.weight", patches)]
    return layer, effective + 0.5 * change


@pytest.fixture
def project(pack):
    """project_to_context, and how often it called the layer."""
    projection = importlib.import_module(f"{pack.__name__}.comfyui_binding.architectures.key_projection")

    def run(step, layer):
        calls = []
        hook = torch.nn.modules.module.register_module_forward_pre_hook(
            lambda module, args: calls.append(args) if module is layer else None
        )
        try:
            with torch.inference_mode():
                return projection.project_to_context(step, layer, WIDTH), len(calls)
        finally:
            hook.remove()

    return run


@pytest.mark.parametrize("name", [*LENT, *ASKED])
def test_step_goes_back_through_the_weight_that_the_layer_has(project, name):
    make, dtype = {**LENT, **ASKED}[name]
    layer, effective = make()
    step = (0.1 * toy.noise(2, 5, KEYS, seed=3)).to(dtype)
    given = step.clone()

    out, calls = project(step, layer)

    assert out.dtype == dtype
    assert relative_error(out, given.double() @ effective) < FLOAT[dtype]
    assert calls == 0 if name in LENT else calls > 0
    assert torch.equal(step, given)


# Inputs that a fast quantised layer rounds to 8 or 4 bits, or for which there is no kernel on a CPU.
ROUNDED = ("--fast", "float8_e4m3fn", "float8_e5m2", "fp8 quantised", "int8", "convrot", "mxfp8", "nvfp4")


def is_exact(name):
    return not name.startswith(ROUNDED) or ("full precision" in name and "w4a4" not in name)


@pytest.mark.parametrize("name", filter(is_exact, [*LENT, *ASKED]))
def test_expected_weight_is_what_the_layer_computes_with(name):
    make, dtype = {**LENT, **ASKED}[name]
    layer, effective = make()
    x = toy.noise(1, 5, WIDTH, seed=4).to(dtype)
    with torch.inference_mode():
        out = layer(x).double() - layer(torch.zeros_like(x)).double()
    assert relative_error(out, x.double() @ effective.T) < FLOAT[dtype]


@pytest.mark.parametrize("name", ["plain torch.float32", "float8_e4m3fn", "--fast fp8 matrices", "GGUF", "bypass LoRA"])
def test_projection_leaves_the_layer_as_it_was(project, name):
    make, dtype = {**LENT, **ASKED}[name]
    layer, _ = make()
    before, forward = {k: v.clone() for k, v in layer.state_dict().items()}, layer.forward
    project(torch.ones(1, 2, KEYS, dtype=dtype), layer)
    after = layer.state_dict()
    assert all(torch.equal(after[k].float(), v.float()) for k, v in before.items())
    assert layer.forward == forward


# --- the loan --------------------------------------------------------------------------------------------------------


@pytest.fixture
def loans(monkeypatch):
    """ComfyUI's loan of a weight, imitated: it adds 1 to the weight, as in dynamic VRAM only the loan adds LoRAs."""
    lent, returned = [], []
    original = comfy.ops.cast_bias_weight

    def lend(layer, input=None, **kwargs):
        weight, bias, _ = original(layer, input, **kwargs)
        lent.append((layer, weight + 1, bias, object()))
        return lent[-1][1:]

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", lend)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", lambda *loan: returned.append(loan))
    return lent, returned


def assert_returned(loans):
    (lent,), (returned,) = loans
    assert all(a is b for a, b in zip(lent, returned, strict=True))


def test_lent_weight_is_used_and_returned(project, loans):
    layer, effective = stored(PLAIN, torch.float16)
    step = toy.noise(1, 3, KEYS, seed=3)
    assert relative_error(project(step, layer)[0], step.double() @ (effective + 1)) < 1e-5
    assert_returned(loans)


def test_lent_weight_is_returned_when_the_product_fails(project, loans):
    with pytest.raises(RuntimeError):
        project(torch.ones(1, 3, KEYS + 1), stored(PLAIN, torch.float32)[0])
    assert_returned(loans)


# --- whole models ----------------------------------------------------------------------------------------------------


def is_attention(name):
    return name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))


def lora_file(model, rank=4):
    """A LoRA on every attention layer of the model -> {weight's name: (up, down)}."""
    weights = model.model.state_dict()
    pairs = {}
    for seed, (name, value) in enumerate((k, v) for k, v in weights.items() if is_attention(k)):
        up = toy.noise(value.shape[0], rank, seed=3000 + seed) * 0.3
        pairs[name] = up, toy.noise(rank, value.shape[1], seed=4000 + seed) / value.shape[1] ** 0.5
    return pairs


def merged(model, pairs, strength):
    with torch.no_grad():
        for name, value in model.model.state_dict().items():
            if name in pairs:
                up, down = pairs[name]
                value.add_((strength * up @ down).to(value.dtype))
    return model


@pytest.fixture
def lora_name(tmp_path):
    """The name of a LoRA for toy.model("sd1"), as the loader nodes know it."""
    import safetensors.torch

    folder = tmp_path / "loras"
    folder.mkdir()
    state = {}
    for name, (up, down) in lora_file(toy.model()).items():
        stem = name.removesuffix(".weight")
        state[f"{stem}.lora_up.weight"], state[f"{stem}.lora_down.weight"] = up.contiguous(), down.contiguous()
    safetensors.torch.save_file(state, folder / "attention.safetensors")
    folder_paths.add_model_folder_path("loras", str(folder), is_default=True)
    folder_paths.filename_list_cache.pop("loras", None)
    return "attention.safetensors"


def with_ebca(comfy, model):
    (edit,) = node(comfy, "EBCAEditContext").execute(
        conditioning=toy.conditioning(2), start_percent=0.0, gamma_start_percent=0.0, gamma_attn=0.002, gamma_norm=0.001
    )
    (model,) = node(comfy, "EBCAContextUpdate").execute(model=model, gamma_attn=0.02, gamma_norm=0.02)
    return node(comfy, "EBCACompose").execute(model=model, edits={"edit0": edit})[0]


@pytest.fixture
def low_vram(monkeypatch):
    """ComfyUI's loading for little memory: every layer offloaded, LoRAs applied on the fly."""
    load = ModelPatcher.load

    def little(self, device_to=None, **kwargs):
        return load(self, device_to, **{**kwargs, "lowvram_model_memory": 1, "full_load": False})

    monkeypatch.setattr(ModelPatcher, "load", little)


def run(model):
    return sample(model, toy.conditioning(1), steps=2, latent=toy.latent(1, 8, 8))


def assert_lora_equals_merge(comfy, lora_name, loader, lora_first):
    model = toy.model()
    if not lora_first:
        model = with_ebca(comfy, model)
    (model,) = node(comfy, loader).execute(model=model, lora_name=lora_name, strength_model=0.8)
    if lora_first:
        model = with_ebca(comfy, model)
    plain_merge = merged(toy.model(), lora_file(toy.model()), 0.8)
    expected = run(with_ebca(comfy, plain_merge))
    assert relative_error(run(plain_merge), expected) > 1e-3  # EBCA does something
    assert relative_error(run(with_ebca(comfy, toy.model())), expected) > 1e-2  # the LoRA too
    assert relative_error(run(model), expected) < 1e-5


@pytest.mark.parametrize("lora_first", [True, False], ids=["LoRA first", "EBCA first"])
@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "LoraLoaderBypassModelOnly"])
def test_lora_equals_the_merged_model(comfy, lora_name, loader, lora_first):
    assert_lora_equals_merge(comfy, lora_name, loader, lora_first)


@pytest.mark.parametrize("loader", ["LoraLoaderModelOnly", "LoraLoaderBypassModelOnly"])
def test_lora_equals_the_merged_model_in_low_vram(comfy, lora_name, loader, low_vram):
    assert_lora_equals_merge(comfy, lora_name, loader, lora_first=True)


def test_low_vram_applies_the_lora_on_the_fly(comfy, lora_name, low_vram):
    (model,) = node(comfy, "LoraLoaderModelOnly").execute(model=toy.model(), lora_name=lora_name, strength_model=0.8)
    seen = []
    model.add_wrapper_with_key("diffusion_model", "look", lambda executor, *args, **kwargs: (
        seen.extend(m.attn2.to_k.weight_function for m in executor.class_obj.modules() if hasattr(m, "attn2")),
        executor(*args, **kwargs),
    )[1])  # fmt: skip
    run(model)
    assert seen
    assert all([type(function) for function in functions] == [LowVramPatch] for functions in seen)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *FP8], ids=str)
def test_stored_type_makes_no_difference_beyond_its_rounding(comfy, dtype):
    small, rounded = toy.model(dtype=dtype), toy.model()
    state = {name: value.float() for name, value in small.model.state_dict().items()}
    rounded.model.load_state_dict(state)
    assert relative_error(run(with_ebca(comfy, small)), run(with_ebca(comfy, rounded))) < 1e-5


def test_whole_model_of_unknown_layers_equals_the_plain_one(comfy):
    """Every to_k is a pair of layers whose product is the plain weight: no weight to be had, only calls."""
    model, split = toy.model(), toy.model()
    for module in split.model.diffusion_model.modules():
        if hasattr(module, "attn2"):
            plain = module.attn2.to_k
            inner = torch.nn.Linear(plain.in_features, plain.in_features, bias=False)
            inner.weight.data.copy_(2 * torch.eye(plain.in_features))
            plain.weight.data.div_(2)
            module.attn2.to_k = torch.nn.Sequential(inner, plain)
    (updated,) = node(comfy, "EBCAContextUpdate").execute(model=split)
    (expected,) = node(comfy, "EBCAContextUpdate").execute(model=model)
    assert relative_error(run(updated), run(expected)) < 1e-5
