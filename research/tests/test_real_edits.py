"""The paper's edits of photographs: from a folder and a server to the table, on the shapes model."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import real_edits
from photo_edits import measures, networks, photos
from photo_edits.edits import EDITS
from support import scoring_models


def picture(seed, size=(96, 64)):
    """A picture of coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("name", "caption", "swapped"),
    [
        ("cat_to_dog", "A cat on a bench", "A dog on a bench"),
        ("cat_to_dog", "a catalogue", "a catalogue"),
        ("cat_to_cat_with_glasses", "a photo of a Cat", "a photo of a cat with glasses"),
        ("horse_to_zebra", "a brown horse and a horse", "a zebra and a zebra"),
    ],
)
def test_swapped_caption(name, caption, swapped):
    assert EDITS[name].swapped(caption) == swapped


def test_photos_come_with_their_captions_and_masks(tmp_path, capsys):
    picture(0).save(tmp_path / "a.JPG")
    picture(1).save(tmp_path / "b.png")
    picture(2).convert("L").save(tmp_path / "b.mask.png")
    (tmp_path / "b.txt").write_text("a cat\non a sofa\n")
    edit = EDITS["cat_to_dog"]
    plain, masked = photos.tasks(tmp_path, edit)
    assert (plain.caption, plain.mask) == ("a photo of a cat", None)
    assert (masked.caption, masked.new_caption) == ("a cat on a sofa", "a dog on a sofa")
    assert masked.mask == tmp_path / "b.mask.png"
    assert "1 of 2 photos have no .txt" in capsys.readouterr().out
    (tmp_path / "b.txt").write_text("a white cat")
    assert photos.tasks(tmp_path, edit)[0].name == plain.name
    assert photos.tasks(tmp_path, edit)[1].name != masked.name


def test_photos_that_cannot_be_edited_are_refused(tmp_path):
    edit = EDITS["horse_to_zebra"]
    with pytest.raises(SystemExit, match="Expected photographs"):
        photos.tasks(tmp_path, edit)
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("two horses")
    with pytest.raises(SystemExit, match=r"Expected 'brown horse or horse' in .*a\.txt, but got 'two horses'"):
        photos.tasks(tmp_path, edit)
    (tmp_path / "a.txt").unlink()
    picture(0, (32, 32)).save(tmp_path / "a.mask.png")
    with pytest.raises(SystemExit, match=r"photo's size \(96, 64\), but got \(32, 32\)"):
        photos.tasks(tmp_path, edit)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"a\.png cannot be read"):
        photos.tasks(tmp_path, edit)


def test_structure_distance_compares_the_keys_of_the_last_layer(tmp_path):
    from transformers import ViTModel

    folder = scoring_models.dino_folder(tmp_path)
    images = [picture(seed, (32, 32)) for seed in (0, 1)]
    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    last = re.compile(r".*layers?\.1\.")  # transformers 5 names it layers, 4 layer
    weights = {last.sub("", name): value for name, value in model.state_dict().items() if last.match(name)}
    similarities = []
    for image in images:
        pixels = (np.asarray(image) / 255 - networks.IMAGENET_MEAN) / networks.IMAGENET_DEVIATION
        pixels = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None]
        with torch.no_grad():
            hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][0]
        normed = torch.nn.functional.layer_norm(
            hidden, (16,), weights["layernorm_before.weight"], weights["layernorm_before.bias"], 1e-12
        )
        name = next(n.removesuffix(".weight") for n in weights if n.endswith(("k_proj.weight", "key.weight")))
        keys = normed @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        similarities.append([[float(a @ b / (a.norm() * b.norm())) for b in keys] for a in keys])
    expected = np.square(np.subtract(*similarities)).mean()
    found = networks.StructureDistance(folder)
    assert len(similarities[0]) == 17
    assert found(*images) == pytest.approx(expected, rel=1e-3)
    assert found(images[0], images[0]) == 0


def test_lpips_is_that_of_torchvisions_alexnet(tmp_path):
    models = pytest.importorskip("torchvision.models")
    files = scoring_models.lpips_files(tmp_path)
    features = models.alexnet().features.eval()
    features.load_state_dict({k.removeprefix("features."): v for k, v in torch.load(files[0]).items()})
    linear = torch.load(files[1])
    pair = [networks.values_of(picture(seed)) for seed in (0, 1)]
    expected, values = 0.0, [(2 * x - 1 + torch.tensor([0.030, 0.088, 0.188]).view(3, 1, 1))
                             / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1) for x in pair]  # fmt: skip
    layer = 0
    with torch.no_grad():
        for module in features:
            values = [module(x) for x in values]
            if isinstance(module, torch.nn.ReLU):
                first, second = (x / x.square().sum(1, keepdim=True).sqrt() for x in values)
                weight = linear[f"lin{layer}.model.1.weight"].flatten()
                expected += torch.einsum("bchw,c->bhw", (first - second) ** 2, weight).mean()
                layer += 1
    assert layer == 5
    assert networks.Lpips(*files)(*pair) == pytest.approx(float(expected), rel=1e-4)


def test_background_error_is_blind_inside_the_mask(tmp_path):
    lpips = networks.Lpips(*scoring_models.lpips_files(tmp_path))
    photo, mask = picture(0), Image.new("L", (96, 64))
    mask.paste(255, (0, 0, 48, 64))
    inside, outside = photo.copy(), photo.copy()
    inside.paste("red", (0, 0, 48, 64))
    outside.paste("red", (48, 0, 96, 64))
    assert networks.background_error(lpips, photo, inside, mask) == pytest.approx(0, abs=1e-9)
    whole = lpips(*map(networks.values_of, (photo, outside)))
    assert networks.background_error(lpips, photo, outside, mask) == pytest.approx(whole, rel=1e-4)


