"""The contract of an attack: images in, images out, at a declared strength."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..core.components import Component, labelled

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from ..core.images import Images
    from ..core.seeds import Seed


@dataclass(frozen=True, slots=True)
class Access:
    """The handles that an attack may hold; the harness fills only those that the attack's ``knowledge`` names.

    Attributes:
        queries: ``"queries"``: a counted oracle, images to scores.
        decoder: ``"detector"``: float images ``[B, 3, H, W]`` in 0 to 1 to logits, differentiable.
        samples: ``"marked-samples"``: marked images that the adversary has seen.
        keys: ``"keys"``: the owner's payloads, bool ``[n, k]``.
    """

    queries: Callable[[Images], torch.Tensor] | None = None
    decoder: Callable[[torch.Tensor], torch.Tensor] | None = None
    samples: Images | None = None
    keys: torch.Tensor | None = None


class Attack(Component):
    """Turns images into images.

    An attack never reports its own success: the harness rounds to 8 bits, measures, and scores. Random draws come
    only from ``seed.child(record.id)``, so an image gets the same draw in any batch.

    Class attributes:
        family: ``none``, ``compression``, ``geometric``, ``photometric``, ``degradation``, ``overlay``, ``combined``,
            ``regeneration``, ``purification`` or ``adversarial``.
        strength: the name of the field that is the strength, None where there is only one setting.
        strengths: the peers' grid, in order of increasing damage.
        harder: +1 if a larger value harms more, -1 if a smaller one does, 0 if damage grows away from ``neutral``.
        neutral: the strength that leaves the image as it is (up to 8-bit rounding), None where there is none.
        knowledge: what it must know, names of :class:`Access` handles; empty for a blind attack.
        seeded: whether it draws random numbers.
        differentiable: whether a gradient can flow through it.
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
    def damage(self) -> float:
        """A number that grows with the damage; it orders the strengths of one attack."""
        value = self.strength_value
        if value is None:
            return 0.0
        return abs(value - (self.neutral or 0.0)) if self.harder == 0 else self.harder * value

    def prepare(self, access: Access) -> Attack:
        """Called once before use with the handles that :attr:`knowledge` names; returns the attack to apply."""
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
