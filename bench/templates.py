"""ComfyUI's own workflow templates that sample a local model: whether EBCA accepts the model, by family.

    python run.py bench templates

A template's model is recognised by the file name in its loader (Load Diffusion Model, Load Checkpoint): FILES says of
which network of ComfyUI's the file is, and the pack is asked about that network. A template with several models counts
as accepted if one of them is. The table goes to docs/models.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.append(str(REPO))

from devtools import environment, inprocess  # noqa: E402

PACKAGE, VERSION = "comfyui-workflow-templates-json", "0.1.123"
DOCUMENT = REPO / "docs" / "models.md"
SAMPLERS = {"KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"}
LOADERS = {"UNETLoader", "CheckpointLoaderSimple", "ImageOnlyCheckpointLoader"}

#: Start of a file's name as a regular expression, small letters: family, and its network in comfy.ldm.
FILES = {
    r"sd_xl_": ("SDXL", "modules.diffusionmodules.openaimodel.UNetModel"),
    r"wan_animate_2": ("Wan Animate 2", "wan.model_animate2.WanAnimate2Model"),
    r"causal_forcing": ("Wan, autoregressive", "wan.ar_model.CausalWanModel"),
    r"wan2\.1_vace": ("Wan 2.1 and 2.2", "wan.model.VaceWanModel"),
    r"wan2\.\d_fun_camera": ("Wan 2.1 and 2.2", "wan.model.CameraWanModel"),
    r"wan2\.1_14b_scail_2": ("Wan 2.1 and 2.2", "wan.model.SCAIL2WanModel"),
    r"wan2\.2_s2v": ("Wan 2.1 and 2.2", "wan.model.WanModel_S2V"),
    r"wan2\.2_animate": ("Wan 2.1 and 2.2", "wan.model_animate.AnimateWanModel"),
    r"wan2\.2_dancer": ("Wan 2.1 and 2.2", "wan.model_wandancer.WanDancerModel"),
    r"humo_": ("Wan 2.1 and 2.2", "wan.model.HumoWanModel"),
    r"wan2\.|wan2_1|wan21|chrono_edit": ("Wan 2.1 and 2.2", "wan.model.WanModel"),
    r"anima-": ("Anima", "anima.model.Anima"),
    r"ltx-video": ("LTX-Video", "lightricks.model.LTXVModel"),
    r"ltx-2\.5": ("LTX-2.5", "lightricks.av_model.LTXAVModel"),
    r"ltx-2": ("LTX-2 and 2.3", "lightricks.av_model.LTXAVModel"),
    r"kandinsky5": ("Kandinsky 5", "kandinsky5.model.Kandinsky5"),
    r"stable[-_]audio": ("Stable Audio", "audio.dit.AudioDiffusionTransformer"),
    r"ace_step_v1_": ("ACE-Step", "ace.model.ACEStepTransformer2DModel"),
    r"ace_?step_v?1\.5": ("ACE-Step", "ace.ace_step15.AceStepConditionGenerationModel"),
    r"flux3": ("Flux 3", None),
    r"moss_image": ("Moss Image", None),
    r"ming_image": ("Ming Image", None),
    r"fibo2": ("FIBO 2", None),
    r"yue2": ("YuE 2", None),
    r"minimax_music3": ("MiniMax Music 3", None),
    r"flux|longcat|ovis": ("Flux and LongCat", "flux.model.Flux"),
    r"qwen_image_2\.1": ("Qwen-Image 2.1", "qwen_image21.model.QwenImage21"),
    r"qwen_image|firered": ("Qwen-Image", "qwen_image.model.QwenImageTransformer2DModel"),
    r"z_image|netayume|newbie": ("Z-Image and Lumina", "lumina.model.NextDiT"),
    r"sd3": ("SD 3.5", "modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper"),
    r"chroma-radiance": ("Chroma", "chroma_radiance.model.ChromaRadiance"),
    r"chroma1": ("Chroma", "chroma.model.Chroma"),
    r"hidream_o1": ("HiDream O1", "hidream_o1.model.HiDreamO1Transformer"),
    r"hidream": ("HiDream I1 and E1", "hidream.model.HiDreamImageTransformer2DModel"),
    r"hunyuan_video|hunyuanvideo|capybara": ("HunyuanVideo", "hunyuan_video.model.HunyuanVideo"),
    r"hunyuan_3d_v2\.1": ("3D from images", "hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain"),
    r"hunyuan3d": ("3D from images", "hunyuan3d.model.Hunyuan3Dv2"),
    r"triposplat": ("3D from images", "triposplat.model.LatentSeqMMFlowModel"),
    r"trellis|pixal3d": ("3D from images", None),
    r"minimax_h3|fast(video_fast)?h3": ("MiniMax H3", "minimax.model.MiniMaxH3Model"),
    r"omnigen2": ("OmniGen 2", "omnigen.omnigen2.OmniGen2Transformer2DModel"),
    r"boogu": ("Boogu", "boogu.model.BooguTransformer2DModel"),
    r"mage_flow": ("Mage Flow", "mage_flow.model.MageFlowTransformer2DModel"),
    r"joyai": ("JoyImage", "joyimage.model.JoyImageTransformer3DModel"),
    r"krea2": ("Krea 2", "krea2.model.SingleStreamDiT"),
    r"ideogram4": ("Ideogram 4", "ideogram4.model.Ideogram4Transformer2DModel"),
    r"lens_": ("Lens", "lens.model.LensTransformer2DModel"),
    r"ernie": ("Ernie Image", "ernie.model.ErnieImageModel"),
    r"pixeldit": ("PixelDiT and PiD", "pixeldit.model.PixDiT_T2I"),
    r"pid_": ("PixelDiT and PiD", "pixeldit.pid.PidNet"),
    r"seedvr2": ("SeedVR 2", "seedvr.model.NaDiT"),
    r"void_": ("CogVideoX", "cogvideo.model.CogVideoXTransformer3DModel"),
    r"svd": ("Stable Video Diffusion", "a video U-Net"),
    r"lotus": ("Lotus", "a depth U-Net"),
}
#: Networks that are told apart within ComfyUI's U-Net, by their entry in FILES.
REFUSED_UNETS = {
    "a video U-Net": "it makes videos from an image, without text",
    "a depth U-Net": "it estimates depth and always reads an empty prompt",
}
#: Families whose checkpoints need a ComfyUI newer than the one that the tests run on.
NEWER = {"Wan Animate 2", "LTX-2.5"}
#: Detectors that stand beside a template's model.
TOOLS = ("sam3", "sdpose", "rt_detr", "lotus")


@dataclass
class Family:
    """The templates of one family, whether EBCA accepts them, and the reason where it does not."""

    templates: int = 0
    is_accepted: bool = False
    reason: str = ""


def nodes_of(graph: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a workflow, those of its subgraphs included."""
    yield from graph.get("nodes", [])
    for subgraph in graph.get("definitions", {}).get("subgraphs", []):
        yield from nodes_of(subgraph)


