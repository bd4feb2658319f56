"""stable-signature: a mark that the decoder of a latent generator writes, one decoder for each user.

The latent is a photograph's (mode ``reconstruct``) or one that a latent diffusion model makes from a prompt (mode
``generate``). The unmarked counterpart is the same latent through the original decoder, so that the pair differs by the
mark alone and not by what the autoencoder loses.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from ....core.components import knob, labelled, param
from ....core.errors import ContractError, UnavailableError, UserError
from ....core.images import Images
from ...keys import key_word
from ..base import Changed, Evidence, Pair
from ..generation import InGeneration
from .released import KEY
from .users import SHIPPED, load_makers, read_users

if TYPE_CHECKING:
    from ....core.autoencoders import Autoencoder
    from ....core.seeds import Seed
    from .users import Makers


class StableSignature(InGeneration):
    """Stable Signature (Fernandez et al., ICCV 2023): the latent decoder is fine-tuned for each user's key.

    Only keys that somebody fine-tuned a decoder for can be written: the key policy ``per-image`` gives each image to
    one of the users, ``fixed`` takes one user for all. Images pass one at a time, so a result never depends on its
    batch; sides that the autoencoder does not divide are extended and cut back.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "stable-signature", {"weights": "released"}).bits
        48
    """

    name: ClassVar[str] = "stable-signature"
    version: ClassVar[int] = 2
    min_side: ClassVar[int] = 16
    references: ClassVar[tuple[str, ...]] = (
        "P. Fernandez, G. Couairon, H. Jegou, M. Douze, T. Furon: The Stable Signature: Rooting Watermarks in Latent "
        "Diffusion Models. ICCV 2023, arXiv:2303.15435.",
    )

    mode: Literal["reconstruct", "generate"] = param(
        "reconstruct",
        doc="where latents come from: reconstruct: the dataset's images, encoded; generate: a latent diffusion model, "
        "from the prompts and seeds of the dataset 'prompts'",
    )
    weights: str = knob(
        "shipped", doc="shipped, released (the authors' files), or a folder of `waterproof train stable-signature`"
    )
    autoencoder: str | None = knob(
        None, doc="a folder, or owner/name@revision, in place of the one that the weights' folder names"
    )
    extractor: str | None = knob(None, doc="a file or folder in place of the one that the weights' folder names")

    @property
    def label(self) -> str:
        """The name, whose weights and model where they are not those of the package, and what else differs."""
        given = {"weights": self.weights, "model": self.model}
        place = {name: Path(value).name for name, value in given.items() if value != "shipped"}
        return labelled(self.name, {**place, **self.changed_params()})

    @property
    def bits(self) -> int:
        """Payload length k of the extractor."""
        return len(self.users[0])

    @property
    def users(self) -> tuple[str, ...]:
        """The keys of the users, 0 and 1: no other can be written."""
        return (KEY,) if self.weights == "released" else read_users(self._folder).keys

    @property
    def _folder(self) -> Path:
        return SHIPPED / "stable_signature" if self.weights == "shipped" else Path(self.weights).expanduser()

    @property
    def _makers(self) -> Makers:
        return load_makers(self.weights, self.autoencoder, self.extractor)

    def unavailable(self) -> str | None:
        """Needs weights that are there and fit each other."""
        try:
            makers = self._makers
            if self.mode == "generate" and self.diffusion.autoencoder.digest != makers.autoencoder.digest:
                raise UnavailableError(
                    f"{self.diffusion.name} makes latents of another autoencoder than the decoders were fine-tuned from"
                )
        except UserError as error:
            return str(error)
        return None

    def digests(self) -> dict[str, str]:
        """SHA-256 of the decoders, the autoencoder and the extractor."""
        if self.unavailable():
            return {}
        users = self._makers.users
        found = {"autoencoder": users.autoencoder_digest, "extractor": users.extractor_digest}
        if self.mode == "generate":
            found["model"] = self.diffusion.digest
        return {**found, **{f"decoder of {key}": digest for key, digest in zip(users.keys, users.digests, strict=True)}}

    @property
    def invents(self) -> bool:
        """In mode ``generate``."""
        return self.mode == "generate"

    @property
    def parts(self) -> frozenset[str]:
        """The decoder, and what makes the latents where nobody gives them."""
        return frozenset({"decoder", "diffusion"} if self.mode == "generate" else {"decoder"})

    def decoder_of(self, key: str | None) -> Autoencoder:
        """The decoder of the user of ``key``, or the original one."""
        return self._makers.autoencoder if key is None else self._makers.marked(key)

    @torch.no_grad()
    def remake(self, images: Images, keys: torch.Tensor, seed: Seed, changed: Changed) -> Pair:
        """Each image's latent through the decoder of its key, and through the original one.

        Raises:
            ContractError: nobody has such a key, or a record has no prompt or seed in mode ``generate``.
        """
        makers = self._makers
        words = [key_word(key) for key in keys.tolist()]
        strangers = sorted(set(words) - set(makers.users.keys))
        if strangers:
            raise ContractError(f"{self.label}: no decoder writes the key {strangers[0]}")
        marked, unmarked = torch.empty_like(images.float()), torch.empty_like(images.float())
        # User by user: a decoder is put together once for all its images.
        for place in sorted(range(len(images)), key=lambda i: makers.users.keys.index(words[i])):
            height, width = images.size
            latent = self._latent(images.take([place]), changed)
            unmarked[place] = changed.decoder(None).decode(latent)[0, :, :height, :width]
            marked[place] = changed.decoder(words[place]).decode(latent)[0, :, :height, :width]
        return Pair(Images.from_float(marked, images.records), Images.from_float(unmarked, images.records))

    def _latent(self, image: Images, changed: Changed) -> torch.Tensor:
        """The latent of one image: encoded, or made from its prompt and seed."""
        if self.mode == "generate":
            (record,) = image.records
            model = changed.diffusion(self.diffusion)
            return model.sample(self.first_noise(record, image.size), record.caption or "", self.sampling)
        padded, _ = self._makers.autoencoder.pad(image.float())
        return self._makers.autoencoder.encode(padded)

    @torch.no_grad()
    def decode(self, images: Images) -> Evidence:
        """Logits of the extractor, image by image."""
        extractor = self._makers.extractor
        return Evidence(logits=torch.cat([extractor(image[None]) for image in images.float()]))
