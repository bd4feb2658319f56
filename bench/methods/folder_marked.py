"""folder-marked: judge marked images that something else made, and detectors that run somewhere else.

The benchmark's dataset is the folder of unmarked images; ``marked`` holds a marked version of each under the same
relative path (any image extension). The reader is one of

- ``scores``: a CSV with columns ``image``, ``arm`` (marked or unmarked) and either ``score`` or ``bits`` (0 and 1).
  It knows the images as they are, so only the attack ``identity`` can be scored with it;
- ``command``: a program that is called with a folder as its last argument and prints one line for each PNG in it:
  file name, white space or comma, then a number (a score) or a word of 0 and 1 (the bits).
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import re
import shlex
import signal
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import field_validator

from ...core.components import knob, param
from ...core.errors import ContractError, DatasetError
from ...core.identity import file_digest
from .base import Evidence, Watermark

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...core.images import Images
    from ...core.seeds import Seed

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif")


class FolderMarked(Watermark):
    """Marked images from a folder, scored by a CSV or by a program of yours.

    The payload must be the one that the images carry: give it as the benchmark's ``key``.

    Example:
        >>> from waterproof.core.registry import create
        >>> create("method", "folder-marked", {"marked": "marked", "command": "python read.py", "payload": 32}).bits
        32
    """

    name: ClassVar[str] = "folder-marked"
    family: ClassVar[str] = "bring your own"
    key_is_given: ClassVar[bool] = True

    marked: Path = knob(doc="folder with the marked images, same relative paths as the unmarked ones")
    title: str = param("", max_length=60, doc="what to call the method in reports")
    payload: int = param(0, ge=0, le=4096, doc="payload length k in bits; 0 if the reader gives a score")
    scores: Path | None = knob(None, doc="CSV with image, arm, and score or bits")
    command: str | None = param(None, doc="program that reads a folder of PNG files and prints scores or bits")
    program_version: str = param("1", doc="raise it when the program changes: results are stored under it")
    seconds: float = knob(600.0, gt=0, doc="time limit of one call of the program, in seconds")
    unmarked: Path | None = knob(None, doc="folder with the unmarked images; needed with scores")

    @property
    def bits(self) -> int:
        """Payload length k."""
        return self.payload

    @property
    def label(self) -> str:
        """The title, if there is one."""
        return self.title or f"folder-marked({self.marked.name})"

    @field_validator("command")
    @classmethod
    def _splits_into_words(cls, command: str | None) -> str | None:
        if command is not None and not shlex.split(command):
            raise ValueError("name a program")
        return command

    def unavailable(self) -> str | None:
        """Needs its folders, and exactly one reader."""
        if not self.marked.is_dir():
            return f"there is no folder {self.marked}"
        if (self.scores is None) == (self.command is None):
            return "give exactly one of 'scores' (a CSV) and 'command' (a program)"
        if self.scores is not None and not self.scores.is_file():
            return f"there is no file {self.scores}"
        if self.scores is not None and (self.unmarked is None or not self.unmarked.is_dir()):
            return "with 'scores', give 'unmarked', the folder of the unmarked images"
        return None

    def digests(self) -> dict[str, str]:
        """Digest of all marked files, and of the CSV."""
        if self.unavailable():
            return {}
        total = hashlib.sha256()
        for path in _files(self.marked):
            total.update(f"{path.relative_to(self.marked).as_posix()} {file_digest(path)}\n".encode())
        found = {"marked": total.hexdigest()}
        return found if self.scores is None else {**found, "scores": file_digest(self.scores)}

    def refuses(self, attack: str) -> str | None:
        """A CSV says nothing of attacked images."""
        if self.scores is not None and attack != "identity":
            return f"{self.scores.name} holds no scores of attacked images: give 'command' instead"
        return None

    def embed(self, images: Images, keys: torch.Tensor, seed: Seed) -> Images:
        """The marked version of each image, from the folder."""
        found = []
        for record in images.records:
            array = _load(_twin(self.marked, record.id))
            if array.shape[:2] != images.size:
                height, width = images.size
                raise DatasetError(
                    f"the marked version of {record.id} is {array.shape[1]}x{array.shape[0]}, the unmarked image "
                    f"{width}x{height}: use the dataset folder with policy native, and mark without resizing"
                )
            found.append(array)
        return images.with_pixels(np.stack(found))

    def decode(self, images: Images) -> Evidence:
        """Scores from the CSV or from the program."""
        words = self._from_csv(images) if self.scores is not None else self._from_program(images)
        if not self.payload:
            return Evidence(score=torch.tensor([_number(word) for word in words], dtype=torch.float64))
        for word in words:
            if not re.fullmatch(f"[01]{{{self.payload}}}", word):
                raise ContractError(f"{self.label}: expected {self.payload} bits of 0 and 1, got '{word[:80]}'")
        bits = np.array([[float(bit == "1") for bit in word] for word in words], dtype=np.float32)
        return Evidence(logits=torch.from_numpy(bits - np.float32(0.5)))

    def _from_csv(self, images: Images) -> list[str]:
        if self.scores is None or self.unmarked is None:
            raise ContractError("no scores")
        column = "bits" if self.payload else "score"
        table = _by_pixels(self.scores, file_digest(self.scores), self.marked, self.unmarked, column)
        words = []
        for record, array in images:
            word = table.get(_pixel_digest(array))
            if word is None:
                raise DatasetError(f"{self.scores.name} has no row for {record.id} with these pixels")
            words.append(word)
        return words

    def _from_program(self, images: Images) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="waterproof-") as folder:
            for i, array in enumerate(images.numpy()):
                Image.fromarray(array).save(Path(folder) / f"{i:05d}.png", compress_level=1)
            return self._call(folder, len(images))

    def _call(self, folder: str, count: int) -> list[str]:
        program = shlex.split(self.command or "")
        try:
            code, out, errors = _finish([*program, folder], self.seconds)
        except FileNotFoundError:
            raise ContractError(f"{self.label}: there is no program '{program[0]}'") from None
        except OSError as error:
            raise ContractError(f"{self.label}: the program '{program[0]}' cannot be started: {error}") from None
        except subprocess.TimeoutExpired:
            raise ContractError(f"{self.label}: the program took more than {self.seconds:g} s") from None
        if code:
            last = errors.strip().splitlines()[-1:] or ["no message"]
            raise ContractError(f"{self.label}: the program ended with code {code}: {last[0]}")
        lines = [re.split(r"[,\s]+", line.strip(), maxsplit=1) for line in out.splitlines() if line.strip()]
        found = {parts[0]: parts[1] for parts in lines if len(parts) == 2}
        missing = [f"{i:05d}.png" for i in range(count) if f"{i:05d}.png" not in found]
        if missing:
            raise ContractError(
                f"{self.label}: the program printed nothing for {missing[0]} and {len(missing) - 1} more"
            )
        return [found[f"{i:05d}.png"] for i in range(count)]


def _finish(command: list[str], seconds: float) -> tuple[int, str, str]:
    """Runs a program to its end; after ``seconds``, or when this process is stopped, ends it and all it started."""
    process = subprocess.Popen(  # noqa: S603  the user's own program, named in the user's own file
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except BaseException:
            # A wrapper (a shell, conda run) has children of its own that would keep the pipes open.
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            raise
        return process.returncode, out, errors


def _number(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ContractError(f"expected a number as score, got '{word[:80]}'")
    return value


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _EXTENSIONS and p.is_file())


def _twin(folder: Path, name: str) -> Path:
    """The file in ``folder`` under the relative path ``name``, with any image extension."""
    exact = folder / name
    if exact.is_file():
        return exact
    stems = [exact.with_suffix(extension) for extension in _EXTENSIONS]
    found = [path for path in stems if path.is_file()]
    if not found:
        raise DatasetError(f"{folder} holds no marked version of {name}")
    return found[0]


def _load(path: Path) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as an image: {error}") from None


def _pixel_digest(array: np.ndarray) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()


@lru_cache(maxsize=4)
def _by_pixels(scores: Path, digest: str, marked: Path, unmarked: Path, column: str) -> dict[str, str]:
    """The CSV's words by the pixels that they belong to: an attacked image finds none. ``digest`` is the CSV's."""
    table: dict[str, str] = {}
    for line, row in _rows(scores, column):
        folder = marked if row["arm"] == "marked" else unmarked
        pixels, word = _pixel_digest(_load(_twin(folder, row["image"]))), row[column].strip()
        if table.setdefault(pixels, word) != word:
            raise DatasetError(f"{scores}, line {line}: the same image has '{table[pixels][:80]}' and '{word[:80]}'")
    return table


def _rows(scores: Path, column: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The checked rows of the CSV with their line numbers; a byte-order mark, as spreadsheets write it, is skipped."""
    try:
        with scores.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            absent = {"image", "arm", column} - set(reader.fieldnames or [])
            if absent:
                raise DatasetError(f"{scores} lacks the column {', '.join(sorted(absent))}")
            for row in reader:
                where = f"{scores}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise DatasetError(f"{where}: expected {len(reader.fieldnames or [])} columns")
                if row["arm"] not in ("marked", "unmarked"):
                    raise DatasetError(f"{where}: arm is marked or unmarked, not '{row['arm']}'")
                yield reader.line_num, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{scores} cannot be read as a CSV in UTF-8: {error}") from None
