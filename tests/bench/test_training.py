"""Training: recipes, photographs, the loop, resume, and what each task makes of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import nn

from waterproof.bench.training.photographs import Photographs
from waterproof.bench.training.recipes import (
    AutoencoderRecipe,
    HiddenRecipe,
    Recipe,
    StableSignatureRecipe,
    load_recipe,
)
from waterproof.bench.training.trainer import CHECKPOINT, Task, choose_device, fit
from waterproof.core.errors import DatasetError, SpecError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight crops of real photographs and one file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate((data.astronaut(), data.chelsea(), data.coffee(), data.rocket())):
        Image.fromarray(picture[:200, :300]).save(folder / f"a{i}.png")
        Image.fromarray(picture[-200:, -260:]).save(folder / f"b{i}.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def loaded(photos: Path) -> Photographs:
    return Photographs.load(photos, 64, 2)


class Line(Task):
    """Fits a line: small enough to kill and resume many times."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.data = recipe, "digits"
        generator = torch.Generator().manual_seed(recipe.seed)
        self.modules = {"line": nn.Linear(3, 1)}
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator))

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        x = torch.randn(8, 3, generator=generator)
        loss = (self.modules["line"](x) - x.sum(1, keepdim=True)).square().mean()
        return loss, {"loss": loss.item()}


def line_recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "line",
        "steps": 12,
        "batch": 8,
        "size": 16,
        "learning_rate": 0.1,
        "checkpoint": 3,
    }
    return Recipe(**(fields | changes))


def weights(task: Task) -> list[torch.Tensor]:
    return [p.detach().clone() for p in task.parameters()]


def test_photographs_depend_on_bytes_and_not_on_names(photos: Path, loaded: Photographs, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for i, path in enumerate(sorted(photos.iterdir(), reverse=True)):
        (moved / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    again = Photographs.load(moved, 64, 2)
    assert again.digest == loaded.digest
    assert all(torch.equal(a, b) for a, b in zip(again.train, loaded.train, strict=True))
    assert len(loaded.train), len(loaded.validation) == (6, 2)
    assert [name for name, _ in loaded.rejected] == ["broken.png"]
    assert {min(image.shape[1:]) for image in loaded.train} == {64}


def test_crops_are_drawn_from_the_generator_alone(loaded: Photographs) -> None:
    a, b = (loaded.batch(5, 32, torch.Generator().manual_seed(1)) for _ in range(2))
    assert a.shape == (5, 3, 32, 32)
    assert torch.equal(a, b)
    assert 0 <= float(a.min()) < float(a.max()) <= 1


@pytest.mark.parametrize(("short", "says"), [(64, "no such folder"), (1000, "at least 1000 pixels")])
def test_photographs_that_are_missing_or_small_are_named(photos: Path, short: int, says: str) -> None:
    with pytest.raises(DatasetError, match=says):
        Photographs.load(photos / "absent" if short == 64 else photos, short, 2)


@pytest.mark.parametrize("stops", [(1,), (3,), (4, 7), (2, 5, 8, 11)])
def test_a_training_that_was_killed_ends_with_the_same_weights(stops: tuple[int, ...], tmp_path: Path) -> None:
    whole = Line(line_recipe())
    curve = fit(whole, tmp_path / "whole").curve
    for stop in stops:
        seen = 0

        def kill(units: int, doing: str, stop: int = stop) -> None:
            nonlocal seen
            seen += units
            if seen >= stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(Line(line_recipe()), tmp_path / "killed", tick=kill)
    resumed = Line(line_recipe())
    done = fit(resumed, tmp_path / "killed")
    assert done.finished
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert done.curve == curve


def test_a_budget_of_minutes_stops_and_the_next_call_goes_on(tmp_path: Path) -> None:
    whole, parts = Line(line_recipe()), Line(line_recipe())
    fit(whole, tmp_path / "whole")
    first = fit(parts, tmp_path / "parts", minutes=0)
    assert (first.step, first.finished) == (1, False)
    parts = Line(line_recipe())
    assert fit(parts, tmp_path / "parts").finished
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(parts), strict=True))


