"""Image quality: per-image comparisons of an image with its reference."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import cv2
import numpy as np
import torch

from ..core.components import Component, param
from ..core.errors import ImageError
from ..core.lpips_weights import lpips_digests, lpips_network, lpips_unavailable

if TYPE_CHECKING:
    from ..core.images import Images


class Metric(Component):
    """Compares images with their reference, pixel by pixel, one number for each image.

    Class attributes:
        unit: the unit of the value, empty for none.
        better: ``higher`` or ``lower``.
        compares: whether it uses the reference at all; some look at the image alone.
    """

    kind: ClassVar[str] = "metric"
    unit: ClassVar[str] = ""
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    compares: ClassVar[bool] = True

    @property
    def floor(self) -> bool:
        """Whether it compares draws of one image, so that it is for unattacked images of the dataset alone."""
        return False

    def prepare(self, reference: Images) -> Any:
        """What can be computed once for a reference that many images are compared with; the reference itself here."""
        return reference

    @abstractmethod
    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """Float64 ``[B]``.

        Args:
            images: the images to judge, of the reference's size and order.
            prepared: what :meth:`prepare` returned for the reference.
        """


class Psnr(Metric):
    """Peak signal-to-noise ratio over all pixels and channels, data range 255; infinite for equal images.

    PSNR = 10 log10(255^2 / MSE), per image, never pooled over images.
    """

    name: ClassVar[str] = "psnr"
    unit: ClassVar[str] = "dB"

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """PSNR in dB for each image."""
        pairs = zip(images.numpy(), prepared.numpy(), strict=True)
        # OpenCV sums the squares of 8-bit differences exactly, in integers.
        squares = np.array([cv2.norm(a, b, cv2.NORM_L2SQR) for a, b in pairs])
        mse = squares / images.numpy()[0].size
        with np.errstate(divide="ignore"):
            psnr: np.ndarray = 10.0 * np.log10(255.0**2 / mse)
        return psnr


class Ssim(Metric):
    """Structural similarity (Wang et al. 2004): Gaussian window of sigma 1.5 and 11 pixels, K1 = .01, K2 = .03.

    The mean over channels of the mean over all windows that lie inside the image; population variances, data range
    255. This is scikit-image's ``structural_similarity(gaussian_weights=True, use_sample_covariance=False)``.
    """

    name: ClassVar[str] = "ssim"

    def prepare(self, reference: Images) -> Any:
        """The reference's values, local means and local variances."""
        return [_reference(array) for array in reference.numpy()]

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """SSIM in -1 to 1 for each image."""
        return np.array([_ssim(array, *state) for array, state in zip(images.numpy(), prepared, strict=True)])


_WINDOW, _SIGMA = 11, 1.5
_MARGIN = _WINDOW // 2
_C1, _C2 = np.float32((0.01 * 255) ** 2), np.float32((0.03 * 255) ** 2)
_GREY = np.float32(128)
_STRIP = 128
"""Rows that are worked on at a time: what a strip needs stays in the cache, which is three times faster at 512 px."""


def _blur(values: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(values, (_WINDOW, _WINDOW), _SIGMA, borderType=cv2.BORDER_REFLECT)


def _reference(array: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centred values, local means, and local variances plus C2. Centring at mid-grey keeps more of float32's digits."""
    if min(array.shape[:2]) < _WINDOW:
        raise ImageError(
            f"SSIM needs images of at least {_WINDOW} pixels a side, not {array.shape[1]}x{array.shape[0]}"
        )
    values = array.astype(np.float32) - _GREY
    mean = _blur(values)
    return values, mean, _blur(values * values) - mean * mean + _C2


def _ssim(array: np.ndarray, values_r: np.ndarray, mean_r: np.ndarray, variance_r: np.ndarray) -> float:
    """Mean of the SSIM map over the windows that lie inside the image, strip by strip."""
    height, total, count = array.shape[0], 0.0, 0
    for top in range(_MARGIN, height - _MARGIN, _STRIP):
        end = min(top + _STRIP, height - _MARGIN)
        rows = slice(top - _MARGIN, end + _MARGIN)
        inner = slice(top, end)
        quality = _ssim_map(array[rows], values_r[rows], mean_r[inner], variance_r[inner])
        total += float(quality.sum(dtype=np.float64))
        count += quality.size
    return total / count


def _ssim_map(array: np.ndarray, values_r: np.ndarray, mean_r: np.ndarray, variance_r: np.ndarray) -> np.ndarray:
    """(2 m m_r + C1)(2 cov + C2) / ((m^2 + m_r^2 + C1)(var + var_r + C2)), in place where that saves memory traffic."""
    values = array.astype(np.float32)
    values -= _GREY
    mean = _blur(values)[_MARGIN:-_MARGIN]
    covariance = _blur(values * values_r)[_MARGIN:-_MARGIN]
    np.multiply(values, values, out=values)
    variance = _blur(values)[_MARGIN:-_MARGIN]
    covariance -= mean * mean_r
    covariance *= 2
    covariance += _C2
    variance -= mean * mean
    variance += variance_r
    level, level_r = mean + _GREY, mean_r + _GREY
    quality = level * level_r
    quality *= 2
    quality += _C1
    level *= level
    level_r *= level_r
    level += level_r
    level += _C1
    quality *= covariance
    level *= variance
    quality /= level
    inside: np.ndarray = quality[:, _MARGIN:-_MARGIN]
    return inside


_BATCH = 4


class Lpips(Metric):
    """LPIPS (Zhang et al., CVPR 2018) through the lpips package, linear heads v0.1.

    The heads ship with the package; the backbone is torchvision's and is read from torch's checkpoint folder
    (``TORCH_HOME``). It is never downloaded in the middle of a run: where it is missing the metric is skipped and
    says which file goes where.
    """

    name: ClassVar[str] = "lpips"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    references: ClassVar[tuple[str, ...]] = (
        "R. Zhang, P. Isola, A. A. Efros, E. Shechtman, O. Wang: The Unreasonable Effectiveness of Deep Features as a "
        "Perceptual Metric. CVPR 2018.",
    )

    backbone: Literal["alex", "vgg", "squeeze"] = param("alex", doc="feature network: alex, vgg or squeeze")

    def unavailable(self) -> str | None:
        """Needs the ``quality`` extra and the backbone's weights."""
        return lpips_unavailable(self.backbone)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the backbone's weights, where they are present."""
        return lpips_digests(self.backbone)

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """LPIPS for each image; 0 for equal images."""
        network = lpips_network(self.backbone)
        values = []
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                pick = [min(start + i, len(images) - 1) for i in range(_BATCH)]
                a, b = (x.take(pick).float() * 2 - 1 for x in (images, prepared))
                values.append(network(a, b).reshape(-1).double().numpy())
        joined: np.ndarray = np.concatenate(values)[: len(images)]
        return joined
