"""dwt-dct and dwt-dct-svd: the two DWT marks of the invisible-watermark package, in batches.

Both marks live in the U channel of YUV: one level of the Haar transform, 4x4 blocks of its low band, one payload bit
in each block by quantisation, the bits repeated over the image and read back by a vote. ``variant="faithful"`` gives
the package's pixels and bits, its defects included: it swaps the horizontal and vertical detail bands on the way back
and truncates to 8 bits. ``variant="corrected"`` returns the bands to their places and rounds.

The arithmetic follows the package's floating-point operations one by one wherever a rounding error could decide a
bit: values that are exact multiples of the quantisation step are common in flat regions of real photographs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import cv2
import numpy as np
import torch

from ...core.components import param
from ...core.errors import ImageError
from .base import Evidence, Watermark

if TYPE_CHECKING:
    from ...core.images import Images
    from ...core.seeds import Seed

_HALF = 0.7071067811865476
"""The Haar filter's coefficient as the package's wavelet library holds it."""

_BLOCK = 4
_MIN_PIXELS = 256 * 256
_TIE = 1e-6
"""A leading singular value this close to a decision boundary is computed again by the package's own operations."""


class _DwtMark(Watermark):
    """What the two marks share: colour space, wavelet, the order of the blocks, and the vote."""

    family: ClassVar[str] = "post-hoc"
    min_side: ClassVar[int] = 8
    references: ClassVar[tuple[str, ...]] = (
        "ShieldMnt, invisible-watermark 0.2.0 (dwtDct, dwtDctSvd), MIT licence, 2021.",
    )

    payload: int = param(32, ge=1, le=4096, doc="payload length k in bits")
    step: float = param(36.0, gt=0, le=255, doc="quantisation step, in units of the low band (twice a grey level)")
    variant: Literal["faithful", "corrected"] = param(
        "faithful", doc="faithful: the package's pixels, swapped detail bands included; corrected: bands put right"
    )

    @property
    def bits(self) -> int:
        """Payload length k."""
        return self.payload

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        """Marks images of at least 65,536 pixels (the package's limit).

        Raises:
            ImageError: the images are too small for the method or for the payload.
        """
        height, width = images.size
        if height * width < _MIN_PIXELS:
            raise ImageError(f"{self.name} marks images of at least 65,536 pixels, this one has {width} x {height}")
        yuv = _to_yuv(images.numpy())
        bands = _haar(_cropped(yuv[..., 1]))
        blocks = _to_blocks(bands[0])
        bits = _bit_of_each_block(keys.numpy(), blocks.shape[-1] // len(images), self.payload)
        marked = self._mark_blocks(blocks, bits)
        _from_blocks(marked, bands[0])
        low, horizontal, vertical, diagonal = bands
        if self.variant == "faithful":
            channel = _inverse_haar(low, vertical, horizontal, diagonal).astype(np.int32).astype(np.uint8)
        else:
            channel = np.clip(np.rint(_inverse_haar(low, horizontal, vertical, diagonal)), 0, 255).astype(np.uint8)
        _cropped(yuv[..., 1])[...] = channel
        return images.with_pixels(_from_yuv(yuv))

    def decode(self, images: Images) -> Evidence:
        """Reads the vote of the blocks; the logit is the share of ones minus 127/255, the package's threshold.

        Raises:
            ImageError: there are fewer blocks than payload bits.
        """
        channel = _cropped(_to_yuv(images.numpy())[..., 1])
        blocks = _to_blocks(_haar_low(channel))
        count = blocks.shape[-1] // len(images)
        if count < self.payload:
            height, width = images.size
            raise ImageError(
                f"{self.name} needs {self.payload} blocks to read {self.payload} bits; {width} x {height} has {count}"
            )
        ones = self._read_blocks(blocks).reshape(len(images), count)
        return Evidence(logits=torch.from_numpy(_vote(ones, self.payload)))

    @abstractmethod
    def _mark_blocks(self, blocks: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Returns ``blocks`` (float64 ``[4, 4, N]``) with one bit (``[N]``, 0 or 1) in each."""

    @abstractmethod
    def _read_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """The bit (bool ``[N]``) that each block shows."""


class DwtDct(_DwtMark):
    """``dwtDct``: quantises the largest coefficient of each block but the first. It holds no DCT in fact.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "dwt-dct", {"payload": 48}).label
        'dwt-dct(payload=48)'
    """

    name: ClassVar[str] = "dwt-dct"

    def _mark_blocks(self, blocks: np.ndarray, bits: np.ndarray) -> np.ndarray:
        flat = blocks.reshape(_BLOCK * _BLOCK, -1).copy()
        where = np.abs(flat[1:]).argmax(axis=0) + 1
        index = np.arange(flat.shape[1])
        value = flat[where, index]
        size = (np.abs(value) // self.step + 0.25 + 0.5 * bits) * self.step
        flat[where, index] = np.where(value >= 0.0, size, -1.0 * size)
        return flat.reshape(blocks.shape)

    def _read_blocks(self, blocks: np.ndarray) -> np.ndarray:
        largest = np.abs(blocks.reshape(_BLOCK * _BLOCK, -1)[1:]).max(axis=0)
        read: np.ndarray = largest % self.step > 0.5 * self.step
        return read


class DwtDctSvd(_DwtMark):
    """``dwtDctSvd``: quantises the leading singular value of each block's DCT.

    The DCT is orthonormal, so a block and its DCT have the same singular values, and changing the leading one is a
    rank-one update of the block itself: no transform is needed. The leading pair comes from a power iteration over all
    blocks at once. Blocks that lie on a decision boundary, or whose two leading values are too close for the
    iteration, go through the package's own operations (OpenCV's DCT, LAPACK's SVD).
    """

    name: ClassVar[str] = "dwt-dct-svd"

    def _mark_blocks(self, blocks: np.ndarray, bits: np.ndarray) -> np.ndarray:
        value, left, right, certain = _leading_pair(blocks)
        certain &= np.abs(value / self.step - np.rint(value / self.step)) * self.step > _TIE
        change = (value // self.step + 0.25 + 0.5 * bits) * self.step - value
        marked = blocks + (left * change)[:, None] * right[None]
        for n in np.flatnonzero(~certain):
            u, s, v = np.linalg.svd(cv2.dct(np.ascontiguousarray(blocks[:, :, n])))
            s[0] = (s[0] // self.step + 0.25 + 0.5 * bits[n]) * self.step
            marked[:, :, n] = cv2.idct(np.dot(u, np.dot(np.diag(s), v)))
        result: np.ndarray = marked
        return result

    def _read_blocks(self, blocks: np.ndarray) -> np.ndarray:
        value, _, _, certain = _leading_pair(blocks, vectors=False)
        half = 0.5 * self.step
        certain &= np.abs(value / half - np.rint(value / half)) * half > _TIE
        for n in np.flatnonzero(~certain):
            value[n] = np.linalg.svd(cv2.dct(np.ascontiguousarray(blocks[:, :, n])))[1][0]
        read: np.ndarray = value % self.step > half
        return read


def _to_yuv(pixels: np.ndarray) -> np.ndarray:
    """8-bit YUV of RGB images ``[B, H, W, 3]`` by OpenCV's fixed-point conversion, in one call for the batch."""
    count, height, width, _ = pixels.shape
    return cv2.cvtColor(pixels.reshape(count * height, width, 3), cv2.COLOR_RGB2YUV).reshape(pixels.shape)


def _from_yuv(yuv: np.ndarray) -> np.ndarray:
    count, height, width, _ = yuv.shape
    return cv2.cvtColor(yuv.reshape(count * height, width, 3), cv2.COLOR_YUV2RGB).reshape(yuv.shape)


def _cropped(channel: np.ndarray) -> np.ndarray:
    """The part that the package uses: sides cut down to multiples of four."""
    cropped: np.ndarray = channel[:, : channel.shape[1] // 4 * 4, : channel.shape[2] // 4 * 4]
    return cropped


def _haar_low(channel: np.ndarray) -> np.ndarray:
    """The low band, columns first and rows second, each product rounded before the sum as the package does."""
    scaled = _HALF * channel.astype(np.float64)
    columns = scaled[:, 1::2] + scaled[:, 0::2]
    columns *= _HALF
    return columns[..., 1::2] + columns[..., 0::2]


def _haar(channel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """All four bands: low, horizontal, vertical, diagonal detail."""
    scaled = _HALF * channel.astype(np.float64)
    sums = _HALF * (scaled[:, 1::2] + scaled[:, 0::2])
    differences = _HALF * (scaled[:, 0::2] - scaled[:, 1::2])
    return (
        sums[..., 1::2] + sums[..., 0::2],
        differences[..., 1::2] + differences[..., 0::2],
        sums[..., 0::2] - sums[..., 1::2],
        differences[..., 0::2] - differences[..., 1::2],
    )


def _inverse_haar(low: np.ndarray, horizontal: np.ndarray, vertical: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Rows first, then columns."""
    count, height, width = low.shape
    half = np.empty((2, count, height, 2 * width))
    for band, (smooth, detail) in enumerate(((low, vertical), (horizontal, diagonal))):
        half[band, :, :, 0::2] = _HALF * smooth + _HALF * detail
        half[band, :, :, 1::2] = _HALF * smooth - _HALF * detail
    half *= _HALF
    out = np.empty((count, 2 * height, 2 * width))
    out[:, 0::2] = half[0] + half[1]
    out[:, 1::2] = half[0] - half[1]
    return out


def _to_blocks(low: np.ndarray) -> np.ndarray:
    """``[B, h, w]`` to ``[4, 4, N]``: blocks row by row, image after image, each coefficient contiguous over N."""
    count, height, width = low.shape
    rows, columns = height // _BLOCK, width // _BLOCK
    tiles = low[:, : rows * _BLOCK, : columns * _BLOCK].reshape(count, rows, _BLOCK, columns, _BLOCK)
    return np.ascontiguousarray(tiles.transpose(2, 4, 0, 1, 3)).reshape(_BLOCK, _BLOCK, -1)


def _from_blocks(blocks: np.ndarray, low: np.ndarray) -> None:
    """Writes blocks back into ``low``; a margin that fills no block stays as it is."""
    count, height, width = low.shape
    rows, columns = height // _BLOCK, width // _BLOCK
    tiles = blocks.reshape(_BLOCK, _BLOCK, count, rows, columns).transpose(2, 3, 0, 4, 1)
    low[:, : rows * _BLOCK, : columns * _BLOCK] = tiles.reshape(count, rows * _BLOCK, columns * _BLOCK)


def _bit_of_each_block(keys: np.ndarray, blocks: int, payload: int) -> np.ndarray:
    """The payload repeated over the blocks of each image: float64 ``[B * blocks]``."""
    return keys[:, np.arange(blocks) % payload].astype(np.float64).reshape(-1)


def _vote(ones: np.ndarray, payload: int) -> np.ndarray:
    """Share of ones for each bit, centred on the package's threshold; the sign is exact, ties included."""
    count, blocks = ones.shape
    turns = -(-blocks // payload)
    padded = np.zeros((count, turns * payload), dtype=np.int64)
    padded[:, :blocks] = ones
    votes = np.bincount(np.arange(blocks) % payload, minlength=payload)
    share = padded.reshape(count, turns, payload).sum(axis=1) / votes
    centred: np.ndarray = ((share * 255 - 127) / 255).astype(np.float32)
    return centred


def _leading_pair(blocks: np.ndarray, vectors: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Leading singular values and vectors of ``[4, 4, N]`` non-negative blocks by power iteration.

    The blocks are low bands of 8-bit values, so A A^T has no negative entry, its leading eigenvector has none
    (Perron), and a start of ones always overlaps with it.

    Returns:
        values ``[N]``, left and right vectors ``[4, N]``, and where the iteration has converged.
    """
    gram = np.einsum("ikn,jkn->ijn", blocks, blocks)
    left = gram.sum(axis=1)
    left /= np.maximum(np.sqrt((left * left).sum(axis=0)), 1e-300)
    eigenvalue = np.zeros(blocks.shape[-1])
    certain = np.zeros(blocks.shape[-1], dtype=bool)
    tolerance = 1e-11 if vectors else 1e-7
    for _ in range(12):
        image = (gram * left[None]).sum(axis=1)
        eigenvalue = (left * image).sum(axis=0)
        residual = image - eigenvalue * left
        # The error of the eigenvalue is second order in the residual, that of the vector first order.
        certain = np.sqrt((residual * residual).sum(axis=0)) <= tolerance * eigenvalue
        left = image / np.maximum(np.sqrt((image * image).sum(axis=0)), 1e-300)
        if certain.all():
            break
    certain &= eigenvalue > 0
    value = np.sqrt(np.maximum(eigenvalue, 0.0))
    right = (blocks * left[:, None]).sum(axis=0) / np.maximum(value, 1e-300) if vectors else left
    return value, left, right, certain
