"""The contract of a dataset: an index that costs little, and images on demand."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..core.components import Component
from ..core.identity import identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.images import Images, Record
    from ..core.progress import Tick


@dataclass(frozen=True, slots=True)
class Rejected:
    """An image that cannot be used: listed and counted, never substituted.

    Attributes:
        id: the id that it would have had.
        reason: one clear phrase.
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Index:
    """What a dataset holds.

    Attributes:
        records: one for each usable image, in a stable order.
        rejected: files that are no usable image, as far as their headers tell.
    """

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...] = ()

    @property
    def digest(self) -> str:
        """The identity of the image list: ids, sources, splits, labels and content digests, in order."""
        rows = [[r.id, r.source, r.label, r.split, r.digest] for r in self.records]
        return identity("images", {"images": rows})


class Dataset(Component):
    """Yields images with a record each.

    A dataset is asked once for its :meth:`index` and then, shard by shard, to :meth:`load` records of it. Loading a
    record gives the same pixels whatever is loaded beside it.
    """

    kind: ClassVar[str] = "dataset"

    @abstractmethod
    def index(self, tick: Tick | None = None) -> Index:
        """Lists the images without decoding them all.

        Args:
            tick: called as images are listed.

        Raises:
            DatasetError: the dataset is missing or holds no image.
        """

    @abstractmethod
    def load(self, records: Sequence[Record]) -> tuple[list[Images], list[Rejected]]:
        """Loads images, grouped by size; those that cannot be decoded are returned as rejected with the reason."""
