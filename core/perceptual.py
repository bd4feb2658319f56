"""Perceptual distances that can be descended: LPIPS, the learned Watson distances, Watson's own model, MSE.

Each is one number for an image and its reference, 0 where they are equal, and does not depend on what else is in the
batch. All are smooth: where the published formulas have an infinite slope or none (equal images, an empty coefficient)
a floor far below one grey level rounds the corner off, so that the gradient there is 0, never NaN.

The scales differ by orders of magnitude, and the learned Watson distances grow with the image's area, because that is
how their weights were learned: choose the weight of a loss term for a distance and a size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import torch
from torch import nn
from torch.nn import functional

from .errors import ImageError, SpecError, UnavailableError, nearest
from .lpips_weights import lpips_digests, lpips_network, lpips_unavailable
from .weights import find, load_state

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SIDE = 8
"""Side of the Watson distances' blocks, in pixels."""

_HALF_GREY = 0.5 / 255
"""No block of a stored image is brighter than black and darker than this."""


class Perceptual(nn.Module, ABC):
    """A distance between images; a module so that ``.to(device)`` moves its constants. It has nothing to train.

    Attributes:
        name: as :func:`load_perceptual` knows it.
        digest: SHA-256 of the weights' file; empty where there is none.

    Example:
        >>> distance = load_perceptual("mse")
        >>> distance(torch.ones(2, 3, 16, 16), torch.zeros(2, 3, 16, 16))
        tensor([1., 1.])
    """

    name: str
    digest: str

    def __init__(self, name: str, digest: str = "") -> None:
        super().__init__()
        self.name, self.digest = name, digest
        self.eval()

    def forward(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int] = (0, 0)) -> torch.Tensor:
        """Distances ``[B]``; gradients flow to ``images`` only.

        Args:
            images: float ``[B, 3, H, W]``, 0 to 1; half precision is computed in single, even under autocast.
            reference: of the same shape; masking is computed from it and it counts as a constant.
            offset: (rows, columns), 0 to 7 each: how far above and left of the image the grid of 8 x 8 blocks begins.
                A training that draws it anew for each step (:func:`draw_offset`) rewards no grid. Pixels beyond the
                image repeat its border. Distances without blocks ignore it.

        Raises:
            ImageError: shapes that differ or are no batch of colour images; an offset outside the block.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.shape != reference.shape:
            raise ImageError(f"expected two batches [B, 3, H, W], got {list(images.shape)} and {list(reference.shape)}")
        if not all(0 <= shift < SIDE for shift in offset):
            raise ImageError(f"offset of the block grid: two numbers from 0 to {SIDE - 1}, not {offset}")
        dtype = images.dtype if images.dtype == torch.float64 else torch.float32
        with torch.autocast(images.device.type, enabled=False):
            return self._distance(images.to(dtype), reference.detach().to(dtype), offset)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: a distance has no dropout, whatever the model around it does."""
        return super().train(False)

    def _keep(self, **constants: torch.Tensor) -> None:
        """Constants move with the module, in single precision, and stay out of checkpoints."""
        for name, values in constants.items():
            self.register_buffer(name, values.float(), persistent=False)

    @abstractmethod
    def _distance(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor: ...


def draw_offset(generator: torch.Generator) -> tuple[int, int]:
    """A uniformly random offset of the block grid.

    Example:
        >>> draw_offset(torch.Generator().manual_seed(0))
        (4, 7)
    """
    rows, columns = torch.randint(SIDE, (2,), generator=generator).tolist()
    return rows, columns


class MeanSquaredError(Perceptual):
    """The mean of squared differences over pixels and channels, values in 0 to 1; PSNR is -10 log10 of it."""

    def __init__(self) -> None:
        super().__init__("mse")

    def _distance(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
        return (images - reference).square().mean((1, 2, 3))


class LearnedPatchSimilarity(Perceptual):
    """LPIPS (Zhang et al., CVPR 2018) through the lpips package, with the weights that the metric ``lpips`` uses.

    The package's authors advise ``vgg`` for optimisation and ``alex`` for judging; judging a training by the network
    that it descended flatters it.
    """

    def __init__(self, backbone: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        name = "lpips" if backbone == "alex" else f"lpips-{backbone}"
        reason = lpips_unavailable(backbone)
        if reason:
            raise UnavailableError(f"{name} {reason}")
        super().__init__(name, lpips_digests(backbone)["backbone"])
        self.network = lpips_network(backbone)

    def _distance(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
        values: torch.Tensor = self.network(images * 2 - 1, reference * 2 - 1)
        return values.flatten()


def _power(values: torch.Tensor, exponent: float | torch.Tensor, floor: float) -> torch.Tensor:
    """``values ** exponent`` for values >= 0, but linear below ``floor``: 0 at 0 with a finite slope."""
    powers: torch.Tensor = values * (values + floor) ** (exponent - 1)
    return powers


def _blocks(planes: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
    """``[B, C, H, W]`` to ``[B, C, n, 64]``: 8 x 8 blocks row by row; a part of a block is filled with the border."""
    top, left = offset
    bottom, right = -(planes.shape[2] + top) % SIDE, -(planes.shape[3] + left) % SIDE
    if top or left or bottom or right:
        planes = functional.pad(planes, (left, right, top, bottom), mode="replicate")
    batch, channels, height, width = planes.shape
    split = planes.reshape(batch, channels, height // SIDE, SIDE, width // SIDE, SIDE)
    return split.transpose(3, 4).reshape(batch, channels, -1, SIDE * SIDE)


def _cosines() -> torch.Tensor:
    """The orthonormal cosine transform of 8 values, float64 ``[8, 8]``, one basis function a row."""
    order = torch.arange(SIDE, dtype=torch.float64)
    rows = torch.cos(math.pi / SIDE * (order + 0.5) * order[:, None]) * math.sqrt(2 / SIDE)
    rows[0] /= math.sqrt(2)
    return rows


def _dct_basis() -> torch.Tensor:
    """``[64 pixels, 64 coefficients]``, for a matrix product: GPUs keep its full precision, a convolution's not."""
    return torch.kron(_cosines(), _cosines()).T.contiguous()


def _dft_basis() -> tuple[torch.Tensor, torch.Tensor]:
    """Real and imaginary part of the non-redundant half of the Fourier transform over 64, ``[64 pixels, 40]`` each."""
    impulses = torch.eye(SIDE * SIDE, dtype=torch.float64).reshape(-1, SIDE, SIDE)
    spectra = torch.fft.rfft2(impulses).flatten(1) / SIDE**2
    return spectra.real.contiguous(), spectra.imag.contiguous()


_LUMA_AND_CHROMA = ((0.299, 0.587, 0.114), (-0.1687, -0.3313, 0.5), (0.5, -0.4187, -0.0813))
"""Y, Cb, Cr from R, G, B, JPEG's definition to the four digits of the released weights."""

_SENSITIVITY = (
    (1.40, 1.01, 1.16, 1.66, 2.40, 3.43, 4.79, 6.56),
    (1.01, 1.45, 1.32, 1.52, 2.00, 2.71, 3.67, 4.93),
    (1.16, 1.32, 2.24, 2.59, 2.98, 3.64, 4.60, 5.88),
    (1.66, 1.52, 2.59, 3.77, 4.55, 5.30, 6.28, 7.60),
    (2.40, 2.00, 2.98, 4.55, 6.15, 7.46, 8.71, 10.17),
    (3.43, 2.71, 3.64, 5.30, 7.46, 9.62, 11.58, 13.51),
    (4.79, 3.67, 4.60, 6.28, 8.71, 11.58, 14.50, 17.29),
    (6.56, 4.93, 5.88, 7.60, 10.17, 13.51, 17.29, 21.15),
)
"""Smallest visible DCT amplitude on mid-grey, in grey levels, at 32 pixels a degree (Watson 1993)."""

_MID_DC, _LIGHT, _CONTRAST = 1024.0, 0.649, 0.7
_DARKEST_DC = 25.0 * SIDE
_CHROMA = 2.0
_VISIBLE = 1e-6
"""Square of a thousandth of a visible difference: below it the Minkowski sums of Watson's model are rounded off."""


class Watson1993(Perceptual):
    """Watson's DCT model with its published constants; it has no learned weights, so it needs no file.

    A. B. Watson: "DCT quantization matrices visually optimized for individual images", Proc. SPIE 1913, 1993. In each
    8 x 8 block of values in 0 to 255 the threshold of a coefficient is t = t_ij (C_00 / 1024)^.649, raised to
    |C|^.7 t^.3 where the reference's own coefficient C masks. Errors e are pooled over blocks, coefficients and
    channels by a *mean* Minkowski norm, (mean |e / t|^beta)^(1/beta): in just noticeable differences at any size.

    Stated choices where the paper leaves room. C_00 does not mask itself (exponent 0, not .7): it has the luminance
    term, and with .7 the mean of a block could move by 18 of 255 levels unseen. A block counts as no darker than level
    25, what a screen shows that reflects 1 % of its white; without a bound black pixels would count without bound.
    Chroma (Cb, Cr) has the same table with thresholds twice as high, about the ratio of JPEG's example tables, the
    luminance term of the block, and its own contrast masking.

    Args:
        beta: 4 is Watson's, for judging: the worst errors decide. As a loss it sends nearly all of the gradient to a
            few coefficients, so train with 2, and square it: the root gives an image with a small error the same total
            pull as one with a large error, the square (a mean square error in visible differences) pulls each by its
            error and lets a small mark be.

    Example:
        >>> reference = torch.full((1, 3, 8, 8), 128 / 255)
        >>> Watson1993(beta=2)(reference + 1 / 255, reference).round(decimals=3)
        tensor([0.4120])
    """

    table: torch.Tensor
    contrast: torch.Tensor
    colour: torch.Tensor
    basis: torch.Tensor

    def __init__(self, beta: float = 4.0) -> None:
        if not 1 <= beta <= 8:
            raise SpecError(f"watson-1993: beta is a Minkowski exponent from 1 to 8, not {beta}")
        super().__init__("watson-1993")
        self.beta = beta
        table = torch.tensor(_SENSITIVITY, dtype=torch.float64).flatten()
        contrast = torch.full_like(table, _CONTRAST)
        contrast[0] = 0
        tables = torch.stack([table, _CHROMA * table, _CHROMA * table])[:, None]
        self._keep(table=tables, contrast=contrast, colour=torch.tensor(_LUMA_AND_CHROMA), basis=_dct_basis())

    def _distance(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
        basis, colour = self.basis.to(images), self.colour.to(images)
        thresholds = self._thresholds(_blocks(_recolour(255 * reference, colour), offset) @ basis)
        errors = _blocks(_recolour(255 * (images - reference), colour), offset) @ basis
        pooled = _power((errors / thresholds).square(), self.beta / 2, _VISIBLE).mean((1, 2, 3))
        return _power(pooled, 1 / self.beta, _VISIBLE ** (self.beta / 2))

    @torch.no_grad()
    def _thresholds(self, coefficients: torch.Tensor) -> torch.Tensor:
        light = (coefficients[:, :1, :, :1].clamp(min=_DARKEST_DC) / _MID_DC) ** _LIGHT
        thresholds = self.table.to(coefficients) * light
        contrast = self.contrast.to(coefficients)
        return torch.maximum(thresholds, coefficients.abs() ** contrast * thresholds ** (1 - contrast))


def _recolour(images: torch.Tensor, colour: torch.Tensor) -> torch.Tensor:
    """A linear change of colour space by the matrix ``[new channels, old channels]``."""
    return (colour @ images.flatten(2)).reshape(images.shape)


_EMPTY = 1e-20
"""Square of an amplitude that rounding alone leaves in an empty Fourier coefficient."""
_RATIO = 1e-12
"""Square of an error over its threshold below which pooling is rounded off."""
_SUM = 1e-12
_FAINT = 1e-5
"""Amplitude below which a Fourier coefficient loses its phase: a fifteenth of what rounding to 8 bits leaves in it."""
_ANGLE = 1e-8
"""Square of the sine of half an angle below which angles are rounded off."""


class _LearnedWatson(Perceptual):
    """What the two learned Watson distances share: colours, thresholds, pooling.

    S. Czolbe, O. Krause, I. Cox, C. Igel: "A Loss Function for Generative Neural Networks Based on Watson's Perceptual
    Model", NeurIPS 2020. Y, Cb and Cr have parameters of their own; their distances are summed with learned weights.
    Sums run over blocks, so values grow with the area (for the DFT faster than linearly), as the weights were learned.

    Two things differ from the release: the mean brightness that luminance masking refers to is the image's own, not the
    batch's, and a block counts as no darker than half a grey level, because a negative exponent of 0 would hide it.
    """

    colour: torch.Tensor
    bias: torch.Tensor
    mixture: torch.Tensor
    table: torch.Tensor
    light: torch.Tensor
    contrast: torch.Tensor
    beta: torch.Tensor

    def __init__(self, name: str, digest: str, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(name, digest)
        channels = [{key: state[f"{part}.{key}"].double() for key in _KEYS} for part in _PARTS]

        def stacked(key: str) -> torch.Tensor:
            return torch.stack([channel[key].flatten() for channel in channels])[:, None]

        self._keep(colour=state["to_YCbCr.transform"].T.contiguous(), bias=state["to_YCbCr.bias"][:, None, None])
        self._keep(mixture=state["w_tild"].softmax(0), table=stacked("t_tild").exp(), light=stacked("alpha"))
        self._keep(contrast=stacked("w_tild").sigmoid(), beta=stacked("beta"))

    @torch.no_grad()
    def _thresholds(self, amplitudes: torch.Tensor, darkest: float) -> torch.Tensor:
        """Table x luminance masking, then a soft maximum with contrast masking; ``[B, 3, n, coefficients]``."""
        light = amplitudes[..., :1].clamp(min=darkest)
        plain = self.table.to(light) * (light / light.mean(2, keepdim=True)) ** self.light.to(light)
        contrast = self.contrast.to(light)
        masked = amplitudes**contrast * plain ** (1 - contrast)
        return plain + (masked - plain) * torch.sigmoid(masked - plain)

    def _pooled(self, errors: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
        """(sum |e / t|^beta)^(1/beta) for each channel, ``[B, 3]``."""
        beta = self.beta.to(errors)
        summed = _power((errors / thresholds).square(), beta / 2, _RATIO).sum((2, 3))
        return _power(summed, 1 / beta.flatten(), _SUM)

    def _planes(self, images: torch.Tensor) -> torch.Tensor:
        return _recolour(images, self.colour.to(images)) + self.bias.to(images)


class WatsonDct(_LearnedWatson):
    """Watson-DCT: errors of cosine coefficients over learned thresholds, pooled with a learned exponent."""

    basis: torch.Tensor

    def __init__(self, name: str, digest: str, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(name, digest, state)
        self._keep(basis=_dct_basis())

    def _distance(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
        basis = self.basis.to(images)
        amplitudes = (_blocks(self._planes(reference), offset) @ basis).abs()
        errors = _blocks(_recolour(images - reference, self.colour.to(images)), offset) @ basis
        pooled = self._pooled(errors, self._thresholds(amplitudes, _HALF_GREY * SIDE))
        return pooled @ self.mixture.to(pooled)


class WatsonDft(_LearnedWatson):
    """Watson-DFT: amplitudes of Fourier coefficients as in Watson-DCT, plus weighted angles between their phases.

    An angle counts by how far the coefficient stands above rounding noise: a flat area has no phase to compare.
    """

    real: torch.Tensor
    imaginary: torch.Tensor
    phase: torch.Tensor

    def __init__(self, name: str, digest: str, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__(name, digest, state)
        real, imaginary = _dft_basis()
        weights = torch.stack([state[f"{part}.w_phase_tild"].double() for part in _PARTS]).exp()
        # These four coefficients are real: they have a sign and no phase.
        weights[:, :: SIDE // 2, :: SIDE // 2] = 0
        self._keep(real=real, imaginary=imaginary, phase=weights.flatten(1)[:, None])

    def _distance(self, images: torch.Tensor, reference: torch.Tensor, offset: tuple[int, int]) -> torch.Tensor:
        real, imaginary, amplitudes = self._spectrum(images, offset)
        real_r, imaginary_r, amplitudes_r = self._spectrum(reference, offset)
        pooled = self._pooled(amplitudes - amplitudes_r, self._thresholds(amplitudes_r, _HALF_GREY))
        unit, unit_r = 1 / (amplitudes + _FAINT), 1 / (amplitudes_r + _FAINT)
        chord = (real * unit - real_r * unit_r).square() + (imaginary * unit - imaginary_r * unit_r).square()
        angles = (self.phase.to(chord) * _angle(chord / 4)).sum((2, 3))
        return (pooled + angles) @ self.mixture.to(pooled)

    def _spectrum(self, images: torch.Tensor, offset: tuple[int, int]) -> tuple[torch.Tensor, ...]:
        """Real part, imaginary part and amplitude, ``[B, 3, n, 40]`` each."""
        blocks = _blocks(self._planes(images), offset)
        real, imaginary = blocks @ self.real.to(blocks), blocks @ self.imaginary.to(blocks)
        return real, imaginary, (real.square() + imaginary.square() + _EMPTY).sqrt()


def _angle(square: torch.Tensor) -> torch.Tensor:
    """Angles from the squared sines of their halves; the slope stays finite at 0 and at a half turn."""
    return 2 * torch.asin(_power(square, 0.5, _ANGLE).clamp(max=1 - 1e-6))


_PARTS = ("ly", "lcb", "lcr")
_KEYS = ("t_tild", "alpha", "w_tild", "beta")
_FOLDER = "watson-perceptual"
_RELEASED: dict[str, tuple[type[_LearnedWatson], str, str]] = {
    "watson-dct": (
        WatsonDct,
        "rgb_watson_dct_trial0.pth",
        "bde40e0bc1912060da45b4487df660450ba91fa44c031f22a144c661d99488ef",
    ),
    "watson-dft": (
        WatsonDft,
        "rgb_watson_fft_trial0.pth",
        "98386c0e0841fc346ab4c7d296788ed0af81f2ca8866a885be4405d03321a717",
    ),
}
"""Class, file and SHA-256 of the weights at github.com/SteffenCzolbe/PerceptualSimilarity, src/loss/weights."""

_JPEG_50 = 2.8
"""Mean watson-1993 distance of photographs at 256 pixels from their JPEG of quality 50 (4:2:0)."""

PERCEPTUALS = ("lpips", "lpips-vgg", "lpips-squeeze", "watson-dft", "watson-dct", "watson-1993", "mse")
"""The names that :func:`load_perceptual` takes."""


def load_perceptual(name: str, folder: Path | None = None, *, beta: float | None = None) -> Perceptual:
    """The distance called ``name``, its weights checked against their digest.

    Args:
        name: one of :data:`PERCEPTUALS`.
        folder: where the files of ``watson-dft`` and ``watson-dct`` lie; None looks in the weights folder. LPIPS takes
            torch's own checkpoint folder (``TORCH_HOME``), the others have no file.
        beta: Minkowski exponent of ``watson-1993``; None is 4, for judging. See :class:`Watson1993`.

    Raises:
        SpecError: an unknown name, or ``beta`` where there is none to choose.
        UnavailableError: a file or package is not here, or not the published one; says which goes where.
    """
    if name not in PERCEPTUALS:
        raise SpecError(f"unknown perceptual distance '{name}'.{nearest(name, PERCEPTUALS)}")
    if beta is not None and name != "watson-1993":
        raise SpecError(f"{name} has no beta to choose; only watson-1993 has")
    if name == "mse":
        return MeanSquaredError()
    if name == "watson-1993":
        return Watson1993() if beta is None else Watson1993(beta)
    if name in _RELEASED:
        return _released(name, folder)
    return LearnedPatchSimilarity(cast("Any", name.partition("-")[2] or "alex"))


@lru_cache(maxsize=3)
def scaled_perceptual(name: str) -> tuple[Perceptual, float]:
    """A distance, and what of it stands where LPIPS with VGG's weights has 1: for objectives with published weights.

    ``watson-1993`` is scaled so that JPEG 50 is at .1, the published limit of IMPRESS; LPIPS is what it is.

    Raises:
        UnavailableError: its weights are not here.
    """
    return load_perceptual(name), _JPEG_50 / 0.1 if name == "watson-1993" else 1.0


def _released(name: str, folder: Path | None) -> Perceptual:
    kind, file, digest = _RELEASED[name]
    path = find(_FOLDER, file, digest) if folder is None else folder / file
    if not path.is_file():
        raise UnavailableError(
            f"{name} needs {file} (github.com/SteffenCzolbe/PerceptualSimilarity, src/loss/weights): put it at {path}"
        )
    return kind(name, digest, load_state(path, digest))
