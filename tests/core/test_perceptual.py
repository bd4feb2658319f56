"""The perceptual distances are the published formulas, computed here block by block, and can be descended anywhere."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft
from scipy.special import softmax

from waterproof.bench.metrics import Lpips
from waterproof.core import perceptual
from waterproof.core.errors import ImageError, SpecError, UnavailableError
from waterproof.core.perceptual import (
    PERCEPTUALS,
    LearnedPatchSimilarity,
    Perceptual,
    WatsonDct,
    WatsonDft,
    draw_offset,
    load_perceptual,
)
from waterproof.core.weights import load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from waterproof.core.images import Images

State = dict[str, torch.Tensor]

COLOURS = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
FILES = {"watson-dct": "rgb_watson_dct_trial0.pth", "watson-dft": "rgb_watson_fft_trial0.pth"}


def _invented(name: str) -> State:
    """A state of the released files' names and shapes with other numbers, drawn near the released ones."""
    random = torch.Generator().manual_seed(7)
    shape = (8, 8) if name == "watson-dct" else (8, 5)
    state = {
        "w_tild": torch.rand(3, generator=random),
        "to_YCbCr.transform": torch.tensor(COLOURS.T, dtype=torch.float32),
        "to_YCbCr.bias": torch.tensor([0.0, 0.5, 0.5]),
    }
    for part in ("ly", "lcb", "lcr"):
        state[f"{part}.blocksize"] = torch.tensor(8)
        state[f"{part}.t_tild"] = 2 * torch.randn(shape, generator=random)
        state[f"{part}.alpha"] = torch.rand((), generator=random) * 2 - 0.5
        state[f"{part}.w_tild"] = torch.randn((), generator=random)
        state[f"{part}.beta"] = 0.5 + 2 * torch.rand((), generator=random)
        if name == "watson-dct":
            state[f"{part}.dct.A"] = torch.tensor(fft.dct(np.eye(8), axis=0, norm="ortho"), dtype=torch.float32)
        else:
            state[f"{part}.w_phase_tild"] = torch.randn(shape, generator=random) - 3
    return state


@cache
def _learned(name: str) -> Perceptual:
    kind = WatsonDct if name == "watson-dct" else WatsonDft
    return kind(name, "", _invented(name))


def _distances() -> Iterator[tuple[str, Callable[[], Perceptual]]]:
    yield "mse", lambda: load_perceptual("mse")
    yield "watson-1993", lambda: load_perceptual("watson-1993")
    yield "watson-1993, beta 2", lambda: load_perceptual("watson-1993", beta=2)
    yield "watson-dct", lambda: _learned("watson-dct")
    yield "watson-dft", lambda: _learned("watson-dft")


every_distance = pytest.mark.parametrize(
    "make", [make for _, make in _distances()], ids=[name for name, _ in _distances()]
)


def _jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    """JPEG with the full chroma resolution, so that every step down in quality is a step away from the image."""
    coded = []
    for array in images.mul(255).round().byte().permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality, subsampling=0)
        coded.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(coded)).permute(0, 3, 1, 2).float() / 255


# --- the formulas, one block after the other, in double precision


def _blocks(plane: np.ndarray) -> list[np.ndarray]:
    rows, columns = plane.shape
    return [plane[r : r + 8, c : c + 8] for r in range(0, rows, 8) for c in range(0, columns, 8)]


def _planes(image: np.ndarray, bias: float = 0.0) -> np.ndarray:
    planes: np.ndarray = np.tensordot(COLOURS, image, 1) + np.array([0, bias, bias])[:, None, None]
    return planes


