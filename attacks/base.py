"""The contract of an attack: images in, images out, at a declared strength."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..core.components import Component, labelled
from ..core.errors import ContractError, SpecError, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from ..core.autoencoders import Autoencoder
    from ..core.images import Images
    from ..core.latent_diffusion import LatentDiffusion
    from ..core.seeds import Seed


HANDLES = {
    "queries": "queries",
    "detector": "decoder",
    "marked-samples": "samples",
    "unmarked-counterparts": "counterparts",
    "keys": "keys",
    "copies": "copies",
    "model": "model",
    "original-model": "original",
    "other-models": "others",
    "clean-images": "clean",
}
"""What an attack's ``knowledge`` may name, and the handle of :class:`Access` that carries it."""


@dataclass(frozen=True, slots=True)
class Access:
    """The handles that an attack may hold; the harness fills only those that the attack's ``knowledge`` names.

    Attributes:
        queries: ``"queries"``: a counted oracle, images to scores.
        decoder: ``"detector"``: float images ``[B, 3, H, W]`` in 0 to 1 to logits, differentiable.
        samples: ``"marked-samples"``: so many marked images with the key in question, of other sources than those
            that are attacked; more of them begin with the same ones.
        counterparts: ``"unmarked-counterparts"``: the same images without the mark.
        keys: ``"keys"``: the owner's payloads, bool ``[n, k]``.
        copies: ``"copies"``: the attacked images as so many users got them, one batch for each user, the user whose
            key is in question first; unmarked images are the same for every user.
        model: ``"model"``: the decoder that marks.
        original: ``"original-model"``: the decoder without a mark.
        others: ``"other-models"``: the decoders of so many other users.
        clean: ``"clean-images"``: so many unmarked images of other sources than those that are attacked.
    """

    queries: Callable[[Images], torch.Tensor] | None = None
    decoder: Callable[[torch.Tensor], torch.Tensor] | None = None
    samples: Callable[[int], Images] | None = None
    counterparts: Callable[[int], Images] | None = None
    keys: torch.Tensor | None = None
    copies: Callable[[int], Sequence[Images]] | None = None
    model: Autoencoder | None = None
    original: Autoencoder | None = None
    others: Callable[[int], Sequence[Autoencoder]] | None = None
    clean: Callable[[int], Images] | None = None

    def only_for(self, attack: Attack) -> Access:
        """What ``attack`` declares that it must know, and nothing else.

        Raises:
            SpecError: it names something that is no handle.
        """
        for handle in sorted(attack.knowledge - set(HANDLES)):
            raise SpecError(f"{attack.name} asks for unknown knowledge '{handle}'.{nearest(handle, HANDLES)}")
        return Access(**{HANDLES[handle]: getattr(self, HANDLES[handle]) for handle in attack.knowledge})


class Attack(Component):
    """Turns images into images.

    An attack never reports its own success: the harness rounds to 8 bits, measures, and scores. Random draws come
    only from ``seed.child(record.id)``, so an image gets the same draw in any batch.

    Class attributes:
        family: ``none``, ``compression``, ``geometric``, ``photometric``, ``degradation``, ``overlay``, ``combined``,
            ``regeneration``, ``purification``, ``adversarial``, ``collusion``, ``forgery`` or ``model``.
        strength: the name of the field that is the strength, None where there is only one setting.
        strengths: the peers' grid, in order of increasing damage.
        harder: +1 if a larger value harms more, -1 if a smaller one does, 0 if damage grows away from ``neutral``.
        neutral: the strength that leaves the image as it is (up to 8-bit rounding), None where there is none.
        knowledge: what it must know, names of :class:`Access` handles; empty for a blind attack.
        seeded: whether it draws random numbers.
        differentiable: whether a gradient can flow through it.
        learns: whether it works something out beforehand that is worth keeping, see :meth:`learn`.
    """

    kind: ClassVar[str] = "attack"
    family: ClassVar[str] = ""
    strength: ClassVar[str | None] = None
    strengths: ClassVar[tuple[Any, ...]] = ()
    harder: ClassVar[int] = 1
    neutral: ClassVar[float | None] = None
    knowledge: ClassVar[frozenset[str]] = frozenset()
    seeded: ClassVar[bool] = False
    differentiable: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """Name and settings; the strength is always named, also where it is the default."""
        if self.strength is None or self.strength_value is None:
            return super().label
        first = {self.strength: getattr(self, self.strength)}
        return labelled(self.name, {**first, **self.changed_params()})

    @property
    def aligned(self) -> bool:
        """Whether the result, after :meth:`undo`, can be compared pixel by pixel with the input."""
        return True

    @property
    def strength_value(self) -> float | None:
        """The strength as a number, None where the attack has none."""
        value = None if self.strength is None else getattr(self, self.strength)
        return None if value is None else float(value)

    @property
    def holdings(self) -> int:
        """How many images of its own the adversary must hold."""
        return 0

    @property
    def colluders(self) -> int:
        """How many users take part."""
        return 1

    @property
    def damage(self) -> float:
        """A number that grows with the damage; it orders the strengths of one attack."""
        value = self.strength_value
        if value is None:
            return 0.0
        return abs(value - (self.neutral or 0.0)) if self.harder == 0 else self.harder * value

    def prepare(self, access: Access) -> Attack:
        """Called once before use with the handles that :attr:`knowledge` names; returns the attack to apply."""
        return self.equipped(self.learn(access)) if self.learns else self

    def learn(self, access: Access) -> dict[str, torch.Tensor]:
        """What an attack that :attr:`learns` works out beforehand, from its knowledge alone; kept on disk."""
        return {}

    def equipped(self, learnt: Mapping[str, torch.Tensor]) -> Attack:
        """The attack to apply, with what :meth:`learn` gave."""
        return self

    @abstractmethod
    def apply(self, images: Images, seed: Seed) -> Images:
        """Attacks a batch of one size; the result has one size, perhaps another.

        Args:
            images: uint8 images.
            seed: the seed of this attack at this setting; draw from ``seed.child(record.id)`` only.
        """

    def undo(self, images: Images) -> Images:
        """Reverts a geometry that can be reverted exactly (flip, quarter turns), so that pixels can be compared."""
        return images


class ModelAttack(Attack):
    """Turns the model that makes marked images into another one; the images are then made by that.

    The owner reads with the networks of before. An unmarked image comes from the original model after the same attack.
    What is compared pixel by pixel is the image of the attacked model and that of the marked one, from one latent.

    Class attributes:
        part: what it attacks: ``decoder`` or ``diffusion``.
    """

    family: ClassVar[str] = "model"
    part: ClassVar[Literal["decoder", "diffusion"]] = "decoder"

    def apply(self, images: Images, seed: Seed) -> Images:
        """Images are not what it attacks.

        Raises:
            ContractError: always.
        """
        raise ContractError(f"{self.label} attacks the model that makes the images, not images")

    def change_decoder(self, access: Access, seed: Seed) -> Autoencoder:
        """The attacked decoder, in an autoencoder of its own; here the decoder as it is.

        Args:
            access: what :attr:`knowledge` names, ``model`` always.
            seed: of every draw.
        """
        if access.model is None:
            raise ContractError(f"{self.label} was given no model")
        return access.model

    def change_diffusion(self, model: LatentDiffusion, access: Access, seed: Seed) -> LatentDiffusion:
        """The attacked latent diffusion model; here the model as it is.

        Args:
            model: the owner's.
            access: what :attr:`knowledge` names.
            seed: of every draw.
        """
        return model
