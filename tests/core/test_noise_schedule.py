"""What a network's output means is the same for each kind of prediction."""

from __future__ import annotations

import pytest
import torch

from waterproof.core.errors import UserError
from waterproof.core.noise_schedule import estimates


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("alpha", [0.999, 0.5, 0.02])
def test_a_perfect_prediction_gives_back_image_and_noise(kind: str, alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 3, 8, 8, generator=generator, dtype=torch.float64)
    kept = torch.tensor(alpha, dtype=torch.float64)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    outputs = {"epsilon": noise, "sample": clean, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * clean}
    found = estimates(kind, noisy, outputs[kind], kept)
    torch.testing.assert_close(found[0], clean)
    torch.testing.assert_close(found[1], noise)


def test_another_kind_is_refused() -> None:
    one = torch.ones(1)
    with pytest.raises(UserError, match="epsilon, v_prediction, sample, not flow"):
        estimates("flow", one, one, one)