def _release(name: str, state: State, image: np.ndarray, reference: np.ndarray, faint: float = 0.0) -> float:
    """Czolbe et al.'s distance of one image ``[3, H, W]`` as published, with their constant 1e-10 where they have it.

    With ``faint`` above 0 the phase of a coefficient fades as its amplitude nears that of rounding errors.
    """
    values = {key: value.double().numpy() for key, value in state.items()}
    mixture = np.exp(values["w_tild"]) / np.exp(values["w_tild"]).sum()
    total, tiny = 0.0, 1e-10
    for channel, part in enumerate(("ly", "lcb", "lcr")):
        table, alpha, beta = np.exp(values[f"{part}.t_tild"]), values[f"{part}.alpha"], values[f"{part}.beta"]
        contrast = 1 / (1 + np.exp(-values[f"{part}.w_tild"]))
        pairs = [
            [_transform(name, block) for block in _blocks(_planes(array, 0.5)[channel])] for array in (image, reference)
        ]
        mean = np.mean([_size(name, old)[0, 0] for old in pairs[1]])
        pooled = angles = 0.0
        for new, old in zip(*pairs, strict=True):
            plain = table * ((_size(name, old)[0, 0] + tiny) / (mean + tiny)) ** alpha
            masked = (np.abs(old) + tiny) ** contrast * plain ** (1 - contrast)
            threshold = (np.stack([plain, masked]) * softmax([plain, masked], axis=0)).sum(0)
            pooled += (np.abs((_size(name, old) - _size(name, new)) / threshold) ** beta).sum()
            if name == "watson-dft":
                weights = np.exp(values[f"{part}.w_phase_tild"])
                weights[[0, 0, 4, 4], [0, 4, 0, 4]] = 0
                angles += (weights * (_faded_angle(old, new, faint) if faint else _angle(old, new))).sum()
        total += mixture[channel] * (pooled ** (1 / beta) + angles)
    return float(total)


def _angle(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    angle: np.ndarray = np.arccos(np.cos(np.angle(old) - np.angle(new)))
    return angle


def _faded_angle(old: np.ndarray, new: np.ndarray, faint: float) -> np.ndarray:
    """The angle whose chord has the length of the difference of the two, each shortened to |c| / (|c| + faint)."""
    angle: np.ndarray = 2 * np.arcsin(np.abs(new / (np.abs(new) + faint) - old / (np.abs(old) + faint)) / 2)
    return angle


def _transform(name: str, block: np.ndarray) -> np.ndarray:
    coefficients: np.ndarray = fft.dctn(block, norm="ortho") if name == "watson-dct" else fft.rfft2(block) / 64
    return coefficients


def _size(name: str, coefficients: np.ndarray) -> np.ndarray:
    return coefficients if name == "watson-dct" else np.abs(coefficients)


SENSITIVITY = """
    1.40 1.01 1.16 1.66  2.40  3.43  4.79  6.56
    1.01 1.45 1.32 1.52  2.00  2.71  3.67  4.93
    1.16 1.32 2.24 2.59  2.98  3.64  4.60  5.88
    1.66 1.52 2.59 3.77  4.55  5.30  6.28  7.60
    2.40 2.00 2.98 4.55  6.15  7.46  8.71 10.17
    3.43 2.71 3.64 5.30  7.46  9.62 11.58 13.51
    4.79 3.67 4.60 6.28  8.71 11.58 14.50 17.29
    6.56 4.93 5.88 7.60 10.17 13.51 17.29 21.15
"""


def _watson(image: np.ndarray, reference: np.ndarray, beta: float) -> float:
    """Watson's model of one image ``[3, H, W]``, one coefficient after the other."""
    table = np.array(SENSITIVITY.split(), dtype=float).reshape(8, 8)
    new, old = _planes(255 * image), _planes(255 * reference)
    light = [(max(fft.dctn(block, norm="ortho")[0, 0], 200) / 1024) ** 0.649 for block in _blocks(old[0])]
    powers = []
    for channel in range(3):
        for factor, a, b in zip(light, _blocks(new[channel]), _blocks(old[channel]), strict=True):
            ours, theirs = fft.dctn(a, norm="ortho"), fft.dctn(b, norm="ortho")
            for i, j in np.ndindex(8, 8):
                threshold = table[i, j] * factor * (1 if channel == 0 else 2)
                if i + j:
                    threshold = max(threshold, abs(theirs[i, j]) ** 0.7 * threshold**0.3)
                powers.append(abs((ours[i, j] - theirs[i, j]) / threshold) ** beta)
    return float(np.mean(powers) ** (1 / beta))


# --- values


@pytest.fixture(scope="module")
def crops(photographs: Images) -> torch.Tensor:
    """Crops of three photographs, 56 x 72."""
    return photographs.float()[..., 100:156, 90:162].contiguous()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("quality", [50, 90])
def test_a_learned_distance_is_the_published_formula_block_by_block(
    name: str, quality: int, crops: torch.Tensor
) -> None:
    coded = _jpeg(crops, quality)
    pairs = zip(*_doubles(coded, crops), strict=True)
    expected = [_release(name, _invented(name), image, reference, faint=1e-5) for image, reference in pairs]
    assert _learned(name)(coded.double(), crops.double()).numpy() == pytest.approx(expected, rel=1e-4)
    assert _learned(name)(coded, crops).numpy() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_the_released_weights_give_the_published_formula(name: str, shared_data: Path, crops: torch.Tensor) -> None:
    folder = shared_data / "weights" / "watson-perceptual"
    state, coded = load_state(folder / FILES[name]), _jpeg(crops, 50)
    pairs = zip(*_doubles(coded, crops), strict=True)
    expected = [_release(name, state, image, reference) for image, reference in pairs]
    distance = load_perceptual(name, folder)
    # The release gives coefficients that are nothing but rounding errors a phase: up to 2 % of the distance here.
    assert distance(coded, crops).numpy() == pytest.approx(expected, rel=1e-4 if name == "watson-dct" else 0.02)
    assert (distance.name, len(distance.digest)) == (name, 64)


@pytest.mark.parametrize("beta", [1.5, 2, 4])
def test_watsons_model_is_its_formula_coefficient_by_coefficient(beta: float, crops: torch.Tensor) -> None:
    coded, originals = _jpeg(crops, 50), crops.clone()
    originals[0] *= 0.2  # a dark photograph reaches the bound on darkness
    pairs = zip(*_doubles(coded, originals), strict=True)
    expected = [_watson(image, reference, beta) for image, reference in pairs]
    distance = load_perceptual("watson-1993", beta=beta)
    assert distance(coded.double(), originals.double()).numpy() == pytest.approx(expected, rel=1e-4)
    assert distance(coded, originals).numpy() == pytest.approx(expected, rel=1e-3)


def _doubles(*batches: torch.Tensor) -> list[np.ndarray]:
    return [batch.double().numpy() for batch in batches]


def test_mse_is_the_mean_of_squares(crops: torch.Tensor) -> None:
    coded = _jpeg(crops, 50)
    expected = [np.mean((a - b) ** 2) for a, b in zip(*_doubles(coded, crops), strict=True)]
    assert load_perceptual("mse")(coded, crops).numpy() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_a_released_file_is_used_or_is_a_constant_known_here(name: str, shared_data: Path) -> None:
    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, key: str) -> torch.Tensor:
            used.add(key)
            return super().__getitem__(key)

    used: set[str] = set()
    state = load_state(shared_data / "weights" / "watson-perceptual" / FILES[name])
    (WatsonDct if name == "watson-dct" else WatsonDft)(name, "", Watched(state))
    assert {key: value.shape for key, value in state.items()} == {k: v.shape for k, v in _invented(name).items()}
    for key in state.keys() - used:
        assert key.endswith((".blocksize", ".dct.A"))
        torch.testing.assert_close(state[key], _invented(name)[key])