def models_of(graph: dict[str, Any]) -> list[str]:
    """The model files that a workflow samples with, none where it samples nothing."""
    nodes = list(nodes_of(graph))
    if not any(node["type"] in SAMPLERS for node in nodes):
        return []
    loaders = [node for node in nodes if node["type"] in LOADERS]
    files = [next(iter(_values(node)), "") for node in loaders]
    return list(dict.fromkeys(file for file in files if not file.lower().startswith(TOOLS))) or files[:1]


def _values(node: dict[str, Any]) -> list[Any]:
    values = node.get("widgets_values") or []
    return list(values.values()) if isinstance(values, dict) else values


def recognised(file: str) -> tuple[str, str | None]:
    """Family and network of a model file; (the file itself, None) where FILES does not know it."""
    return next((entry for start, entry in FILES.items() if re.match(start, file.lower())), (file, None))


def verdict(network: str | None, pack: Any, comfyui: str) -> tuple[bool, str]:
    """Whether EBCA accepts a network of comfy.ldm, and why not. Networks that the pack does not name it refuses."""
    if network is None:
        return False, f"its network is not in {comfyui}"
    if network in REFUSED_UNETS:
        return False, REFUSED_UNETS[network]
    families = (*pack.transformer_families.FAMILIES, *pack.joint_families.FAMILIES)
    if network.endswith("UNetModel") or network in {one.network for one in families}:
        return True, ""
    return False, pack.refused_networks.REASONS[network.rpartition(".")[0]]