def test_checkpoints_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    fit(Line(line_recipe()), tmp_path)
    path = tmp_path / CHECKPOINT
    with pytest.raises(StoreError, match="another recipe"):
        fit(Line(line_recipe(learning_rate=0.2)), tmp_path)
    other = Line(line_recipe())
    other.data = "letters"
    with pytest.raises(StoreError, match="another set of training images"):
        fit(other, tmp_path)
    whole = path.read_bytes()
    for half in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(half)
        with pytest.raises(StoreError, match=r"damaged.*delete it"):
            fit(Line(line_recipe()), tmp_path)


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    import pickle

    class Harm:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return (Path.touch, (tmp_path / "harmed",))

    (tmp_path / CHECKPOINT).write_bytes(pickle.dumps(Harm()))
    with pytest.raises(StoreError, match="damaged"):
        fit(Line(line_recipe()), tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    class Diverging(Line):
        def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
            loss, _ = super().loss(step, generator)
            return loss * float("nan"), {"loss": float("nan")}

    with pytest.raises(StoreError, match="diverged at step 0"):
        fit(Diverging(line_recipe()), tmp_path)


def test_the_learning_rate_rises_and_follows_a_cosine() -> None:
    recipe = line_recipe(steps=110, warmup=10, learning_rate=1.0, final_learning_rate=0.2)
    rates = [recipe.rate(step) for step in range(110)]
    assert np.allclose(rates[:10], np.arange(1, 11) / 10)
    assert np.allclose(rates[10:], 0.2 + 0.4 * (1 + np.cos(np.pi * np.arange(100) / 100)))


def test_recipes_of_the_package_load() -> None:
    assert load_recipe(HiddenRecipe, "hidden").network.bits == 48
    full = load_recipe(HiddenRecipe, "hidden-full")
    assert full.network.stages == ((64, 8),)
    assert load_recipe(AutoencoderRecipe, "autoencoder").model["latent_channels"] == 4
    assert load_recipe(StableSignatureRecipe, "stable-signature", steps=7, seed=None).steps == 7


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("stepz: 3", r"line 7: stepz.*Did you mean 'steps'"),
        ("warmup: -1", "line 7: warmup"),
        ("augmentations: [jpg 50]", "unknown augmentation 'jpg'. Did you mean 'jpeg'"),
        ("augmentations: [jpeg fifty]", "'fifty' is no number"),
        ("size: 300", "larger than the photographs"),
        ("- 3", "r.yaml"),
    ],
)
def test_a_wrong_recipe_names_its_line(text: str, says: str, tmp_path: Path) -> None:
    phases = "phases: [{steps: 3, learning_rate: 0.001, strength: [1, 1]}]"
    base = ["name: mine", "batch: 2", "short: 256", phases, "size: 32", "", text]
    lines = base if not text.startswith("size") else [*base[:4], text]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(SpecError, match=says):
        load_recipe(HiddenRecipe, str(path))