@every_distance
def test_a_worse_copy_is_farther(make: Callable[[], Perceptual], photographs: Images) -> None:
    originals, distance = photographs.float(), make()
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    for worse in ([_jpeg(originals, q) for q in (90, 50, 10)], [originals + s * noise for s in (0.005, 0.02, 0.08)]):
        values = torch.stack([distance(images, originals) for images in worse])
        assert bool((values.diff(dim=0) > 0).all())


@pytest.mark.parametrize("name", FILES)
def test_the_released_weights_rank_jpeg_of_real_photographs(name: str, shared_data: Path, photographs: Images) -> None:
    distance, originals = load_perceptual(name, shared_data / "weights" / "watson-perceptual"), photographs.float()
    values = torch.stack([distance(_jpeg(originals, quality), originals) for quality in (90, 50, 10)])
    assert bool((values.diff(dim=0) > 0).all())


@every_distance
def test_a_distance_does_not_depend_on_the_batch(make: Callable[[], Perceptual], crops: torch.Tensor) -> None:
    coded, distance = _jpeg(crops, 50), make()
    together = distance(coded, crops)
    for i in range(3):
        torch.testing.assert_close(distance(coded[i : i + 1], crops[i : i + 1])[0], together[i], rtol=1e-5, atol=0)


@pytest.mark.parametrize("offset", [(3, 0), (0, 5), (7, 2)])
@pytest.mark.parametrize("name", ["watson-1993", *FILES])
def test_a_shifted_grid_is_a_padded_image(name: str, offset: tuple[int, int], crops: torch.Tensor) -> None:
    distance = load_perceptual(name) if name == "watson-1993" else _learned(name)
    coded = _jpeg(crops, 50)
    top, left = offset
    around = (left, -(72 + left) % 8, top, -(56 + top) % 8)
    padded = [torch.nn.functional.pad(images, around, mode="replicate") for images in (coded, crops)]
    shifted = distance(coded, crops, offset)
    torch.testing.assert_close(shifted, distance(*padded))
    assert not torch.equal(shifted, distance(coded, crops))


