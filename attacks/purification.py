"""IMPRESS: purification by making an image consistent with its own reconstruction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..core import effort
from ..core.components import labelled, param
from ..core.descent import adam, in_batches, noise_for
from ..core.holding import HoldsAutoencoder, distance_digests, placed, why_no_distance
from ..core.perceptual import scaled_perceptual
from .base import Attack

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from ..core.autoencoders import Autoencoder
    from ..core.images import Images, Record
    from ..core.perceptual import Perceptual
    from ..core.seeds import Seed


@dataclass(frozen=True)
class Track:
    """Published parameters of IMPRESS; images in -1 to 1.

    Attributes:
        steps: of Adam.
        rate: its first learning rate.
        alpha: weight of the perceptual term beside the mean squared error.
        sigma: standard deviation of the noise on the first image.
        limit: perceptual distance below which nothing is held against the image.
    """

    steps: int
    rate: float
    alpha: float
    sigma: float
    limit: float = 0.1


TRACKS = {
    "style": Track(steps=3000, rate=0.01, alpha=0.1, sigma=0.1),
    "editing": Track(steps=1000, rate=0.005, alpha=0.01, sigma=0.05),
}
"""``style`` was used against Glaze, ``editing`` against PhotoGuard."""


class Impress(HoldsAutoencoder, Attack):
    """IMPRESS (Cao et al., NeurIPS 2023): min over x of ||x - D(E(x))||^2 + alpha max(d(x, given) - limit, 0).

    Adam (epsilon 1e-5, learning rate along a cosine to 1e-5) from the given image plus noise, clipped to its range
    after each step; E is the posterior's mode, and gradients run through E, D and x. Autoencoder and distance d are
    the adversary's choice. At these rates Adam's epsilon is larger than most gradients of a mean over pixels, so that
    a smaller image moves faster: at 256 x 256 pixels gradients are four times those at the published 512 x 512.

    The paper writes a sum of squares, the released code takes the mean: at 512 x 512 pixels alpha then differs by a
    factor of 786,432. ``convention`` says which; the published alphas belong to ``mean``. d is LPIPS with VGG's
    weights, where they are present. ``watson-1993`` needs no weights: Watson's distance, scaled so that JPEG 50 is at
    .1, where LPIPS has its published limit. Another distance is another attack, and its name says so.

    Example:
        >>> Impress(track="style", distance="watson-1993").label
        'impress(steps=3000, track=style, distance=watson-1993)'
    """

    name: ClassVar[str] = "impress"
    family: ClassVar[str] = "purification"
    summary: ClassVar[str] = "make the image consistent with its reconstruction"
    strength: ClassVar[str | None] = "steps"
    strengths: ClassVar[tuple[Any, ...]] = (30, 100, 300, 1000, 3000)
    seeded: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False
    references: ClassVar[tuple[str, ...]] = (
        "B. Cao, C. Li, T. Wang, J. Jia, B. Li, J. Chen: IMPRESS: Evaluating the Resilience of Imperceptible "
        "Perturbations Against Unauthorized Data Usage in Diffusion-Based Generative AI. NeurIPS 2023, "
        "arXiv:2310.19248.",
    )

    track: Literal["editing", "style"] = param("editing", doc="published parameters: editing or style")
    steps: int | None = param(None, doc="steps of Adam; the track's", ge=1, le=100_000)
    rate: float | None = param(None, doc="first learning rate, for values in -1 to 1; the track's", gt=0, le=1)
    alpha: float | None = param(None, doc="weight of the perceptual term; the track's", ge=0, le=1e9)
    sigma: float | None = param(None, doc="noise on the first image, for values in -1 to 1; the track's", ge=0, le=2)
    limit: float | None = param(None, doc="perceptual distance that costs nothing; the track's", ge=0)
    distance: Literal["lpips-vgg", "lpips", "watson-1993"] = param(
        "lpips-vgg", doc="perceptual distance: lpips-vgg (published), lpips (AlexNet), or watson-1993 (no weights)"
    )
    convention: Literal["mean", "sum"] = param("mean", doc="squared error: mean (released code) or sum (paper)")
    tolerance: float = param(
        0.0, doc="stop an image whose objective fell by less than this share in 50 steps; 0: never", ge=0, lt=1
    )
    batch: int = param(1, doc="images in one step", ge=1, le=256)

    @property
    def label(self) -> str:
        """The steps are named also where they are the track's."""
        own = labelled(self.name, {"steps": self.chosen.steps, **self.changed_params()})
        return placed(own, "autoencoder", self.autoencoder)

    @property
    def chosen(self) -> Track:
        """The parameters in force."""
        track = TRACKS[self.track]
        given = {name: getattr(self, name) for name in ("steps", "rate", "alpha", "sigma", "limit")}
        return Track(**{name: getattr(track, name) if value is None else value for name, value in given.items()})

    @property
    def strength_value(self) -> float | None:
        """The steps in force."""
        return float(self.chosen.steps)

    def unavailable(self) -> str | None:
        """Needs the autoencoder and the weights of the distance."""
        return super().unavailable() or why_no_distance(self.distance)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the autoencoder and of the distance's weights."""
        found = super().digests()
        return {**found, **distance_digests(self.distance)} if found else found

    def apply(self, images: Images, seed: Seed) -> Images:
        """The purified images.

        Raises:
            UserError: the objective is not finite.
        """
        network, track = self.network, self.chosen
        distance, unit = scaled_perceptual(self.distance)

        def change(given: torch.Tensor, records: Sequence[Record]) -> torch.Tensor:
            noise = noise_for(records, given.shape[1:], lambda record: seed.child(record.id).torch())
            start = given + track.sigma / 2 * noise
            objective = impress_objective(network, given, distance, unit, track, self.convention)
            # For values in 0 to 1 gradients are twice as large and steps half as long as for -1 to 1.
            return adam(
                start, objective, records, rate=track.rate / 2, last_rate=1e-5 / 2, epsilon=2e-5, steps=track.steps,
                tolerance=self.tolerance, what=self.label,
            )  # fmt: skip

        return in_batches(images, self.batch, change)


def impress_objective(
    network: Autoencoder, given: torch.Tensor, distance: Perceptual, unit: float, track: Track, convention: str
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What IMPRESS lowers: images in 0 to 1 to one number each, in the published scale of -1 to 1.

    Args:
        network: the adversary's autoencoder.
        given: the images as they were given, ``[B, 3, H, W]``.
        distance: the perceptual distance.
        unit: what of it counts as 1.
        track: alpha and limit.
        convention: ``mean`` or ``sum``.
    """

    def objective(values: torch.Tensor) -> torch.Tensor:
        error = (2 * (values - network.reconstruct(values))).square().flatten(1)
        consistency = error.mean(dim=1) if convention == "mean" else error.sum(dim=1)
        effort.count(backwards=2 * len(values))
        far = (distance(values, given) / unit - track.limit).clamp(min=0)
        total: torch.Tensor = consistency + track.alpha * far
        return total

    return objective
