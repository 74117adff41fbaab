"""shared_attention of EBCA Compose: when the attention to the image's keys is computed once, and when it is not.

That whole runs are the same with it: tests/test_joint_runs.py.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace

import comfy.ldm.modules.attention as host
import comfy.model_management as management
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from support import toy, toy_joint
from support.host import node
from support.joint_runs import composed, edits, run
from support.log_messages import messages
from support.sampling import relative_error

#: Numbers of tokens, no two sums of which are the same.
IMAGE, PROMPT, TEXTS = 4 * 4, toy_joint.TOKENS, (12, 19)
#: Of a layer with all of them.
TOGETHER = IMAGE + PROMPT + sum(TEXTS)

pytestmark = pytest.mark.skipif(
    host.optimized_attention is not host.attention_pytorch, reason="needs --use-pytorch-cross-attention"
)


class AttentionCalls(TorchDispatchMode):
    """While it lasts: how often PyTorch's attention is called, by the numbers of queries and of keys."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "scaled_dot_product" in str(function):
            self.seen[args[0].shape[2], args[1].shape[2]] += 1
        return function(*args, **(kwargs or {}))


def calls(model, family="flux", **options) -> Counter:
    with AttentionCalls() as attention:
        run(model, family, cfg=1.0, **options)
    return attention.seen


def shared(comfy, pack, model, case=None, **inputs):
    return composed(comfy, pack, model, case or edits("flux", TEXTS), shared_attention=True, **inputs)


# --- what is computed ------------------------------------------------------------------------------------------------


def test_all_attend_to_the_image_once_in_each_layer(comfy, pack):
    """Beside that, each text and the image to the text's keys; in the first layer both forms once more."""
    model, steps = toy_joint.model("flux"), 2
    layers = steps * len(toy_joint.blocks("flux", model))
    expected = Counter({(TOGETHER, IMAGE): layers})
    for text in (PROMPT, *TEXTS):
        expected += {(IMAGE, text): layers + 1, (text, text): layers + 1, (text + IMAGE,) * 2: 1}
    assert calls(shared(comfy, pack, model), steps=steps) == expected


def test_off_by_default(comfy, pack):
    model, steps = toy_joint.model("flux"), 2
    layers = steps * len(toy_joint.blocks("flux", model))
    expected = Counter({(text + IMAGE,) * 2: layers for text in (PROMPT, *TEXTS)})
    assert calls(composed(comfy, pack, model, edits("flux", TEXTS)), steps=steps) == expected


def test_layers_and_steps_without_an_edit_are_the_plain_model_s(comfy, pack):
    """blocks, and a window that ends behind the first of two steps."""
    model = toy_joint.model("flux")
    case = [replace(edit, window=(0.0, 0.4)) for edit in edits("flux", TEXTS)]
    seen = calls(shared(comfy, pack, model, case, blocks="b1,b3"), steps=2)
    assert seen[TOGETHER, IMAGE] == 2
    in_both_forms = 1
    assert seen[(PROMPT + IMAGE,) * 2] == 2 * len(toy_joint.blocks("flux", model)) - 2 + in_both_forms


def test_weight_zero_is_bit_identical(comfy, pack):
    model = toy_joint.model("flux")
    late = [replace(edit, window=(0.1, 0.11)) for edit in edits("flux")]
    zero = [replace(edit, weight=0.0) for edit in edits("flux")]
    for case in (late, zero):
        assert torch.equal(run(shared(comfy, pack, model, case), "flux"), run(model, "flux"))


def test_of_two_composes_one_is_enough(comfy, pack):
    model, (first, second) = toy_joint.model("flux"), edits("flux", TEXTS)
    model = shared(comfy, pack, composed(comfy, pack, model, [first]), [second])
    assert calls(model, steps=1)[TOGETHER, IMAGE] == len(toy_joint.blocks("flux", model))


# --- where it cannot be had: the plain form, and a line --------------------------------------------------------------


def stays_plain(comfy, pack, caplog, model, family, says, **options):
    """The run is, bit for bit, the one without the option, and a line says why."""
    expected = run(composed(comfy, pack, model, edits(family)), family, **options)
    caplog.clear()
    with caplog.at_level("INFO", "ebca"):
        got = run(composed(comfy, pack, model, edits(family), shared_attention=True), family, **options)
    assert torch.equal(got, expected)
    (message,) = messages(caplog)
    assert "EBCA: shared_attention has no effect in" in message
    assert says in message


def test_another_pack_s_attention(comfy, pack, caplog):
    def override(func, q, k, v, heads, mask=None, **kwargs):
        return host.attention_pytorch(1.5 * q, k, v, heads, mask=mask, **kwargs)

    model = toy_joint.model("qwen")
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    stays_plain(comfy, pack, caplog, model, "qwen", "ComfyUI's own PyTorch attention")