def test_a_recipe_that_nobody_knows() -> None:
    with pytest.raises(SpecError, match="Did you mean 'hidden'"):
        load_recipe(HiddenRecipe, "hiden")
    with pytest.raises(SpecError, match="no such recipe"):
        load_recipe(HiddenRecipe, "absent.yaml")


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(SpecError, match="auto, cpu or cuda"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto") == "cpu"
        with pytest.raises(SpecError, match="no CUDA device"):
            choose_device("cuda")


AUTOENCODER = {
    "block_out_channels": [8, 8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}


def autoencoder_recipe(**changes: Any) -> AutoencoderRecipe:
    fields = {"name": "small", "steps": 5, "batch": 4, "size": 32, "short": 64, "validation": 2, "learning_rate": 2e-3}
    return AutoencoderRecipe.model_validate({**fields, "model": AUTOENCODER, **changes})


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_five_steps_teach_an_autoencoder_something(precision: str, loaded: Photographs, tmp_path: Path) -> None:
    from waterproof.bench.training.autoencoder import AutoencoderTask

    task = AutoencoderTask(autoencoder_recipe(precision=precision), loaded)
    done = fit(task, tmp_path)
    assert done.curve[-1]["loss"] < 0.9 * done.curve[0]["loss"]
    assert set(task.judge()) == {"psnr", "lowest psnr", "latent sd"}


def test_group_norms_in_float32_give_the_same_numbers() -> None:
    from waterproof.bench.training.autoencoder import norms_in_float32

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8))
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    before, names = model(x), list(model.state_dict())
    norms_in_float32(model)
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == names


def test_an_autoencoder_that_cannot_be(loaded: Photographs) -> None:
    from waterproof.bench.training.autoencoder import AutoencoderTask

    with pytest.raises(SpecError, match="size 30 does not divide by the model's factor 4"):
        AutoencoderTask(autoencoder_recipe(size=30), loaded)
    with pytest.raises(SpecError, match="small: model:"):
        AutoencoderTask(autoencoder_recipe(model={"latents": 3}), loaded)


