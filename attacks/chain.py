"""Attacks made of attacks. Every link takes and gives 8-bit images, so values are rounded between links."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import PrivateAttr, field_validator

from ..core import registry
from ..core.components import param
from ..core.errors import SpecError
from .base import Access, Attack, ModelAttack
from .codec import Jpeg
from .geometry import Crop
from .photometric import Brightness

if TYPE_CHECKING:
    from ..core.images import Images
    from ..core.seeds import Seed


class Identity(Attack):
    """No attack: the images as they are.

    Example:
        >>> Identity().label
        'identity'
    """

    name: ClassVar[str] = "identity"
    family: ClassVar[str] = "none"
    summary: ClassVar[str] = "no attack"

    def apply(self, images: Images, seed: Seed) -> Images:
        """Returns the same images."""
        return images


class Sequence(Attack):
    """Base of attacks that apply other attacks, their links, one after another.

    Link i draws from ``seed.child("link", i)``. The spec of every link, with its version and digests, enters the
    identity, so that a new version of a link never meets an old number.
    """

    family: ClassVar[str] = "combined"

    _prepared: tuple[Attack, ...] | None = PrivateAttr(default=None)

    @abstractmethod
    def make_links(self) -> tuple[Attack, ...]:
        """Builds the links in the order in which they are applied."""

    @property
    def links(self) -> tuple[Attack, ...]:
        """The links, in the order in which they are applied."""
        return self._prepared if self._prepared is not None else self.make_links()

    @property
    def aligned(self) -> bool:
        """Whether every link can be undone or leaves pixels in place."""
        return all(link.aligned for link in self.links)

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Whether any link draws random numbers."""
        return any(link.seeded for link in self.links)

    @property
    def knowledge(self) -> frozenset[str]:  # type: ignore[override]
        """What any link must know."""
        return frozenset[str]().union(*(link.knowledge for link in self.links))

    @property
    def holdings(self) -> int:
        """The most that any link needs."""
        return max(link.holdings for link in self.links)

    @property
    def colluders(self) -> int:
        """The most that any link needs."""
        return max(link.colluders for link in self.links)

    def digests(self) -> dict[str, str]:
        """The identity of each link's spec, by ``link0``, ``link1``, ..."""
        return {f"link{i}": link.spec().id for i, link in enumerate(self.links)}

    def unavailable(self) -> str | None:
        """The first reason that keeps a link from running here."""
        return next((reason for link in self.links if (reason := link.unavailable()) is not None), None)

    def prepare(self, access: Access) -> Attack:
        """Prepares every link with the handles that it declares, and no others."""
        prepared = self.model_copy()
        prepared._prepared = tuple(link.prepare(access.only_for(link)) for link in self.links)
        return prepared

    def apply(self, images: Images, seed: Seed) -> Images:
        """Applies the links in order."""
        for i, link in enumerate(self.links):
            images = link.apply(images, seed.child("link", i))
        return images

    def undo(self, images: Images) -> Images:
        """Undoes the links in reverse order."""
        for link in reversed(self.links):
            images = link.undo(images)
        return images


class Chain(Sequence):
    """Any attacks one after another, as a benchmark file writes them.

    Links are given as ``name`` or ``{name: parameters}`` and checked when the chain is made; defaults are filled in, so
    that two spellings of one chain have one identity.

    Example:
        >>> Chain(attacks=[{"crop": {"area": 0.7}}, "flip"]).label
        'chain(crop(area=0.7) + flip)'
    """

    name: ClassVar[str] = "chain"
    summary: ClassVar[str] = "any attacks one after another"

    attacks: tuple[dict[str, dict[str, Any]], ...] = param(
        doc="The links: a list of names, or of mappings from a name to parameters.", min_length=1, max_length=32
    )

    @field_validator("attacks", mode="before")
    @classmethod
    def _resolve(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise SpecError(f"chain: attacks must be a list of names or of {{name: parameters}}, not {value!r}")
        return [_resolved(number, item) for number, item in enumerate(value, start=1)]

    @property
    def label(self) -> str:
        """The labels of the links, e.g. ``chain(crop + jpeg(quality=80))``."""
        return f"{self.name}({' + '.join(link.label for link in self.links)})"

    def identity_params(self) -> dict[str, Any]:
        """The links with every identity parameter; their runtime knobs are left out."""
        names = (next(iter(item)) for item in self.attacks)
        return {"attacks": [{n: link.identity_params()} for n, link in zip(names, self.make_links(), strict=True)]}

    def make_links(self) -> tuple[Attack, ...]:
        """Builds the links from their names and parameters."""
        return tuple(_create(name, params) for item in self.attacks for name, params in item.items())


class Combined(Sequence):
    """The benchmarks' usual combination: centre crop to half the area, brightness 1.5, JPEG 80.

    Example:
        >>> [link.label for link in Combined().links]
        ['crop', 'brightness', 'jpeg(quality=80)']
    """

    name: ClassVar[str] = "combined"
    summary: ClassVar[str] = "crop .5, brightness 1.5, JPEG 80"

    resize_back: bool = param(True, doc="Whether the crop is enlarged to the original size.")

    def make_links(self) -> tuple[Attack, ...]:
        """The three links."""
        crop = Crop(area=0.5, position="centre", resize_back=self.resize_back)
        return crop, Brightness(factor=1.5), Jpeg(quality=80)


def _create(name: str, params: Mapping[str, Any]) -> Attack:
    return cast("Attack", registry.create("attack", name, dict(params)))


def _resolved(number: int, item: object) -> dict[str, dict[str, Any]]:
    """One link as ``{name: all parameters}``."""
    name, params = next(iter(item.items())) if isinstance(item, Mapping) and len(item) == 1 else (item, {})
    params = {} if params is None else params
    if not isinstance(name, str) or not isinstance(params, Mapping):
        raise SpecError(f"chain: link {number} must be a name or one {{name: parameters}}, not {item!r}")
    try:
        link = _create(name, params)
    except SpecError as error:
        raise SpecError(f"chain: link {number}: {error}") from None
    if isinstance(link, ModelAttack):
        raise SpecError(f"chain: link {number}: {link.label} attacks the model, not images, and cannot be a link")
    if "copies" in link.knowledge and number > 1:
        raise SpecError(f"chain: link {number}: {link.label} mixes the copies that users got: it can only come first")
    return {name: link.model_dump(mode="json")}
