"""Attacks by whoever holds many marked images: the mean mark taken away or put on clean images, and copies mixed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from pydantic import PrivateAttr

from ..core.components import param
from ..core.errors import ContractError
from ..core.images import Images
from .base import Access, Attack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..core.seeds import Seed

_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class _MeanResidual(Attack):
    """Base of attacks with an estimate of the mark: the mean residual of ``images`` marked images with one key.

    ``pairs``: marked minus unmarked image (the adversary has both). ``clean``: the mean of the marked images minus that
    of as many unmarked ones of other content (Yang et al. 2024, black box). ``smooth``: each marked image minus itself
    smoothed by a 3 x 3 Gaussian (the adversary has nothing but marked images).
    """

    strength: ClassVar[str | None] = "images"
    strengths: ClassVar[tuple[Any, ...]] = _COUNTS
    learns: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = (
        "P. Yang, H. Ci, Y. Song, M. Z. Shou: Can Simple Averaging Defeat Modern Watermarks? NeurIPS 2024.",
    )

    images: int = param(100, doc="marked images with one key that the adversary has seen", ge=1, le=100_000)
    estimate: Literal["pairs", "clean", "smooth"] = param(
        "pairs",
        doc="what is taken from the marked images: their counterparts, other clean images, or their smooth part",
    )
    scale: float = param(1.0, doc="factor of the mean residual", gt=0, le=100, allow_inf_nan=False)

    _residual: torch.Tensor | None = PrivateAttr(default=None)

    @property
    def knowledge(self) -> frozenset[str]:  # type: ignore[override]
        """Marked images, and what is taken from them."""
        more = {"pairs": {"unmarked-counterparts"}, "clean": {"clean-images"}, "smooth": set()}[self.estimate]
        return frozenset({"marked-samples", *more})

    @property
    def holdings(self) -> int:
        """The marked images; as many clean ones after them where these are compared."""
        return self.images * (2 if self.estimate == "clean" else 1)

    def learn(self, access: Access) -> dict[str, torch.Tensor]:
        """The mean residual of the samples."""
        return {"residual": self.mean_residual(access)}

    def equipped(self, learnt: Mapping[str, torch.Tensor]) -> Attack:
        """The attack with its estimate of the mark."""
        prepared = self.model_copy()
        prepared._residual = learnt["residual"]
        return prepared

    def mean_residual(self, access: Access) -> torch.Tensor:
        """The estimate: float32 ``[3, H, W]`` in grey levels.

        Raises:
            ContractError: a handle is missing.
        """
        marked = _given(self, access.samples, "samples")(self.images).numpy()
        if self.estimate == "smooth":
            return _mean([_detail(picture) for picture in marked])
        handle = access.counterparts if self.estimate == "pairs" else access.clean
        other = _given(self, handle, self.estimate)(self.holdings).numpy()[-self.images :]
        return _mean(marked) - _mean(other)

    def _shifted(self, images: Images, sign: int) -> Images:
        residual = self._residual
        if residual is None:
            raise ContractError(f"{self.label} was not prepared: it needs marked images")
        if residual.shape[1:] != images.size:
            raise ContractError(
                f"{self.label}: the marked images have {residual.shape[1]} x {residual.shape[2]} pixels, the attacked "
                f"ones {images.size[0]} x {images.size[1]}: give both datasets one size"
            )
        return Images.from_float((images.pixels + sign * self.scale * residual) / 255, images.records)


class Averaging(_MeanResidual):
    """Takes the mean residual of many marked images away from an image.

    It removes marks that are alike in every image; a mark that follows the image averages out.

    Example:
        >>> Averaging(images=50).label
        'averaging(images=50)'
    """

    name: ClassVar[str] = "averaging"
    family: ClassVar[str] = "adversarial"
    summary: ClassVar[str] = "subtract the mean mark of n images"

    def apply(self, images: Images, seed: Seed) -> Images:
        """The images minus the estimate."""
        return self._shifted(images, -1)


class Forgery(_MeanResidual):
    """Adds the mean residual of many marked images to images that the owner never marked.

    Unmarked images are the dataset's own, whatever makes the marked ones. Where the owner's detector accepts them, the
    false positive is the owner's to answer for: the "FPR" under this attack is the share of successful forgeries.

    Example:
        >>> Forgery(images=50, estimate="smooth").label
        'forgery(images=50, estimate=smooth)'
    """

    name: ClassVar[str] = "forgery"
    family: ClassVar[str] = "forgery"
    summary: ClassVar[str] = "add the mean mark of n images to clean ones"

    def apply(self, images: Images, seed: Seed) -> Images:
        """The images plus the estimate."""
        return self._shifted(images, 1)


class Collusion(Attack):
    """Mixes the copies of one image that several users got, each with a mark of its own.

    ``mean`` and ``median`` are taken value by value; ``paste`` cuts the image into squares and takes each from the copy
    of a user drawn at random.

    Example:
        >>> Collusion(users=5, how="median").label
        'collusion(users=5, how=median)'
    """

    name: ClassVar[str] = "collusion"
    family: ClassVar[str] = "collusion"
    summary: ClassVar[str] = "mix the copies of c users"
    strength: ClassVar[str | None] = "users"
    strengths: ClassVar[tuple[Any, ...]] = (1, 2, 3, 5, 10)
    neutral: ClassVar[float | None] = 1
    knowledge: ClassVar[frozenset[str]] = frozenset({"copies"})
    references: ClassVar[tuple[str, ...]] = (
        "I. J. Cox, J. Kilian, F. T. Leighton, T. Shamoon: Secure spread spectrum watermarking for multimedia. IEEE "
        "Transactions on Image Processing 6(12), 1997.",
    )

    users: int = param(3, doc="users who mix their copies, the owner of the key among them", ge=1, le=1000)
    how: Literal["mean", "median", "paste"] = param("mean", doc="how copies are mixed")
    tile: int = param(32, doc="side of the squares of paste, pixels", ge=1, le=4096)

    _copies: Any = PrivateAttr(default=None)

    @property
    def colluders(self) -> int:
        """The users who mix."""
        return self.users

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Only ``paste`` draws."""
        return self.how == "paste"

    def prepare(self, access: Access) -> Attack:
        """Keeps the handle to the copies."""
        prepared = self.model_copy()
        prepared._copies = _given(self, access.copies, "copies")
        return prepared

    def apply(self, images: Images, seed: Seed) -> Images:
        """The mixed images.

        Raises:
            ContractError: not prepared, or there are fewer users.
        """
        if self._copies is None:
            raise ContractError(f"{self.label} was not prepared: it needs the copies of other users")
        copies: Sequence[Images] = self._copies(self.users)
        stack = torch.stack([copy.pixels for copy in copies])
        if self.how == "mean":
            return Images.from_float(stack.double().mean(dim=0) / 255, images.records)
        if self.how == "median":
            # Of an even number of copies the mean of the middle two, as NumPy has it.
            middle = torch.quantile(stack.double(), 0.5, dim=0)
            return Images.from_float(middle / 255, images.records)
        return images.with_pixels(np.stack([self._patchwork(stack[:, i], seed.child(r.id)) for i, r in _each(images)]))

    def _patchwork(self, copies: torch.Tensor, seed: Seed) -> np.ndarray:
        """One image ``[H, W, 3]`` of squares of the copies ``[c, 3, H, W]``."""
        height, width = copies.shape[2:]
        squares = -(-height // self.tile), -(-width // self.tile)
        chosen = seed.numpy().integers(0, len(copies), squares).repeat(self.tile, axis=0).repeat(self.tile, axis=1)
        rows, columns = np.indices((height, width))
        picked: np.ndarray = copies.permute(0, 2, 3, 1).numpy()[chosen[:height, :width], rows, columns]
        return picked


def _each(images: Images) -> Any:
    return enumerate(images.records)


def _given(attack: Attack, handle: Any, what: str) -> Any:
    if handle is None:
        raise ContractError(f"{attack.label} was not given its {what}")
    return handle


def _mean(pictures: Any) -> torch.Tensor:
    """The mean over ``[n, H, W, 3]``, one picture after another: float32 ``[3, H, W]``."""
    total = np.zeros(pictures[0].shape, np.float64)
    for picture in pictures:
        total += picture
    return torch.from_numpy(total / len(pictures)).permute(2, 0, 1).float()


def _detail(picture: np.ndarray) -> np.ndarray:
    values = picture.astype(np.float32)
    detail: np.ndarray = values - cv2.GaussianBlur(values, (3, 3), 0, borderType=cv2.BORDER_REFLECT_101)
    return detail
