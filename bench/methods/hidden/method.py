"""hidden: HiDDeN as a post-hoc mark, attenuated by a map of what the eye just notices."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ....core.components import knob, labelled, param
from ....core.errors import UserError
from ....core.images import Images
from ....core.weights import digest_of
from ..base import Evidence, Watermark
from .network import Encoder, Extractor, load_config, load_encoder, load_extractor_folder
from .search import mark_image

if TYPE_CHECKING:
    from ....core.seeds import Seed

SHIPPED = Path(__file__).parents[3] / "core" / "shipped" / "hidden"
"""Where the weights are that come with the package."""


class Hidden(Watermark):
    """HiDDeN (Zhu et al., ECCV 2018), trained as in Stable Signature's first phase.

    The weights say how a mark is made: by an encoder, by gradient descent through the extractor for each image (the
    weights that ship: they have no encoder), or by both. Without an encoder the bits are whitened ones.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "hidden", {"weights": "trained/hidden"}).label
        'hidden(weights=hidden)'
    """

    name: ClassVar[str] = "hidden"
    family: ClassVar[str] = "post-hoc"
    min_side: ClassVar[int] = 16
    references: ClassVar[tuple[str, ...]] = (
        "J. Zhu, R. Kaplan, J. Johnson, L. Fei-Fei: HiDDeN: Hiding Data With Deep Networks. ECCV 2018.",
        "P. Fernandez, G. Couairon, H. Jegou, M. Douze, T. Furon: The Stable Signature. ICCV 2023, arXiv:2303.15435.",
    )

    weights: str = knob("shipped", doc="shipped, or a folder of `waterproof train hidden`")
    attenuation: Literal["trained", "uniform", "jnd"] = param(
        "trained", doc="trained: as the weights' recipe says; uniform; jnd: by the just noticeable difference"
    )
    strength: float | None = param(None, gt=0, le=100, doc="factor of the mark; the recipe's where it is left out")
    refine: int | None = param(
        None, ge=0, le=1000, doc="gradient steps for each image; the recipe's where it is left out"
    )

    @property
    def _folder(self) -> Path:
        return SHIPPED if self.weights == "shipped" else Path(self.weights).expanduser()

    @property
    def label(self) -> str:
        """The name, and whose weights where they are not those of the package."""
        place = {} if self.weights == "shipped" else {"weights": Path(self.weights).name}
        return labelled(self.name, {**place, **self.changed_params()})

    @property
    def bits(self) -> int:
        """Payload length k."""
        return load_config(self._folder).bits

    def unavailable(self) -> str | None:
        """Needs its weights."""
        try:
            _networks(self._folder, self._digest)
        except UserError as error:
            return str(error)
        return None

    @property
    def _digest(self) -> str:
        return digest_of(self._folder)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the networks and their shape."""
        if self.unavailable():
            return {}
        mine = "encoder.safetensors" if load_config(self._folder).embed == "encoder" else "whitening.safetensors"
        return {name: digest_of(self._folder / name) for name in (mine, "extractor.safetensors", "config.json")}

    @torch.no_grad()
    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        """Adds the attenuated perturbation, image by image; the descent draws crops from each image's own seed."""
        encoder, extractor = _networks(self._folder, self._digest)
        config = load_config(self._folder)
        attenuation = config.attenuation if self.attenuation == "trained" else self.attenuation
        strength = self.strength or config.strength
        steps = config.refine if self.refine is None else self.refine
        marked = []
        for image, key, record in zip(images.float()[:, None], keys[:, None].float(), images.records, strict=True):
            generator = seed.child(record.id).torch()
            marked.append(mark_image(encoder, extractor, image, key, steps, attenuation, strength, generator))
        return Images.from_float(torch.cat(marked), images.records)

    @torch.inference_mode()
    def decode(self, images: Images) -> Evidence:
        """Logits of the extractor, image by image: a result never depends on what is read beside an image."""
        _, extractor = _networks(self._folder, self._digest)
        return Evidence(logits=torch.cat([extractor(image[None]) for image in images.float()]))


@lru_cache(maxsize=4)
def _networks(folder: Path, digest: str) -> tuple[Encoder | None, Extractor]:
    """Encoder, if there is one, and extractor; the digest makes a changed folder another one.

    An encoder writes the bits of the extractor that it was trained with; a descent can write whitened ones.
    """
    # Tensors that were made for inference alone could not be descended through.
    with torch.inference_mode(False):
        encoder = load_encoder(folder)
        return encoder, load_extractor_folder(folder, whitened=encoder is None)