def test_offsets_are_drawn_from_the_generator_and_cover_the_block() -> None:
    drawn = [draw_offset(torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert draw_offset(torch.Generator().manual_seed(5)) == drawn[5]
    assert {row for row, _ in drawn} == {column for _, column in drawn} == set(range(8))


# --- gradients


@every_distance
def test_equal_images_are_at_zero_with_no_gradient(make: Callable[[], Perceptual], crops: torch.Tensor) -> None:
    images = crops.clone().requires_grad_()
    distance = make()(images, crops)
    distance.sum().backward()
    assert distance.tolist() == [0.0, 0.0, 0.0]
    assert images.grad is not None
    assert float(images.grad.abs().max()) == 0.0


@every_distance
def test_the_gradient_is_that_of_finite_differences(make: Callable[[], Perceptual], crops: torch.Tensor) -> None:
    """In double precision, along 40 random directions, on a photograph of a size that fills no block."""
    reference, distance = crops[:1, :, :13, :18].double(), make()
    images = _jpeg(crops, 30)[:1, :, :13, :18].double().requires_grad_()
    distance(images, reference, (2, 3)).sum().backward()
    gradient = images.grad
    assert gradient is not None
    random, step = torch.Generator().manual_seed(1), 1e-9
    for _ in range(40):
        direction = torch.randn(images.shape, generator=random, dtype=torch.float64)
        with torch.no_grad():
            ends = [float(distance(images + sign * step * direction, reference, (2, 3))) for sign in (1, -1)]
        slope = float((gradient * direction).sum())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=1e-3, abs=1e-3 * float(gradient.norm()))


AWKWARD = {
    "black": torch.zeros(3, 24, 16),
    "white": torch.ones(3, 24, 16),
    "grey": torch.full((3, 24, 16), 0.5),
    "yellow": torch.tensor([1.0, 1.0, 0.0])[:, None, None].expand(3, 24, 16),
    "cyan": torch.tensor([0.0, 1.0, 1.0])[:, None, None].expand(3, 24, 16),
    "checks": ((torch.arange(24)[:, None] + torch.arange(16)) % 2).float().expand(3, 24, 16),
}


@every_distance
def test_awkward_images_have_finite_values_and_gradients(make: Callable[[], Perceptual]) -> None:
    stack, distance = torch.stack(list(AWKWARD.values())), make()
    one_level = torch.zeros_like(stack)
    one_level[:, 1, 5, 6] = 1 / 255
    for shift in range(len(stack)):
        for change in (0.0, 1e-9, one_level):
            images = (stack.roll(shift, 0) + change).requires_grad_()
            values = distance(images, stack)
            values.sum().backward()
            assert bool(torch.isfinite(values).all())
            assert images.grad is not None
            assert bool(torch.isfinite(images.grad).all())


@every_distance
def test_a_descent_ends_at_the_reference(make: Callable[[], Perceptual], crops: torch.Tensor) -> None:
    reference, distance = crops[:, :, :32, :32], make()
    images = _jpeg(crops, 20)[:, :, :32, :32].clone().requires_grad_()
    start = distance(images, reference).detach()
    optimiser = torch.optim.Adam([images], lr=2e-3)
    for _ in range(60):
        optimiser.zero_grad()
        distance(images, reference).sum().backward()
        optimiser.step()
    assert bool((distance(images, reference) < 0.7 * start).all())


@every_distance
def test_the_reference_gets_no_gradient(make: Callable[[], Perceptual], crops: torch.Tensor) -> None:
    reference = crops.clone().requires_grad_()
    make()(_jpeg(crops, 50).requires_grad_(), reference).sum().backward()
    assert reference.grad is None


@every_distance
def test_a_distance_adds_nothing_to_a_checkpoint_and_nothing_to_train(make: Callable[[], Perceptual]) -> None:
    distance = make()
    assert distance.state_dict() == {}
    assert list(distance.parameters()) == []
    assert not distance.train().training


@every_distance
def test_autocast_changes_nothing_and_half_precision_is_widened(
    make: Callable[[], Perceptual], crops: torch.Tensor
) -> None:
    coded, distance = _jpeg(crops, 50), make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(coded, crops)
    assert torch.equal(inside, distance(coded, crops))
    half = distance(coded.half(), crops.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, distance(coded.half().float(), crops.half().float()))


# --- what is wrong or not here


@pytest.mark.parametrize(
    ("images", "reference"),
    [((1, 3, 8, 8), (1, 3, 8, 9)), ((3, 8, 8), (3, 8, 8)), ((1, 1, 8, 8), (1, 1, 8, 8)), ((2, 3, 8, 8), (1, 3, 8, 8))],
)
def test_other_shapes_are_refused(images: tuple[int, ...], reference: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"two batches \[B, 3, H, W\]"):
        load_perceptual("watson-1993")(torch.zeros(images), torch.zeros(reference))


def test_an_offset_beyond_the_block_is_refused() -> None:
    with pytest.raises(ImageError, match="two numbers from 0 to 7"):
        load_perceptual("watson-1993")(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), (0, 8))


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="Did you mean 'watson-dft'"):
        load_perceptual("watson-fft")


