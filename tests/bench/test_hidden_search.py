"""Marks by descent: against NumPy, through attacks, and inside the method."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from waterproof.bench.methods.hidden.method import Hidden
from waterproof.bench.methods.hidden.network import DEVIATION, Encoder, Extractor, NetworkConfig, save_networks
from waterproof.bench.methods.hidden.search import REHEARSED, descend, mark_image
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.core.images import Images

TINY = NetworkConfig(bits=8, stages=((8, 1), (8, 1)), detail=True, even=True, encoder_width=8, encoder_depth=1, patch=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks with random weights: an extractor can be led to any message by descent, trained or not."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder, extractor = Encoder(TINY), Extractor(TINY)
        extractor.linear.weight.data *= 100
    config = TINY.model_copy(update={"strength": 0.2, "refine": 4})
    save_networks(folder, config, encoder.state_dict(), extractor.state_dict())
    return folder


def test_one_step_is_what_numpy_gives(photographs: Images) -> None:
    """For logits that are a linear map of the image the gradient is known: A^T (sigmoid(l) - b)."""
    images = photographs.float()[:2, :, :24, :30].double()
    matrix = torch.randn(4, images[0].numel(), generator=torch.Generator().manual_seed(0)).double() / 50
    bits = torch.tensor([[1.0, 0, 0, 1], [0, 0, 1, 1]]).double()
    found = descend(
        lambda x: x.flatten(1) @ matrix.T,
        images,
        bits,
        torch.zeros_like(images),
        steps=1,
        size=0.3,
        attenuation="uniform",
        strength=0.5,
        attack=lambda marked, step: marked,
    )
    # Logits pass through single precision.
    logits = (images.flatten(1) @ matrix.T).float().numpy().astype(float)
    residual = 1 / (1 + np.exp(-logits)) - bits.numpy()
    gradient = (residual @ matrix.numpy()).reshape(images.shape) * 0.5 * np.array(DEVIATION)[:, None, None]
    padded = np.pad(gradient, ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    means = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(2, 3)).mean((-1, -2))
    gradient = gradient - means
    gradient /= np.sqrt((gradient**2).mean((1, 2, 3), keepdims=True))
    expected = np.clip(-0.3 * np.clip(gradient, -2, 2), -1, 1)
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_every_rehearsed_operation_is_met_in_turn(photographs: Images) -> None:
    met: list[int] = []
    image = photographs.float()[:1, :, :48, :48]

    def extractor(x: torch.Tensor) -> torch.Tensor:
        met.append(x.shape[-1])
        return x.mean((2, 3))

    how = (len(REHEARSED), "uniform", 0.1, torch.Generator().manual_seed(0))
    mark_image(None, extractor, image, torch.ones(1, 3), *how)
    assert len(met) == len(REHEARSED)
    assert sorted(set(met)) == [34, 48]


def test_refining_leads_to_the_key_and_no_steps_are_the_encoder_alone(weights: Path, photographs: Images) -> None:
    keys = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    wanted = 2 * keys.float() - 1
    margins = []
    for steps in (0, 12):
        mark = Hidden(weights=str(weights), refine=steps)
        logits = mark.decode(mark.embed(photographs, keys, Seed.root(0))).logits
        assert logits is not None
        margins.append(float((logits * wanted).mean()))
    assert margins[1] > margins[0] + 0.1
    left_out, four = (Hidden(weights=str(weights), refine=steps) for steps in (None, 4))
    a, b = (mark.embed(photographs, keys, Seed.root(0)) for mark in (left_out, four))
    assert torch.equal(a.float(), b.float())


def test_a_refined_mark_depends_on_its_image_key_and_seed_alone(weights: Path, photographs: Images) -> None:
    mark = Hidden(weights=str(weights))
    keys = torch.rand(3, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    together = mark.embed(photographs, keys, Seed.root(0))
    # Reading first must not leave networks behind that cannot be refined through.
    mark.decode(photographs)
    for i in (2, 0):
        alone = mark.embed(photographs.take([i]), keys[[i]], Seed.root(0))
        assert torch.equal(alone.float()[0], together.float()[i])
    other = mark.embed(photographs, keys, Seed.root(1))
    assert not torch.equal(other.float(), together.float())
