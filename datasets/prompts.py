"""Images that a latent diffusion model makes from prompts and seeds, without any mark."""

from __future__ import annotations

import csv
import hashlib
import io
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from ..core.components import knob, labelled, param
from ..core.errors import DatasetError, UserError
from ..core.images import Images, Record
from ..core.latent_diffusion import Sampling, Solver, load_latent_diffusion
from .base import Dataset, Index, Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..core.latent_diffusion import LatentDiffusion
    from ..core.progress import Tick

_LARGEST_SEED = 2**63 - 1

_TONES = ("dark", "bright", "soft", "contrasty")
_COLOURS = ("grey", "pink", "red", "orange", "yellow", "green", "cyan", "blue", "purple")
_TEXTURES = ("", "smooth", "detailed")
_LIGHTS = ("", "light above", "light below", "light at the centre", "light at the edges")


class Prompts(Dataset):
    """Captions with seeds, and the unmarked images that a model makes of them; images of one prompt share a source.

    Marks that are born with the image use the captions and seeds and make their own images; every other method sees
    the images. Without a file there are 540 captions in words that the shipped model knows, in a fixed, mixed order:
    "a dark blue photograph, smooth, light above".

    A file is UTF-8 text with a prompt on each line (empty lines and lines that begin with ``#`` are passed over), or
    CSV with the columns ``prompt`` and, if wanted, ``seed`` and ``id``. Where no seed is given, images are numbered
    through, ``per_prompt`` for each prompt, and image i gets the seed ``first_seed + i``. So no two begin as the same
    noise; if they did, images of different prompts would be no independent observations. The bytes of the file are
    part of the identity, its place is not.

    Example:
        >>> Prompts(count=2).index().records[0].caption  # doctest: +SKIP
        'a soft green photograph, detailed'
    """

    name: ClassVar[str] = "prompts"
    summary: ClassVar[str] = "images that a latent diffusion model makes"

    file: Path | None = knob(None, doc="text or CSV file of prompts; without it, captions for the shipped model")
    model: str = knob("shipped", doc="latent diffusion model: shipped, a folder of diffusers, or owner/name@revision")
    skip: int = param(0, doc="pass over the first so many prompts", ge=0)
    count: int | None = param(None, doc="use only so many prompts", ge=1)
    per_prompt: int = param(1, doc="images of each prompt without a seed of its own", ge=1, le=100_000)
    first_seed: int = param(0, doc="seed of the first image of the first prompt", ge=0, le=2**62)
    size: int | None = param(None, doc="side of the square images, pixels; None for the model's own", ge=8, le=8192)
    steps: int = param(Sampling().steps, doc="evaluations of the network", ge=1, le=1000)
    guidance: float = param(Sampling().guidance, doc="classifier-free guidance; 1 for none", ge=0, le=100)
    solver: Solver = param(Sampling().solver, doc="ddim or dpm-solver (DPM-Solver++ of second order)")

    @model_validator(mode="after")
    def _known_ending(self) -> Self:
        if self.file is not None and self.file.suffix.lower() not in (".txt", ".csv"):
            raise ValueError(f"file {self.file}: prompts are read from .txt (one on each line) or .csv (column prompt)")
        return self

    @property
    def label(self) -> str:
        """The name, whose model and file where they are given, and what differs from the defaults."""
        place = {} if self.model == "shipped" else {"model": Path(self.model).name}
        place |= {} if self.file is None else {"file": self.file.name}
        return labelled(self.name, {**place, **self.changed_params()})

    @property
    def _diffusion(self) -> LatentDiffusion:
        return load_latent_diffusion(self.model)

    def unavailable(self) -> str | None:
        """Needs the model."""
        try:
            _ = self._diffusion
        except UserError as error:
            return str(error)
        return None

    def digests(self) -> dict[str, str]:
        """SHA-256 of the model and of the file."""
        found = {} if self.unavailable() else {"model": self._diffusion.digest}
        if self.file is not None and self.file.is_file():
            found["file"] = hashlib.sha256(self.file.read_bytes()).hexdigest()
        return found

    def index(self, tick: Tick | None = None) -> Index:
        """Lists prompts and seeds; makes no image.

        Raises:
            DatasetError: no such file, a bad line in it (with its number), or a size that the model cannot make.
            UnavailableError: the model is not here.
        """
        model, side = self._diffusion, self._side
        try:
            model.check_size(side, side)
        except UserError as error:
            raise DatasetError(f"prompts: size {side}: {error}") from None
        records: list[Record] = []
        seen: dict[str, str] = {}
        for number, (where, name, prompt, seed) in enumerate(self._entries(), start=self.skip):
            try:
                model.conditioner.embed([prompt])
            except UserError as error:
                raise DatasetError(f"{where}: {error}") from None
            first = self.first_seed + number * self.per_prompt
            seeds = [seed] if seed is not None else range(first, first + self.per_prompt)
            for i, one in enumerate(seeds):
                record = self._record(name if len(seeds) == 1 else f"{name}-{i}", prompt, one, side)
                if record.id in seen:
                    raise DatasetError(f"{where}: {record.id} stands twice, first in {seen[record.id]}")
                seen[record.id] = where
                records.append(record)
            if tick is not None:
                tick(1, prompt)
        return Index(tuple(records))

    def load(self, records: Sequence[Record]) -> tuple[list[Images], list[Rejected]]:
        """Makes the images, each for itself: the same bytes whatever is made beside it."""
        import torch

        model, side = self._diffusion, self._side
        made = []
        with torch.no_grad():
            for record in records:
                noise = model.noise(record.seed or 0, (side, side))
                made.append(model.autoencoder.decode(model.sample(noise, record.caption or "", self._sampling)))
        return [Images.from_float(torch.cat(made), records)] if made else [], []

    @property
    def _side(self) -> int:
        return self.size or self._diffusion.size

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self.steps, self.guidance, self.solver)

    def _record(self, name: str, prompt: str, seed: int, side: int) -> Record:
        what = f"{prompt}\n{seed}\n{side}\n{self._sampling}\n{self._diffusion.digest}"
        return Record(
            id=name,
            source=prompt,
            label=Path(self.model).name if self.model != "shipped" else "latent-diffusion",
            caption=prompt,
            size=(side, side),
            digest=hashlib.sha256(what.encode()).hexdigest(),
            seed=seed,
        )

    def _entries(self) -> list[tuple[str, str, str, int | None]]:
        """Place, id, prompt and seed of each entry."""
        if self.file is None:
            return self._chosen([(f"prompt {i + 1}", f"prompt-{i:03d}", p, None) for i, p in enumerate(built_in())])
        try:
            text = self.file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise DatasetError(f"no such file of prompts: {self.file}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.file} cannot be read as UTF-8 text: {error}") from None
        entries = _csv(text, self.file) if self.file.suffix.lower() == ".csv" else _lines(text, self.file)
        if not entries:
            raise DatasetError(f"{self.file} holds no prompt")
        return self._chosen(entries)

    def _chosen(self, entries: list[tuple[str, str, str, int | None]]) -> list[tuple[str, str, str, int | None]]:
        chosen = entries[self.skip :][: self.count]
        if not chosen:
            raise DatasetError(f"prompts: skip {self.skip} passes over all {len(entries)} prompts")
        return chosen