@pytest.mark.parametrize(("name", "beta"), [("mse", 2), ("watson-1993", 0.5), ("watson-1993", 12)])
def test_a_beta_out_of_place_is_refused(name: str, beta: float) -> None:
    with pytest.raises(SpecError, match="beta"):
        load_perceptual(name, beta=beta)


@pytest.mark.parametrize("name", FILES)
def test_without_its_file_a_distance_says_which_goes_where(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match=rf"{FILES[name]} \(github.com/.*\): put it at .*{tmp_path.name}"):
        load_perceptual(name, tmp_path)
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UnavailableError, match=f"{FILES[name]} .*put it at .*watson-perceptual"):
        load_perceptual(name)


def test_a_file_of_another_content_is_refused(tmp_path: Path) -> None:
    torch.save(_invented("watson-dct"), tmp_path / FILES["watson-dct"])
    with pytest.raises(UnavailableError, match="sha256"):
        load_perceptual("watson-dct", tmp_path)


def test_the_weights_folder_of_the_environment_is_found(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(shared_data / "weights"))
    assert load_perceptual("watson-dft").name == "watson-dft"


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty checkpoint folder of torch."""
    for package in ("lpips", "torchvision"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", [name for name in PERCEPTUALS if name.startswith("lpips")])
def test_lpips_without_its_backbone_says_which_file_goes_where(name: str, checkpoints: Path) -> None:
    with pytest.raises(UnavailableError, match=rf"{name} needs torchvision's .*\.pth .*put it at .*checkpoints"):
        load_perceptual(name)


def test_lpips_gives_the_metrics_values_with_a_gradient(
    checkpoints: Path, photographs: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With drawn weights in place of SqueezeNet's: what is tested is the wiring."""
    from torchvision.models import squeezenet1_1

    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(squeezenet1_1().state_dict(), checkpoints / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setattr(perceptual, "lpips_unavailable", lambda _: None)
    distance: Any = LearnedPatchSimilarity("squeeze").train()
    originals = photographs.take([0, 1])
    coded = originals.with_pixels((_jpeg(originals.float(), 20) * 255).byte().permute(0, 2, 3, 1).numpy())
    images = coded.float().requires_grad_()
    values = distance(images, originals.float())
    values.sum().backward()
    metric = Lpips(backbone="squeeze")
    assert values.tolist() == pytest.approx(metric.compare(coded, metric.prepare(originals)).tolist(), rel=1e-4)
    assert images.grad is not None
    assert 0 < float(images.grad.abs().max()) < np.inf
    assert not any(weight.requires_grad for weight in distance.parameters())
    assert (distance.name, len(distance.digest)) == ("lpips-squeeze", 64)
    assert distance(originals.float(), originals.float()).tolist() == [0.0, 0.0]
