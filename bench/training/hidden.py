"""Training of HiDDeN's encoder and extractor, and the whitening of the extractor's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...core.errors import StatisticsError
from ...core.seeds import Seed
from ..methods.hidden.augment import augment
from ..methods.hidden.network import Encoder, Extractor, attenuate, normalise
from ..methods.hidden.search import descend, mark_image
from .trainer import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .photographs import Photographs
    from .recipes import HiddenRecipe, Phase

JUDGED = ("identity", "flip", "crop 0.5", "crop 0.1", "resize 0.5", "jpeg 80", "jpeg 50", "brightness 1.5")
"""What the kept-out photographs go through when a training measures its result."""


class HiddenTask(Task):
    """Encoder and extractor, phase by phase: binary cross-entropy of the message, no image loss.

    The bounded perturbation keeps the image; what it costs is set by the network's attenuation and the phase's
    strength.

    Args:
        recipe: the recipe.
        photographs: training images.
    """

    def __init__(self, recipe: HiddenRecipe, photographs: Photographs) -> None:
        self.recipe: HiddenRecipe = recipe
        self.photographs = photographs
        self.data = photographs.digest
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(Seed.root(recipe.seed).child("weights", recipe.kind).integer)
            self.encoder = Encoder(recipe.network)
            self.extractor = Extractor(recipe.network)
        for module in (self.encoder, self.extractor):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.modules = {"encoder": self.encoder, "extractor": self.extractor}
        self.reader: nn.Module = self.extractor

    def whiten(self, layer: dict[str, torch.Tensor]) -> None:
        """From now on marks are made and read through the whitening, as the method does without an encoder."""
        linear = nn.Linear(self.recipe.network.bits, self.recipe.network.bits).to(
            next(self.extractor.parameters()).device
        )
        linear.load_state_dict(layer)
        self.reader = nn.Sequential(self.extractor, linear)

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Marks a batch, attacks it in one way, reads it."""
        recipe = self.recipe
        phase, inside = recipe.phase(step)
        _prepare(self.encoder, phase.train != "extractor", phase.norms)
        _prepare(self.extractor, phase.train != "encoder", phase.norms)
        device = next(self.encoder.parameters()).device
        batch = phase.batch or recipe.batch
        images = self.photographs.batch(batch, phase.size or recipe.size, generator).to(device)
        bits = torch.randint(2, (batch, recipe.network.bits), generator=generator).float().to(device)
        strength = phase.strength[0] * (phase.strength[1] / phase.strength[0]) ** (inside / phase.steps)
        if phase.embed == "search":
            delta = self.search(images, bits, phase, strength, generator)
        else:
            with self._half():
                delta = self.encoder(normalise(images), 2 * bits - 1)
        attenuation = phase.attenuation or recipe.network.attenuation
        marked = images + attenuate(images, delta.float(), attenuation, strength)
        attacked = self.attack(marked, phase, generator)
        with self._half():
            logits = self.extractor(attacked).float()
        loss = functional.binary_cross_entropy_with_logits(logits, bits)
        with torch.no_grad():
            accuracy = ((logits > 0) == (bits > 0)).float().mean()
            psnr = -10 * torch.log10((marked.clamp(0, 1) - images).square().mean(dim=(1, 2, 3)) + 1e-12).mean()
        return loss, {"loss": loss.item(), "bit accuracy": accuracy.item(), "psnr": psnr.item()}

    def attack(self, images: torch.Tensor, phase: Phase, generator: torch.Generator) -> torch.Tensor:
        """Cuts a random border, then one of the recipe's augmentations where the phase has them."""
        attacked = _jitter(images, self.recipe.jitter, generator)
        if not phase.augment:
            return attacked
        which = int(torch.randint(len(self.recipe.augmentations), (), generator=generator))
        return augment(attacked, self.recipe.augmentations[which], generator)

    def search(
        self, images: torch.Tensor, bits: torch.Tensor, phase: Phase, strength: float, generator: torch.Generator
    ) -> torch.Tensor:
        """Perturbations in -1 to 1 that lead the extractor, as it is now, to the message, through drawn attacks."""

        def read(attacked: torch.Tensor) -> torch.Tensor:
            with self._half():
                return self.extractor(attacked)  # type: ignore[no-any-return]

        return descend(
            read,
            images,
            bits,
            torch.zeros_like(images),
            steps=self.recipe.search_steps,
            size=self.recipe.search_size,
            attenuation=phase.attenuation or self.recipe.network.attenuation,
            strength=strength,
            attack=lambda marked, _: self.attack(marked, phase, generator),
        )

    def _half(self) -> torch.autocast:
        device = next(self.encoder.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    @torch.no_grad()
    def judge(self, operations: Sequence[str] = JUDGED) -> dict[str, float]:
        """PSNR and bit accuracy on the photographs that were kept out, 8-bit marked images, random keys.

        As the method embeds and reads; where it refines an encoder's marks, also by the encoder alone.
        """
        for module in (*self.modules.values(), self.reader):
            module.eval().requires_grad_(False)
        config = self.recipe.network
        found = self._judge(config.refine, operations)
        alone = self._judge(0, operations) if config.refine and config.embed == "encoder" else {}
        return found | {f"encoder alone: {name}": value for name, value in alone.items()}

    def _judge(self, steps: int, operations: Sequence[str]) -> dict[str, float]:
        config = self.recipe.network
        images = self.photographs.held_out(self.recipe.short).to(next(self.encoder.parameters()).device)
        generator = Seed.root(self.recipe.seed).child("judge").torch()
        bits = torch.randint(2, (len(images), config.bits), generator=generator).float().to(images.device)
        encoder = self.encoder if config.embed == "encoder" else None
        how = (steps, config.attenuation, config.strength, generator)
        pairs = zip(images[:, None], bits[:, None], strict=True)
        marked = [mark_image(encoder, self.reader, image, key, *how) for image, key in pairs]
        stored = torch.cat(marked).clamp(0, 1).mul(255).round().div(255)
        errors = (stored - images).square().mean(dim=(1, 2, 3))
        found = {"psnr": float((-10 * torch.log10(errors + 1e-12)).mean())}
        for operation in operations:
            logits = self.reader(augment(stored, operation, generator))
            found[f"bit accuracy, {operation}"] = float(((logits > 0) == (bits > 0)).float().mean())
        return found


@torch.no_grad()
def fit_whitening(
    extractor: Extractor,
    images: Sequence[torch.Tensor],
    scale: float = 1.0,
    floor: float = 0.0,
    operations: Sequence[str] = ("identity",),
    seed: int = 0,
    rotation: Literal["pca", "zca"] = "pca",
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Whitening of an extractor's logits on unmarked images, as a linear layer.

    Logits become ``scale * R max(D, floor * mean(D))^(-1/2) V^T (logits - mean)`` with the covariance (over n - 1
    readings) ``V D V^T``; R is the identity for PCA and V for ZCA. Without a floor they have mean 0 and covariance
    ``scale^2`` times the identity on these images. The bits are other bits than the extractor was trained for, close to
    them with ZCA.

    Args:
        extractor: without whitening.
        images: uint8 ``[3, H, W]``, unmarked, not those that the null is tested on.
        scale: standard deviation of the whitened logits.
        floor: smallest eigenvalue that is taken for what it is, as a share of the mean one. Directions in which
            unmarked images hardly differ would otherwise be blown up and drown the others in a loss.
        operations: every image is read after each of these, so that a bit is centred for images as they are met.
        seed: of the operations' draws.
        rotation: ``pca`` reads each principal direction as a bit of its own; one in which images hardly differ gives a
            bit that no mark can set. ``zca`` turns back to the extractor's own bits, which share such directions.

    Returns:
        ``weight`` and ``bias`` of the layer, and what it found: images, readings, smallest and largest eigenvalue.

    Raises:
        StatisticsError: fewer images than twice the bits, or logits that follow from each other.
    """
    if len(images) < 2 * extractor.bits:
        raise StatisticsError(
            f"{len(images)} images cannot whiten {extractor.bits} bits: at least {2 * extractor.bits} are needed"
        )
    extractor.eval()
    device = extractor.linear.weight.device
    generator = Seed.root(seed).child("whitening").torch()
    rows = []
    for image in images:
        for operation in operations:
            met = augment(image[None].float().div(255).to(device), operation, generator)
            rows.append(extractor(met).double().cpu().numpy()[0])
    logits = np.stack(rows)
    mean = logits.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(logits, rowvar=False))
    if values[0] <= 1e-10 * values[-1]:
        raise StatisticsError("the extractor's logits follow from each other on these images: they cannot be whitened")
    # The sign of an eigenvector is arbitrary: its largest part is made positive, so that the result is one.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    matrix = scale * (vectors / np.sqrt(np.maximum(values, floor * values.mean()))).T
    if rotation == "zca":
        matrix = vectors @ matrix
    layer = {"weight": torch.from_numpy(matrix).float(), "bias": torch.from_numpy(-matrix @ mean).float()}
    found = {"images": len(images), "readings": len(logits), "scale": scale, "floor": floor}
    return layer, {**found, "smallest eigenvalue": float(values[0]), "largest eigenvalue": float(values[-1])}


def _prepare(network: nn.Module, trained: bool, norms: str) -> None:
    """Sets what wants gradients, and which statistics the batch norms use."""
    network.requires_grad_(trained).train(trained)
    if norms == "fixed":
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()


def _jitter(images: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Cuts a random border, so that no mark depends on where the pixel grid begins."""
    if not most:
        return images
    top, bottom, left, right = torch.randint(most + 1, (4,), generator=generator).tolist()
    return images[..., top : images.shape[-2] - bottom, left : images.shape[-1] - right]