def built_in() -> list[str]:
    """The captions without a file: every combination of tone, colour, texture and light, in an order set by a hash."""
    made = []
    for tone, colour, texture, light in product(_TONES, _COLOURS, _TEXTURES, _LIGHTS):
        made.append(", ".join(part for part in (f"a {tone} {colour} photograph", texture, light) if part))
    return sorted(made, key=lambda prompt: hashlib.sha256(f"waterproof-prompts-1 {prompt}".encode()).digest())


def _lines(text: str, file: Path) -> list[tuple[str, str, str, int | None]]:
    entries: list[tuple[str, str, str, int | None]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            entries.append((f"{file}, line {number}", f"prompt-{len(entries):03d}", prompt, None))
    return entries


def _csv(text: str, file: Path) -> list[tuple[str, str, str, int | None]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    columns = set(reader.fieldnames or ())
    if "prompt" not in columns or columns - {"prompt", "seed", "id"} or len(columns) < len(reader.fieldnames or ()):
        given = ", ".join(reader.fieldnames or ()) or "none"
        raise DatasetError(f"{file}, line 1: the columns are prompt and, if wanted, seed and id, not {given}")
    entries: list[tuple[str, str, str, int | None]] = []
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise DatasetError(f"{where}: expected {len(columns)} fields; a prompt with a comma stands in quotes")
            prompt, seed = row["prompt"].strip(), row.get("seed", "").strip()
            if not prompt:
                raise DatasetError(f"{where}: the prompt is empty")
            if seed and not (seed.isdecimal() and len(seed) < 20 and int(seed) <= _LARGEST_SEED):
                raise DatasetError(f"{where}: a seed is a whole number of 0 to {_LARGEST_SEED}, not '{seed}'")
            name = row.get("id", "").strip() or f"prompt-{len(entries):03d}"
            entries.append((where, name, prompt, int(seed) if seed else None))
    except csv.Error as error:
        raise DatasetError(f"{file}, line {reader.reader.line_num}: no valid CSV: {error}") from None
    return entries