def test_another_attention_of_the_host(comfy, pack, caplog, monkeypatch):
    model = toy_joint.model("qwen")
    monkeypatch.setattr("comfy.ldm.qwen_image.model.optimized_attention_masked", host.attention_basic)
    stays_plain(comfy, pack, caplog, model, "qwen", "ComfyUI's own PyTorch attention")


def test_texts_with_a_mask(comfy, pack, caplog):
    mask = torch.ones(1, 12, dtype=torch.long)
    mask[:, 8:] = 0
    masked = toy_joint.conditioning("qwen", 1, 12, attention_mask=mask)
    stays_plain(comfy, pack, caplog, toy_joint.model("qwen"), "qwen", "texts without masks", positive=masked)


@pytest.mark.parametrize("what", ["another base", "padded", "refused"])
def test_a_log_sum_exp_of_another_kind(comfy, pack, caplog, monkeypatch, what):
    """Another PyTorch, another device: a log-sum-exp to the base 2 or with more rows, or no such call."""
    layer_call = pack.comfyui_binding.architectures.joint_layer_call
    own = layer_call.attention_with_sum

    def another(*tensors):
        if what == "refused":
            raise RuntimeError("no kernel")
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*tensors)
        return (out, total * 1.4427) if what == "another base" else (out, torch.nn.functional.pad(total, (0, 16)))

    monkeypatch.setattr(layer_call, "attention_with_sum", lambda *args: another if own(*args) else None)
    stays_plain(comfy, pack, caplog, toy_joint.model("flux"), "flux", "its result was not that of ordinary")


def test_models_with_cross_attention(comfy, pack, caplog):
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2))[0]
    with caplog.at_level("INFO", "ebca"):
        node(comfy, "EBCACompose").execute(model=toy.model(), edits={"edit0": edit}, shared_attention=True)
    (message,) = messages(caplog)
    assert "shared_attention has no effect on BaseModel" in message


# --- PyTorch's calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("keys", [5, 40])
def test_output_and_log_sum_exp(pack, dtype, scale, keys):
    host_attention = pack.comfyui_binding.architectures.host_attention
    q, k, v = (toy.noise(2, 3, count, 16, seed=count + i).to(dtype) for i, count in enumerate((24, keys, keys)))
    out, total = host_attention.attention_with_sum(q, k, v, scale)(q, k, v)
    scores = q.double() @ k.double().mT * (16**-0.5 if scale is None else scale)
    limit = max(1e-6, torch.finfo(dtype).eps)
    assert relative_error(out.double(), scores.softmax(-1) @ v.double()) < limit
    assert relative_error(total.double(), scores.logsumexp(-1)) < 1e-5
    assert host_attention.attention_with_sum(*(x.to("meta") for x in (q, k, v)), scale) is None


def test_attention_by_pytorch_is_recognised(pack, monkeypatch):
    is_pytorchs = pack.comfyui_binding.architectures.host_attention.is_pytorchs
    own = host.attention_pytorch
    assert is_pytorchs(own)
    assert is_pytorchs(own.__wrapped__)
    anothers = functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs))
    for function in (host.attention_basic, host.attention_sub_quad, lambda *args: None, anothers):
        monkeypatch.setattr(host, "attention_pytorch", function)
        assert not is_pytorchs(function)
    with monkeypatch.context() as changed:
        changed.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *args, **kwargs: None)
        assert not is_pytorchs(own)


def test_out_of_memory_ends_the_run(comfy, pack, monkeypatch):
    """ComfyUI has to know of it, to free memory."""
    layer_call = pack.comfyui_binding.architectures.joint_layer_call

    def full(*tensors):
        raise management.OOM_EXCEPTION("out of memory")

    monkeypatch.setattr(layer_call, "attention_with_sum", lambda *args: full)
    with pytest.raises(management.OOM_EXCEPTION):
        run(shared(comfy, pack, toy_joint.model("flux")), "flux", steps=1)


def test_two_edits_in_half_precision(comfy, pack):
    """The comparison at the start lets the rounding of the type pass."""
    model = toy_joint.model("flux", dtype=torch.bfloat16)
    got = calls(shared(comfy, pack, model), steps=1)
    assert got[TOGETHER, IMAGE] == len(toy_joint.blocks("flux", model))
    plain = run(composed(comfy, pack, model, edits("flux", TEXTS)), "flux", steps=1)
    assert relative_error(run(shared(comfy, pack, model), "flux", steps=1), plain) < 2e-2