def load_pack(comfyui: Path) -> Any:
    """The pack's `architectures`, in this process."""
    with tempfile.TemporaryDirectory(prefix="ebca_bench_", ignore_cleanup_errors=True) as base:
        inprocess.boot(comfyui, Path(base))
        import nodes

        if not asyncio.run(nodes.load_custom_node(str(REPO))):
            raise RuntimeError(f"ComfyUI could not load the pack in {REPO}; its log above says why.")
    name = str(REPO).replace(".", "_x_")  # the name that ComfyUI gives it
    return sys.modules[f"{name}.comfyui_binding.architectures"]


def table(families: dict[str, Family], comfyui: str) -> str:
    """docs/models.md."""
    total = sum(family.templates for family in families.values())
    accepted = sum(family.templates for family in families.values() if family.is_accepted)
    order = sorted(families.items(), key=lambda item: (not item[1].is_accepted, -item[1].templates, item[0]))
    lines = [
        "# Models",
        "",
        f"Of the {total} workflow templates of ComfyUI that sample a local model (`{PACKAGE}` {VERSION}),",
        f"EBCA accepts the model of {accepted}. A template's model is recognised by the file name in its loader. A",
        "template with several models counts as accepted if EBCA accepts one of them. Written by",
        f"`python run.py bench templates`, with {comfyui}.",
        "",
        "Workflow files of this pack for some of them: EBCA 13, 14 and 16 (Wan 2.2), 15 (Anima), 17 (Qwen-Image) and",
        "18 (Z-Image). `python run.py test tests/test_official_templates.py` puts EBCA into ten of the templates, of",
        "Wan, Anima, LTX-Video, LTX-2, Kandinsky 5, ACE-Step, Stable Audio 1 and 3, Qwen-Image and Z-Image, and runs",
        "them on a server with tiny models of random weights, as far as the latent of their first sampler. What to",
        "set: [transformers.md](transformers.md).",
        "",
        "| family | templates | EBCA |",
        "|---|---|---|",
        *(
            f"| {name} | {family.templates} | {_answer(name, family)} |" for name, family in order
        ),
    ]
    return "\n".join(lines) + "\n"


def _answer(name: str, family: Family) -> str:
    if not family.is_accepted:
        return f"no: {family.reason}"
    return "yes, not run: it needs a newer ComfyUI than the tests have" if name in NEWER else "yes"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI; run.py passes it")
    parser.add_argument("--out", type=Path, default=DOCUMENT, help="the table, docs/models.md by default")
    options = parser.parse_args(argv)
    folder = environment.fetched_package(PACKAGE, VERSION) / PACKAGE.replace("-", "_") / "templates"
    pack = load_pack(options.comfyui.resolve())
    import comfyui_version

    comfyui = f"ComfyUI {comfyui_version.__version__}"
    families: dict[str, Family] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("index."):
            continue
        files = models_of(json.loads(path.read_text(encoding="utf-8")))
        if not files:
            continue
        verdicts = []
        for file in files:
            name, network = recognised(file)
            verdicts.append((file, name, *verdict(network, pack, comfyui)))
        file, name, is_accepted, reason = max(verdicts, key=lambda one: one[2])
        families.setdefault(name, Family(is_accepted=is_accepted, reason=reason)).templates += 1
        print(f"{'yes' if is_accepted else 'no ':3}  {path.stem}: {file}" + (f" ({reason})" if reason else ""))
    text = table(families, comfyui)
    options.out.write_text(text, encoding="utf-8")
    print(f"\n{text}")


if __name__ == "__main__":
    main()
