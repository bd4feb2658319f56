"""Any tree of image files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from pydantic import field_validator, model_validator

from ..core.components import knob, param
from ..core.errors import DatasetError
from ..core.identity import file_digest
from ..core.images import Images, Record, group_by_size
from .base import Dataset, Index, Rejected
from .decoding import EXTENSIONS, Policy, UnusableImageError, check_crop, decode, fit, read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ..core.progress import Tick


class Folder(Dataset):
    """The images of a folder and its sub-folders; an image's id is its path below the folder.

    Every file with an image's ending is either a record or a rejected file with the reason. Hidden files and
    ``__MACOSX`` are passed over; links to folders are followed, each real folder once. :mod:`.decoding` says how each
    kind of pixel becomes 8-bit RGB; what was done to an image stands in its notes.

    Where the folder lies is no part of the identity: the paths below it and the bytes of the files are. Files of the
    same bytes are kept but share a source, because a copy is no independent observation.

    Example:
        >>> Folder(root="photographs", size=512, policy="crop").label
        'folder(size=512, policy=crop)'
    """

    name: ClassVar[str] = "folder"
    summary: ClassVar[str] = "any tree of images"

    root: Path = knob(doc="The folder; it may be moved without changing a result.")
    size: int | None = param(
        256, doc="Side of the square images, pixels, 16 to 8192; None only with policy native.", ge=16, le=8192
    )
    policy: Policy = param(
        "resize-crop",
        doc="resize-crop: short side to size, then the centre; crop: the centre, smaller files are rejected; "
        "resize: to a square whatever the shape; native: each file's own size.",
    )
    include: str = param("*", doc="Pattern of the relative paths to use; everything else is passed over.", min_length=1)
    calibration: str | None = param(
        None,
        doc="Pattern of the relative paths that belong to the calibration split (* also crosses folders, case counts); "
        "where only one of calibration and test is given, the rest belongs to the other.",
    )
    test: str | None = param(None, doc="Pattern of the relative paths that belong to the test split.")
    source: str | None = param(
        None,
        doc="Regular expression with one group, searched in the relative path: the group is the image's source; "
        "without it, or where it does not match, the path without its ending is.",
    )
    origin: str = param(
        "real", doc="What the images are: real, or the name of the generator that made them.", min_length=1
    )
    max_pixels: int = param(64_000_000, doc="Larger images are rejected before they are decoded.", ge=1, le=10**9)

    @model_validator(mode="before")
    @classmethod
    def _native_has_no_size(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("policy") == "native":
            return {"size": None, **values}
        return values

    @model_validator(mode="after")
    def _size_fits_policy(self) -> Self:
        if (self.size is None) != (self.policy == "native"):
            right = "leave size out" if self.policy == "native" else "give a size in pixels"
            raise ValueError(f"size {self.size} does not go with policy '{self.policy}': {right}")
        return self

    @field_validator("source")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from None
            if groups != 1:
                raise ValueError(f"the expression must have one group, e.g. '^([^/]+)/', and has {groups}")
        return pattern

    def index(self, tick: Tick | None = None) -> Index:
        """Lists the files, reads their headers and hashes their bytes; decodes no pixel.

        Raises:
            DatasetError: no such folder, no usable image in it, or a split pattern that fits no image.
        """
        root = self._folder()
        paths, rejected = _image_paths(root)
        if not paths:
            looked = ", ".join(sorted(EXTENSIONS))
            raise DatasetError(f"no image in {self.root} or below: looked for files that end in {looked}")
        first_path = paths[0]
        paths = [path for path in paths if fnmatchcase(path, self.include)]
        rejected = [item for item in rejected if fnmatchcase(item.id, self.include)]
        if not paths:
            raise DatasetError(
                f"include: '{self.include}' fits no image in {self.root}; paths look like '{first_path}'"
            )
        records: list[Record] = []
        for path in paths:
            try:
                records.append(self._examine(root, path))
            except UnusableImageError as error:
                rejected.append(Rejected(path, str(error)))
            if tick is not None:
                tick(1, path)
        records, leaking = _without_leaks(self._with_splits(_with_shared_sources(records)))
        rejected = sorted((*rejected, *leaking), key=lambda item: item.id)
        if not records:
            first = rejected[0]
            raise DatasetError(
                f"no usable image in {self.root}: all {len(rejected)} were rejected, the first, {first.id}, "
                f"because: {first.reason}"
            )
        return Index(tuple(records), tuple(rejected))

    def load(self, records: Sequence[Record]) -> tuple[list[Images], list[Rejected]]:
        """Reads and decodes files, and rejects those whose bytes are no longer what the record says."""
        root = self._folder()
        loaded: list[tuple[Record, np.ndarray]] = []
        rejected: list[Rejected] = []
        for record in records:
            try:
                data = _read(root / record.id)
                if record.digest is not None and hashlib.sha256(data).hexdigest() != record.digest:
                    raise UnusableImageError("changed since the run began")
                picture, notes = decode(data, self.max_pixels)
                late = tuple(note for note in notes if note not in record.notes)
                pixels = np.asarray(fit(picture, self.size, self.policy))
            except UnusableImageError as error:
                rejected.append(Rejected(record.id, str(error)))
            else:
                loaded.append((replace(record, notes=(*record.notes, *late)), pixels))
        return group_by_size(loaded), rejected

    def _folder(self) -> Path:
        root = self.root.expanduser()
        if root.is_dir():
            return root
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise DatasetError(f"the image folder {root} {problem}: set root to a folder that holds images")

    def _examine(self, root: Path, path: str) -> Record:
        file = root / path
        try:
            # A pipe or a device would be read for ever.
            if not file.is_file():
                raise UnusableImageError("no regular file, or a link to nothing")
            if file.stat().st_size == 0:
                raise UnusableImageError("empty file")
            header = read_header(file, self.max_pixels)
            digest = file_digest(file)
        except OSError as error:
            raise UnusableImageError(f"cannot be read: {error.strerror or error}") from None
        if self.policy == "crop" and self.size is not None:
            check_crop(header.size, self.size)
        small = self.size is not None and min(header.size) < self.size
        return Record(
            id=path,
            source=self._source(path),
            label=self.origin,
            container=header.container,
            size=header.size,
            digest=digest,
            notes=(*header.notes, "upscaled") if small else header.notes,
        )

    def _source(self, path: str) -> str:
        found = re.search(self.source, path) if self.source is not None else None
        return (found[1] if found else None) or str(PurePosixPath(path).with_suffix(""))

    def _with_splits(self, records: list[Record]) -> list[Record]:
        patterns = {"calibration": self.calibration, "test": self.test}
        given = {split: pattern for split, pattern in patterns.items() if pattern is not None}
        fitting = {s: {r.id for r in records if fnmatchcase(r.id, pattern)} for s, pattern in given.items()}
        for split, ids in fitting.items():
            if records and not ids:
                raise DatasetError(
                    f"{split}: '{given[split]}' fits no image in {self.root}; paths look like '{records[0].id}'"
                )
        if not given:
            return records
        both = sorted(set.intersection(*fitting.values())) if len(given) == 2 else []
        if both:
            raise DatasetError(
                f"'{both[0]}' fits both the calibration and the test pattern: make them exclude each other"
            )
        rest = ({"calibration", "test"} - set(given)).pop() if len(given) == 1 else None
        return [replace(r, split=next((s for s, ids in fitting.items() if r.id in ids), rest)) for r in records]


def _image_paths(root: Path) -> tuple[list[str], list[Rejected]]:
    found: list[str] = []
    rejected: list[Rejected] = []
    seen: set[tuple[int, int]] = set()
    waiting = [PurePosixPath()]
    while waiting:
        below = waiting.pop()
        try:
            status = (root / below).stat()
            # Each real folder is entered once, so a loop of links ends.
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            names = sorted(entry.name for entry in (root / below).iterdir())
        except OSError as error:
            rejected.append(Rejected(_printable(str(below)), f"folder cannot be listed: {error.strerror or error}"))
            continue
        folders = []
        for name in names:
            path = below / name
            if name.startswith(".") or name == "__MACOSX":
                continue
            if (root / path).is_dir():
                folders.append(path)
            elif path.suffix.lower() not in EXTENSIONS:
                continue
            elif _printable(str(path)) != str(path):
                rejected.append(Rejected(_printable(str(path)), "the file name is not valid UTF-8"))
            else:
                found.append(str(path))
        waiting += reversed(folders)
    return sorted(found), rejected


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableImageError(f"cannot be read: {error.strerror or error}") from None


def _with_shared_sources(records: Iterable[Record]) -> list[Record]:
    first: dict[str | None, Record] = {}
    shared = []
    for record in records:
        original = first.setdefault(record.digest, record)
        if original is not record:
            note = f"duplicate of {original.id}"
            record = replace(record, source=original.source, notes=(*record.notes, note))
        shared.append(record)
    return shared


def _without_leaks(records: list[Record]) -> tuple[list[Record], list[Rejected]]:
    """Keeps a source in one split: a threshold must not be tested on what it was calibrated on."""
    fixed: dict[str, str] = {r.source: r.split for r in records if r.split is not None}
    calibration = {r.source for r in records if r.split == "calibration"}
    kept: list[Record] = []
    leaking: list[Rejected] = []
    for record in records:
        if record.split == "test" and record.source in calibration:
            leaking.append(Rejected(record.id, f"its source '{record.source}' is also in the calibration split"))
        elif record.split is None and record.source in fixed:
            kept.append(replace(record, split="calibration" if record.source in calibration else "test"))
        else:
            kept.append(record)
    return kept, leaking