def test_the_command_trains_an_autoencoder_that_diffusers_loads(
    cli: Callable[..., Any], photos: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(json.dumps(autoencoder_recipe().model_dump(mode="json")), encoding="utf-8")
    said = cli("train", "autoencoder", recipe, "--data", photos, "--out", "out", "--steps", 2, "--device", "cpu")
    assert said.code == 0, said.err
    assert "2 of 2 steps" in said.out
    from waterproof.core.autoencoders import load_autoencoder

    assert load_autoencoder(tmp_path / "out").factor == 4
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    assert card["data"]["trained_on"] == 6
    assert card["training"]["steps"] == 2
    for name in ("README.md", "curve.csv", "curve.png", "checkpoint.pt"):
        assert (tmp_path / "out" / name).is_file()
    wrong = cli("train", "autoencoder", recipe, "--data", "nowhere")
    assert wrong.code == 2
    assert wrong.err.strip() == "waterproof: no such folder of photographs: nowhere"


NETWORK = {"bits": 8, "stages": [[8, 1], [12, 1]], "detail": True, "encoder_width": 16, "encoder_depth": 1, "patch": 2}


def hidden_recipe(**changes: Any) -> HiddenRecipe:
    fields = {"name": "tiny", "steps": 5, "batch": 8, "size": 32, "short": 64, "validation": 2, "learning_rate": 1e-2}
    phases = [{"steps": 5, "learning_rate": 1e-2, "attenuation": "uniform", "strength": [3.0, 3.0]}]
    more = {"network": NETWORK | {"momentum": 0.2}, "whitening_size": 64, "phases": phases}
    given = {**fields, **more, **changes}
    return HiddenRecipe.model_validate({name: value for name, value in given.items() if value is not None})


def test_five_steps_teach_the_extractor_something(loaded: Photographs, tmp_path: Path) -> None:
    from waterproof.bench.training.hidden import HiddenTask

    recipe = hidden_recipe(augmentations=["identity", "jpeg 80", "crop 0.7"], jitter=2, steps=40)
    done = fit(HiddenTask(recipe, loaded), tmp_path)
    assert np.mean([row["loss"] for row in done.curve[-5:]]) < np.mean([row["loss"] for row in done.curve[:5]])


def test_phases_follow_one_another_and_stretch_alike(loaded: Photographs) -> None:
    from waterproof.bench.training.hidden import HiddenTask

    search = {"steps": 4, "embed": "search", "train": "extractor", "learning_rate": 0.1, "warmup": 2}
    phases = [
        search | {"strength": [4.0, 1.0], "augment": False},
        {"steps": 6, "learning_rate": 0.2, "strength": [1, 1]},
    ]
    recipe = hidden_recipe(phases=phases, steps=None)
    assert (recipe.steps, recipe.phase(3)[0].embed, recipe.phase(4)[1], recipe.phase(9)[1]) == (10, "search", 0, 5)
    assert [round(recipe.rate(step), 4) for step in (0, 1, 2, 4)] == [0.05, 0.1, 0.1, 0.2]
    assert [phase.steps for phase in hidden_recipe(phases=phases, steps=25).phases] == [10, 15]
    task = HiddenTask(recipe, loaded)
    for step, encoder, extractor in ((0, False, True), (5, True, True)):
        task.loss(step, torch.Generator().manual_seed(0))
        assert next(task.encoder.parameters()).requires_grad == encoder
        assert next(task.extractor.parameters()).requires_grad == extractor


def test_a_search_leads_the_extractor_to_the_message(loaded: Photographs) -> None:
    from waterproof.bench.methods.hidden.network import attenuate
    from waterproof.bench.training.hidden import HiddenTask

    task = HiddenTask(hidden_recipe(search_steps=6), loaded)
    images, bits = loaded.batch(4, 32, torch.Generator().manual_seed(0)), torch.tensor([[1.0, 0.0] * 4] * 4)
    phase = task.recipe.phases[0].model_copy(update={"augment": False, "attenuation": "uniform"})
    delta = task.search(images, bits, phase, 1.0, torch.Generator().manual_seed(0))
    assert float(delta.abs().max()) <= 1
    with torch.no_grad():
        before, after = (task.extractor(x) for x in (images, images + attenuate(images, delta, "uniform", 1.0)))
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    assert float(loss(after, bits)) < float(loss(before, bits))


def test_a_training_measures_the_method_as_it_embeds(loaded: Photographs) -> None:
    from waterproof.bench.training.hidden import HiddenTask

    plain = HiddenTask(hidden_recipe(), loaded).judge(("identity", "jpeg 80"))
    assert set(plain) == {"psnr", "bit accuracy, identity", "bit accuracy, jpeg 80"}
    refined = HiddenTask(hidden_recipe(network=NETWORK | {"refine": 8, "strength": 1.0}), loaded).judge(("identity",))
    assert set(refined) == {
        f"{who}{name}" for who in ("", "encoder alone: ") for name in ("psnr", "bit accuracy, identity")
    }
    assert refined["bit accuracy, identity"] > refined["encoder alone: bit accuracy, identity"]
    # How the trained networks are used afterwards is no part of what they were trained by.
    assert hidden_recipe().id == hidden_recipe(network=NETWORK | {"momentum": 0.2, "refine": 8}, whitening_scale=3).id
    assert hidden_recipe().id != hidden_recipe(seed=1).id


def test_two_trainings_never_share_a_folder(loaded: Photographs, photos: Path, tmp_path: Path) -> None:
    from waterproof.bench.store import locked
    from waterproof.bench.training import make

    with locked(tmp_path), pytest.raises(StoreError, match="another process is running in"):
        make.train_hidden(hidden_recipe(), photos, tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strength": [0, 1]}, "both must be above 0"),
        ({"embed": "search"}, "say train: extractor"),
        ({"learning_rate": -1}, "greater than 0"),
        ({"embedd": "search"}, "Extra inputs"),
    ],
)
def test_a_wrong_phase_is_refused(change: dict[str, Any], says: str) -> None:
    phase = {"steps": 3, "learning_rate": 0.1, "strength": [1.0, 1.0]}
    with pytest.raises(ValueError, match=says):
        hidden_recipe(phases=[phase | change], steps=None)


