"""What comes along a wire and is not what the socket announces is refused in words, by every node."""

import pytest
import torch

from support import toy
from support.host import node
from support.log_messages import messages, refused
from support.sampling import sample


@pytest.mark.parametrize(("node_id", "name", "value", "said"), [
    ("EBCAContextUpdate", "model", None, "model received nothing instead of MODEL"),
    ("EBCAContextUpdate", "mask", "black", "mask received str instead of MASK"),
    ("EBCAContextUpdate", "mask", torch.ones(1, 8, 8, dtype=torch.complex64), "mask received Tensor instead of MASK"),
    ("EBCAContextUpdate", "gamma_attn", [0.1], "gamma_attn received list instead of FLOAT"),
    ("EBCAContextUpdate", "token_weights", 2.5, "token_weights received float instead of EBCA_TOKEN_WEIGHTS"),
    ("EBCAContextUpdate", "apply_to", "negative", "apply_to is 'negative', which is not an option. Choose one of:"),
    ("EBCACompose", "edits", {"edit0": None, "edit1": 3}, "edit1 received int instead of EBCA_EDIT"),
    ("EBCARePaintSampler", "jump_length", 0, "jump_length is 0. Set it to a number from 1 to 1000"),
    ("EBCASaveInversion", "latent", {}, "latent received dict instead of LATENT"),
])  # fmt: skip
def test_what_a_wire_cannot_bring_is_refused(comfy, node_id, name, value, said):
    inputs = {"model": toy.model()} if node_id in ("EBCAContextUpdate", "EBCACompose") else {}
    refused(lambda: node(comfy, node_id).execute(**{**inputs, name: value}), said)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_impossible_eta_is_refused(comfy, eta):
    refused(lambda: node(comfy, "EBCARePaintSampler").execute(eta=eta), "Expected eta to be from 0", str(eta))


def test_file_that_cannot_be_written_is_refused(comfy):
    model, caption = toy.model(), toy.conditioning(1)
    latent = node(comfy, "EBCAInvert").execute(model=model, caption=caption, latent=toy.latent(1, 8, 8), steps=1)[0]
    save = node(comfy, "EBCASaveInversion")
    refused(lambda: save.execute(latent=latent, filename_prefix=300 * "a"), "cannot be written", "shorter")


@pytest.mark.parametrize(("caption", "said"), [
    ([], "got no prompt"),
    ([[None, {}]], "got NoneType"),
    ([[torch.zeros(1, 0, toy.WIDTH), {}]], "got [1, 0, 64]"),
    ([[torch.zeros(77, toy.WIDTH), {}]], "got [77, 64]"),
    (toy.conditioning(1, width=48), "Expected a caption of width 64, as SD15 reads it, but got one of width 48"),
], ids=["none", "no text", "no tokens", "flat", "narrow"])  # fmt: skip
def test_impossible_caption_is_refused(comfy, caption, said):
    invert = node(comfy, "EBCAInvert")
    refused(lambda: invert.execute(model=toy.model(), caption=caption, latent=toy.latent(1, 8, 8), steps=1), said)


def test_latent_without_images_is_left_to_comfyui(comfy, caplog):
    edit = node(comfy, "EBCAEditContext").execute(conditioning=toy.conditioning(2))[0]
    ours = node(comfy, "EBCACompose").execute(model=toy.model(), edits={"edit0": edit})[0]
    said = []
    for model in (toy.model(), ours):
        with pytest.raises(RuntimeError) as failure:
            sample(model, toy.conditioning(1), latent=toy.latent(batch=0))
        said.append(str(failure.value))
    assert said[0] == said[1]
    assert messages(caplog) == []
