"""The contracts of what is judged: watermarks, passive detectors, protections."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from ...core.components import Component
from ...core.errors import ContractError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ...core.autoencoders import Autoencoder
    from ...core.images import Images
    from ...core.latent_diffusion import LatentDiffusion
    from ...core.seeds import Seed


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a detector saw in each image; larger means more likely marked (or generated).

    Attributes:
        logits: float32 ``[B, k]``, one for each payload bit; a bit is 1 where its logit is above 0.
        score: float64 ``[B]``, for detectors without a payload.
    """

    logits: torch.Tensor | None = None
    score: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """Marked images and the unmarked counterpart of each, in the same order.

    Attributes:
        marked: the images that carry the mark.
        unmarked: the same images without it: the input for a post-hoc mark, the same model, prompt, seed and latent
            without the mark for a mark born with the image.
    """

    marked: Images
    unmarked: Images


class Method(Component):
    """Base of watermarks, detectors and protections.

    Class attributes:
        role: ``watermark``, ``detector`` or ``protection``.
        family: ``post-hoc``, ``in-generation``, ``passive``, ...
        min_side: the smallest side in pixels that it takes.
    """

    kind: ClassVar[str] = "method"
    role: ClassVar[str] = ""
    family: ClassVar[str] = ""
    min_side: ClassVar[int] = 1

    def refuses(self, attack: str) -> str | None:
        """Why this method cannot score images after the attack called ``attack``; None if it can."""
        return None


class Watermark(Method):
    """A mark that is put in and read back.

    Class attributes:
        counterparts: ``"input"`` if the unmarked counterpart is the dataset's own image, so that attacked negatives are
            shared between methods; ``"own"`` if :meth:`mark` makes it.
        key_is_given: whether the images carry a payload that was chosen elsewhere, so that a drawn key is no use.
    """

    role: ClassVar[str] = "watermark"
    key_is_given: ClassVar[bool] = False
    counterparts: ClassVar[Literal["input", "own"]] = "input"

    @property
    @abstractmethod
    def bits(self) -> int:
        """Payload length k; 0 for a mark that is only present or absent."""

    @property
    def users(self) -> tuple[str, ...] | None:
        """The keys that can be written, words of 0 and 1, where each needs something of its own; None: any key can."""
        return None

    @abstractmethod
    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        """Marks images.

        Args:
            images: the batch, one size.
            keys: bool ``[B, k]``, the payload of each image.
            seed: draw from ``seed.child(record.id)`` only.
        """

    @abstractmethod
    def decode(self, images: Images) -> Evidence:
        """Reads the mark; knows nothing of the key."""

    def mark(self, images: Images, keys: torch.Tensor, seed: Seed) -> Pair:
        """Marked images with their counterparts; marks that make their own images override it."""
        return Pair(self.embed(images, keys, seed), images)

    @property
    def invents(self) -> bool:
        """Whether it makes its own images from prompts and seeds, and takes none."""
        return False

    @property
    def parts(self) -> frozenset[str]:
        """Parts of a model that make the images, which attacks on the model may change: ``decoder``, ``diffusion``."""
        return frozenset()

    def decoder_of(self, key: str | None) -> Autoencoder:
        """The decoder that makes images with ``key`` (a word of 0 and 1), or unmarked ones; with its autoencoder."""
        raise ContractError(f"{self.label} has no decoder")

    def remake(self, images: Images, keys: torch.Tensor, seed: Seed, changed: Changed) -> Pair:
        """What :meth:`mark` gives, made by an attacked model."""
        raise ContractError(f"{self.label} makes no image by a model")


@dataclass(frozen=True, slots=True)
class Changed:
    """The parts of an attacked model.

    Attributes:
        decoder: the attacked decoder of a key, or of nobody.
        diffusion: the attacked latent diffusion model, for the owner's.
    """

    decoder: Callable[[str | None], Autoencoder]
    diffusion: Callable[[LatentDiffusion], LatentDiffusion]


class Detector(Method):
    """A passive detector: it looks for traces, nobody put in a mark."""

    role: ClassVar[str] = "detector"

    @abstractmethod
    def score(self, images: Images) -> Evidence:
        """Scores images; larger means more likely generated."""


class Protection(Method):
    """A perturbation that is meant to keep a model from using an image."""

    role: ClassVar[str] = "protection"

    @property
    def largest_change(self) -> float | None:
        """The most that it promises to change a value, in grey levels of 255; None where it promises nothing so."""
        return None

    @abstractmethod
    def protect(self, images: Images, seed: Seed) -> Images:
        """Protects images."""