def test_whitening_is_the_pca_that_numpy_finds(loaded: Photographs) -> None:
    from waterproof.bench.methods.hidden.network import Extractor, NetworkConfig
    from waterproof.bench.training.hidden import fit_whitening
    from waterproof.core.errors import StatisticsError

    torch.manual_seed(0)
    extractor = Extractor(NetworkConfig.model_validate(NETWORK))
    extractor.linear.weight.data *= 20
    images = [loaded.batch(1, 48, torch.Generator().manual_seed(i))[0].mul(255).to(torch.uint8) for i in range(24)]
    layer, found = fit_whitening(extractor, images, scale=2.0)
    with torch.no_grad():
        logits = torch.cat([extractor(image[None].float() / 255) for image in images]).double().numpy()
    white = logits @ layer["weight"].double().numpy().T + layer["bias"].double().numpy()
    assert np.allclose(white.mean(0), 0, atol=1e-3)
    assert np.allclose(np.cov(white.T), 4 * np.eye(8), atol=2e-3)
    # PCA and not ZCA: rows of the matrix are the principal axes, as the singular value decomposition gives them.
    _, spread, axes = np.linalg.svd(logits - logits.mean(0), full_matrices=False)
    rows = layer["weight"].double().numpy()[::-1] / 2 * (spread / np.sqrt(23))[:, None]
    assert np.allclose(np.abs((rows * axes).sum(1)), 1, atol=1e-3)
    # ZCA: the symmetric square root of the inverse covariance, which SciPy finds its own way.
    from scipy.linalg import fractional_matrix_power

    turned, _ = fit_whitening(extractor, images, scale=2.0, rotation="zca")
    expected = 2 * fractional_matrix_power(np.cov(logits.T), -0.5).real
    assert np.allclose(turned["weight"].numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())
    assert found["images"] == 24
    with pytest.raises(StatisticsError, match="at least 16"):
        fit_whitening(extractor, images[:15], 1.0)
    extractor.linear.weight.data[3] = extractor.linear.weight.data[2]
    with pytest.raises(StatisticsError, match="follow from each other"):
        fit_whitening(extractor, images, 1.0)


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny trained weights: an autoencoder, an extractor with whitening, and what they were made by."""
    from waterproof.bench.training import make

    folder = tmp_path_factory.mktemp("made")
    make.train_autoencoder(autoencoder_recipe(), photos, folder / "autoencoder", device="cpu")
    several = tmp_path_factory.mktemp("several")
    for path in photos.glob("[ab][0-9].*"):
        picture = Image.open(path)
        for i in range(3):
            picture.crop((10 * i, 5 * i, 190 + 10 * i, 180 + 5 * i)).save(several / f"{path.stem}-{i}.png")
    recipe = hidden_recipe(steps=30)
    make.train_hidden(recipe, several, folder / "hidden", device="cpu")
    return folder


def signature_recipe(made: Path, **changes: Any) -> StableSignatureRecipe:
    fields = {"name": "keys", "steps": 5, "batch": 2, "size": 32, "short": 64, "validation": 2, "learning_rate": 2e-2}
    more = {"autoencoder": str(made / "autoencoder"), "extractor": str(made / "hidden"), "image": "mse"}
    return StableSignatureRecipe.model_validate({**fields, **more, "checkpoint": 2, **changes})


def test_the_extractor_is_whitened_and_the_encoder_reads_unwhitened_bits(made: Path) -> None:
    from waterproof.bench.methods.hidden.network import load_encoder, load_extractor_folder

    plain, whitened = (load_extractor_folder(made / "hidden", whitened=w) for w in (False, True))
    image = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    assert whitened.whitening is not None
    torch.testing.assert_close(whitened(image), whitened.whitening(plain(image)))
    delta = load_encoder(made / "hidden")(image, torch.ones(1, 8))
    assert delta.shape == image.shape
    assert float(delta.abs().max()) <= 1


def test_a_decoder_learns_its_key_and_only_its_own_tensors_change(
    made: Path, loaded: Photographs, photos: Path, tmp_path: Path
) -> None:
    from waterproof.bench.methods.stable_signature.users import load_makers
    from waterproof.bench.training.make import train_stable_signature

    recipe = signature_recipe(made, trained="last 1", steps=30)
    count, quality = train_stable_signature(recipe, photos, tmp_path, 2, device="cpu")
    assert count == 2
    assert set(quality) > {"psnr", "bit accuracy, identity"}
    makers = load_makers(str(tmp_path), None, None)
    original = makers.autoencoder.model.state_dict()
    for key in makers.users.keys:
        marked = makers.marked(key).model.state_dict()
        changed = {name for name in original if not torch.equal(original[name], marked[name])}
        assert changed
        assert all(
            name.startswith(("decoder.up_blocks.2", "decoder.conv_norm_out", "decoder.conv_out")) for name in changed
        )
    curves = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))["users"]
    for user in curves:
        assert user["curve"][-1]["message"] < user["curve"][0]["message"]
    assert not (tmp_path / "unfinished").exists() or not list((tmp_path / "unfinished").iterdir())


def test_keys_are_made_the_same_in_any_number_of_sittings(made: Path, photos: Path, tmp_path: Path) -> None:
    from waterproof.bench.training.make import drawn_keys, train_stable_signature

    recipe = signature_recipe(made)
    train_stable_signature(recipe, photos, tmp_path / "whole", 2, device="cpu")
    for _ in range(12):
        count, _ = train_stable_signature(recipe, photos, tmp_path / "parts", 2, minutes=1e-9, device="cpu")
        if count == 2:
            break
    assert count == 2
    for name in ("user-000.safetensors", "user-001.safetensors", "users.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert drawn_keys(3, 8, 0)[:2] == drawn_keys(2, 8, 0)
    other = signature_recipe(made, steps=6)
    with pytest.raises(StoreError, match="another recipe"):
        train_stable_signature(other, photos, tmp_path / "whole", 1, device="cpu")


def test_wrong_keys_and_parts_are_refused(made: Path, photos: Path, tmp_path: Path) -> None:
    from waterproof.bench.training.make import train_stable_signature

    with pytest.raises(SpecError, match="'0101' is no key: 8 characters"):
        train_stable_signature(signature_recipe(made), photos, tmp_path / "a", ["0101"], device="cpu")
    with pytest.raises(SpecError, match="which has 3"):
        train_stable_signature(signature_recipe(made, trained="last 4"), photos, tmp_path / "b", 1, device="cpu")
    with pytest.raises(SpecError, match="size 30 does not divide by the factor 4"):
        train_stable_signature(signature_recipe(made, size=30), photos, tmp_path / "c", 1, device="cpu")


def test_the_command_makes_decoders_that_a_run_uses(
    cli: Callable[..., Any], made: Path, photos: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "keys.yaml"
    recipe.write_text(json.dumps(signature_recipe(made).model_dump(mode="json")), encoding="utf-8")
    keys = tmp_path / "keys.txt"
    keys.write_text("00001111\n01010101\n", encoding="utf-8")
    train = ("train", "stable-signature", recipe, "--data", photos, "--out", "decoders", "--device", "cpu", "--keys")
    said = cli(*train, keys)
    assert said.code == 0, said.err
    assert "decoders: 2 decoders" in said.out
    methods = f"[{{stable-signature: {{weights: decoders}}}}, {{hidden: {{weights: {made / 'hidden'}}}}}]"
    run = ("run", "quick", "--methods", methods, "--attacks", "identity", "--data", photos, "--engine", "inline")
    said = cli(*run, "--dataset", f"{{folder: {{root: {photos}, size: 64}}}}", "--fpr", "0.1", "--no-report")
    assert said.code == 0, said.err
    assert "stable-signature(weights=decoders)" in said.out
    for wrong, says in (("absent.txt", "cannot read 'absent.txt'"), ("0", "at least one")):
        said = cli(*train, wrong)
        assert said.code == 2
        assert says in said.err