def test_table_pairs_photos():
    def lines(reconstruction, swapped, with_ebca):
        by_way = {"Reconstruction": reconstruction, "Prompt swapped": swapped, "With EBCA": with_ebca}
        return [{"picture": way, "value": values[i]} for i in range(2) for way, values in by_way.items()]

    accuracy = measures.Measure("CLIP accuracy", "", None, percent=True)
    distance = measures.Measure("distance", "", None)
    found = {accuracy: lines([0, 0], [1, 1], [1, 1]), distance: lines([0, 0], [0.2, 0.4], [0.1, 0.3])}
    head, _, *rows = measures.table(found).splitlines()
    assert head == "| | CLIP accuracy, 2 photos | distance, 2 photos |"
    assert rows[0] == "| Reconstruction | 0.0 % (0.0 to 0.0) | 0.0000 (0.0000 to 0.0000) |"
    assert rows[2] == "| With EBCA | 100.0 % (100.0 to 100.0) | 0.2000 (0.1000 to 0.3000) |"
    assert rows[3].endswith("| +0.0 % (+0.0 to +0.0) | -0.1000 (-0.1000 to -0.1000) |")


@pytest.mark.server
@pytest.mark.slow
def test_from_photos_to_the_table_and_on_where_it_stopped(server, tmp_path, comfyui_root, capsys):
    folder, out = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for i, name in enumerate(("tom.jpg", "pur räy.png")):
        picture(i, (160, 96)).save(folder / name)
    (folder / "tom.txt").write_text("a cat on a sofa")
    mask = Image.new("L", (160, 96))
    mask.paste(255, (60, 0, 100, 96))
    mask.save(folder / "tom.mask.png")
    clip = scoring_models.clip_folder(tmp_path / "clip", comfyui_root)
    call = ["--servers", server.url, "--checkpoint", "shapes.safetensors", "--out", str(out), "--images", str(folder),
            "--size", "64", "--steps", "2", "--start", "0", "--edit"]  # fmt: skip
    models = ["--clip", str(clip), "--dino", str(scoring_models.dino_folder(tmp_path / "dino")),
              "--lpips", *map(str, scoring_models.lpips_files(tmp_path))]  # fmt: skip
    assert real_edits.main([*call, "cat_to_dog", *models]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2" in printed
    assert "CLIP accuracy, 2 photos | structure distance, 2 photos | background error, 1 photos" in printed
    table = (out / "cat_to_dog" / "results.md").read_text()
    assert table in printed
    assert Image.open(out / "cat_to_dog" / "sheet.jpg").width > 4 * 256

    files = {path.name.split("-")[-1].removesuffix(".png"): path for path in (out / "cat_to_dog").glob("tom-*.png")}
    made = {title: np.asarray(Image.open(path), int) for title, path in files.items()}
    assert set(made) == {"Photo", "Reconstruction", "Prompt_swapped", "With_EBCA"}
    photo = ImageOps.fit(Image.open(folder / "tom.jpg"), (64, 64), Image.Resampling.LANCZOS)
    assert np.abs(made["Photo"] - np.asarray(photo, int)).mean() < 3
    for one, other in itertools.combinations(("Reconstruction", "Prompt_swapped", "With_EBCA"), 2):
        assert np.abs(made[one] - made[other]).mean() > 0.5, (one, other)

    scores = (out / "cat_to_dog" / "scores.jsonl").read_text()
    lines = [json.loads(line) for line in scores.splitlines()]
    assert len(lines) == 3 * 2 + 3 * 2 + 3
    for line in lines:
        if line["measure"] == "CLIP accuracy":
            assert line["value"] == (line["new caption"] > line["caption"])
    files["With_EBCA"].unlink()
    assert real_edits.main([*call, "cat_to_dog", *models]) == 0
    again = capsys.readouterr().out
    assert "1 of 1" in again
    assert (out / "cat_to_dog" / "scores.jsonl").read_text() == scores
    assert np.array_equal(np.asarray(Image.open(files["With_EBCA"])), made["With_EBCA"])

    # Edits of no strength give the reconstruction: with the caption as both prompts, cfg changes nothing.
    plain = [*call, "cat_to_cat_with_glasses", "--alphas", "0", "0"]
    assert real_edits.main(plain) == 0
    assert "Left out, as it is not given: what --clip measures." in capsys.readouterr().out
    pair = [np.asarray(Image.open(next((out / "cat_to_cat_with_glasses").glob(f"tom-*-{title}.png"))), int)
            for title in ("Reconstruction", "With_EBCA")]  # fmt: skip
    assert np.abs(np.subtract(*pair)).max() <= 2
    assert np.array_equal(pair[0], made["Reconstruction"])

    # With an empty negative prompt cfg does.
    assert real_edits.main([*plain, "--empty-negative", "--out", str(tmp_path / "empty")]) == 0
    pair = [np.asarray(Image.open(next((tmp_path / "empty").glob(f"*/tom-*-{title}.png"))), int)
            for title in ("Reconstruction", "With_EBCA")]  # fmt: skip
    assert np.array_equal(pair[0], made["Reconstruction"])
    assert np.abs(np.subtract(*pair)).mean() > 0.5
