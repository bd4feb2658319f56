"""Training recipes: a YAML file with every number that decides what a training makes."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ...core.errors import SpecError, nearest
from ...core.identity import identity
from ..methods.hidden.augment import parse as parse_augmentation
from ..methods.hidden.network import NetworkConfig
from ..yaml_lines import line_of, parse


class Recipe(BaseModel):
    """What every training has.

    Attributes:
        name: of what is made.
        summary: one line.
        seed: of the initial weights and of every draw.
        steps: optimiser steps.
        batch: images in a step.
        size: side of the training crops, pixels.
        short: photographs are brought to this short side first, pixels.
        validation: photographs that are kept out of the training, to measure with.
        learning_rate: the largest one.
        final_learning_rate: where the cosine ends.
        warmup: steps in which the learning rate rises linearly.
        weight_decay: of AdamW.
        betas: of AdamW.
        clip: largest norm of the gradient; None for no limit.
        precision: of convolutions and products; weights, losses and sums stay float32.
        checkpoint: steps between checkpoints.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str] = ""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    summary: str = ""
    seed: int = 0
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    size: int = Field(ge=16)
    short: int = Field(256, ge=16)
    validation: int = Field(16, ge=1)
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(1e-6, ge=0)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = Field(None, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _crops_fit(self) -> Self:
        if self.size > self.short:
            raise ValueError(f"size {self.size} is larger than the photographs, whose short side is {self.short}")
        return self

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return cosine(step, self.steps, self.warmup, self.learning_rate, self.final_learning_rate)

    @property
    def id(self) -> str:
        """The identity: equal recipes, and no others, may go on from one checkpoint."""
        given = self.model_dump(mode="json", exclude={"summary": True, "checkpoint": True, **self._later()})
        return identity("recipe", {"kind": self.kind, **given})

    @classmethod
    def _later(cls) -> dict[str, Any]:
        """What is done with the trained networks afterwards: it may change without training them again."""
        return {}


class AutoencoderRecipe(Recipe):
    """A small autoencoder.

    Attributes:
        model: parameters of diffusers' ``AutoencoderKL``.
        absolute: weight of the mean absolute error, images in 0 to 1.
        gradient: weight of the mean absolute error of the differences of neighbouring pixels.
        kl: weight of the mean Kullback-Leibler divergence of a latent value from a standard normal one.
    """

    kind: ClassVar[str] = "autoencoder"

    model: dict[str, Any]
    absolute: float = Field(1.0, ge=0)
    gradient: float = Field(0.5, ge=0)
    kl: float = Field(1e-4, ge=0)


class Phase(BaseModel):
    """Steps of a HiDDeN training that are alike.

    Attributes:
        steps: how many.
        embed: what makes the marks: the ``encoder``, or a ``search``: a few steps up the extractor's own gradient. The
            search needs no encoder and teaches the extractor all bits at once, where encoder and extractor that start
            together first have to find each other, bit by bit.
        train: ``both`` networks, or one of them.
        learning_rate: the largest one of the phase.
        final_learning_rate: where the phase's cosine ends.
        warmup: steps in which the learning rate rises linearly.
        attenuation: of the mark; None for the networks' own.
        strength: of the mark, first and last (interpolated geometrically), in that attenuation.
        augment: whether one of the recipe's augmentations is drawn for each batch.
        size: side of the crops, pixels; None for the recipe's.
        batch: images in a step; None for the recipe's.
        norms: ``batch``: batch norms use the statistics of the batch, which all went through one attack;
            ``fixed``: the running ones, as they are when the networks are used. A training should end with ``fixed``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    embed: Literal["encoder", "search"] = "encoder"
    train: Literal["both", "encoder", "extractor"] = "both"
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(1e-6, ge=0)
    warmup: int = Field(0, ge=0)
    attenuation: Literal["uniform", "jnd"] | None = None
    strength: tuple[float, float]
    augment: bool = True
    size: int | None = Field(None, ge=16)
    batch: int | None = Field(None, ge=1)
    norms: Literal["batch", "fixed"] = "batch"

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if min(self.strength) <= 0:
            raise ValueError(f"strength {self.strength}: both must be above 0")
        if self.embed == "search" and self.train != "extractor":
            raise ValueError("embed: search trains the extractor alone: say train: extractor")
        return self


class HiddenRecipe(Recipe):
    """HiDDeN's encoder and extractor, and the whitening of the extractor's logits.

    Attributes:
        network: the shape of both networks.
        phases: one after another; their steps add up to ``steps``, and each has its own learning rate.
        augmentations: one is drawn for each batch.
        jitter: marked images lose up to so many rows and columns on each side before anything else, pixels.
        search_steps: steps up the gradient in phases that search.
        search_size: length of one of them, in units of the encoder's largest perturbation.
        whitening_rotation: ``pca`` as in the paper, or ``zca``; see :func:`.hidden.fit_whitening`.
        whitening_scale: standard deviation of the whitened logits.
        whitening_floor: smallest eigenvalue that is whitened in full, as a share of the mean one.
        whitening_operations: what the images of the whitening go through, each on its own.
        whitening_size: side of the images that the whitening is fitted to, pixels.
    """

    kind: ClassVar[str] = "hidden"

    network: NetworkConfig = NetworkConfig()
    phases: tuple[Phase, ...] = Field(min_length=1)
    augmentations: tuple[str, ...] = ("identity",)
    jitter: int = Field(0, ge=0, le=16)
    search_steps: int = Field(3, ge=1, le=100)
    search_size: float = Field(0.45, gt=0, le=10)
    whitening_rotation: Literal["pca", "zca"] = "pca"
    whitening_scale: float = Field(1.0, gt=0)
    whitening_floor: float = Field(0.0, ge=0, le=1)
    whitening_operations: tuple[str, ...] = ("identity",)
    whitening_size: int = Field(256, ge=16)

    @model_validator(mode="before")
    @classmethod
    def _steps_of_phases(cls, values: Any) -> Any:
        """Left out, the steps are those of the phases; others stretch or shorten every phase alike."""
        if not isinstance(values, dict) or not isinstance(values.get("phases"), list | tuple):
            return values
        phases = [phase.model_dump() if isinstance(phase, Phase) else phase for phase in values["phases"]]
        if not all(isinstance(phase, dict) and isinstance(phase.get("steps"), int) for phase in phases):
            return values
        total, wanted = sum(phase["steps"] for phase in phases), values.get("steps")
        if isinstance(wanted, int) and wanted >= len(phases) and wanted != total:
            ends = [round(wanted * sum(p["steps"] for p in phases[: i + 1]) / total) for i in range(len(phases))]
            lengths = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
            phases = [{**phase, "steps": length} for phase, length in zip(phases, lengths, strict=True)]
        rates = {"learning_rate": phases[0].get("learning_rate", 1e-3)}
        return {**rates, **values, "phases": phases, "steps": sum(phase["steps"] for phase in phases)}

    @classmethod
    def _later(cls) -> dict[str, Any]:
        return {
            **{name: True for name in cls.model_fields if name.startswith("whitening_")},
            "network": {"embed", "refine"},
        }

    def phase(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and how many of its steps were done before."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        return self.phases[-1], self.phases[-1].steps

    def rate(self, step: int) -> float:
        """The learning rate of a step: each phase has its own warm-up and cosine."""
        phase, inside = self.phase(step)
        return cosine(inside, phase.steps, phase.warmup, phase.learning_rate, phase.final_learning_rate)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if max(phase.size or 0 for phase in self.phases) > self.short:
            raise ValueError(f"the crops of a phase are larger than the photographs, whose short side is {self.short}")
        if self.whitening_size > self.short:
            raise ValueError(
                f"whitening_size {self.whitening_size} is larger than the photographs' short side, {self.short}"
            )
        return self

    @field_validator("augmentations", "whitening_operations")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            for one in name.split("+"):
                try:
                    parse_augmentation(one)
                except SpecError as error:
                    raise ValueError(str(error)) from None
        if not names:
            raise ValueError("at least one augmentation; 'identity' for none")
        return names


class StableSignatureRecipe(Recipe):
    """Fine-tuning of a latent decoder for one key.

    Attributes:
        autoencoder: ``shipped``, a folder, or a hub id with ``revision``.
        revision: the pinned revision of a hub id.
        extractor: ``shipped``, or a file or folder.
        temperature: factor of the logits inside the message loss; 10 in the paper.
        image: the distance that keeps the marked image near the unmarked one.
        image_beta: Minkowski exponent of ``watson-1993``; None for its own, 4.
        image_exponent: power that the distance is raised to; 2 pulls far images harder than near ones.
        image_weight: its weight, one number or first and last (interpolated geometrically): a small first one lets the
            message in, a larger last one mends the image. .2 in the paper for its own distance.
        trained: which part is trained: ``all`` (decoder and post_quant_conv, as the paper) or ``last N`` (the last N
            blocks of the decoder that enlarge the image, and what follows).
    """

    kind: ClassVar[str] = "stable-signature"

    autoencoder: str = "shipped"
    revision: str | None = None
    extractor: str = "shipped"
    temperature: float = Field(10.0, gt=0)
    image: Literal["lpips", "lpips-vgg", "watson-dft", "watson-dct", "watson-1993", "mse"] = "watson-1993"
    image_beta: float | None = Field(None, ge=1, le=8)
    image_exponent: float = Field(1.0, ge=1, le=4)
    image_weight: float | tuple[float, float] = 0.2
    trained: str = Field("all", pattern=r"^(all|last [1-9])$")

    @field_validator("image_weight")
    @classmethod
    def _weights(cls, value: float | tuple[float, float]) -> float | tuple[float, float]:
        if min(value if isinstance(value, tuple) else (value, 1.0)) < 0 or (isinstance(value, tuple) and 0 in value):
            raise ValueError("one weight of 0 or more, or two above 0")
        return value

    def weight(self, step: int) -> float:
        """The weight of the image term at a step."""
        if not isinstance(self.image_weight, tuple):
            return self.image_weight
        first, last = self.image_weight
        return float(first * (last / first) ** (step / max(1, self.steps - 1)))


class LatentDiffusionRecipe(Recipe):
    """A small latent diffusion model over an autoencoder, with captions from :func:`waterproof.core.words.describe`.

    Attributes:
        autoencoder: ``shipped``, a folder, or a hub id with ``revision``.
        revision: the pinned revision of a hub id.
        model: parameters of diffusers' ``UNet2DConditionModel``; channels and sizes of the latents are filled in.
        width: length of a word's embedding.
        schedule: parameters of diffusers' ``DDIMScheduler``.
        drop: share of the captions that are left out, so that the model also learns images without a caption.
        drop_word: share of the words that are left out of the other captions.
        average: decay of the running mean of the weights, which is what is saved.
    """

    kind: ClassVar[str] = "latent-diffusion"

    autoencoder: str = "shipped"
    revision: str | None = None
    model: dict[str, Any]
    width: int = Field(64, ge=8)
    schedule: dict[str, Any]
    drop: float = Field(0.15, ge=0, le=1)
    drop_word: float = Field(0.15, ge=0, le=1)
    average: float = Field(0.999, ge=0, lt=1)


class PixelDiffusionRecipe(Recipe):
    """A small unconditional diffusion model of pixels.

    Attributes:
        model: parameters of diffusers' ``UNet2DModel``; channels and sizes are filled in.
        schedule: parameters of diffusers' ``DDIMScheduler``.
        patch: side of the blocks of pixels that the network takes as channels.
        early: share of the training steps whose noise is of the first ``early_steps``; the others' is of any.
        early_steps: see ``early``.
        average: decay of the running mean of the weights, which is what is saved.
    """

    kind: ClassVar[str] = "pixel-diffusion"

    model: dict[str, Any]
    schedule: dict[str, Any]
    patch: int = Field(2, ge=1, le=8)
    early: float = Field(0.5, ge=0, le=1)
    early_steps: int = Field(300, ge=1)
    average: float = Field(0.999, ge=0, lt=1)


def cosine(step: int, steps: int, warmup: int, high: float, low: float) -> float:
    """Linear warm-up to ``high``, then half a cosine down to ``low``."""
    if step < warmup:
        return high * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2


R = TypeVar("R", bound=Recipe)


def recipes(kind: str) -> list[str]:
    """Names of the recipes of a kind that come with the package."""
    return sorted(name for name in _names() if name == kind or name.startswith(f"{kind}-"))


def load_recipe(cls: type[R], source: str, **changes: Any) -> R:
    """Reads a recipe.

    Args:
        cls: the recipe's class.
        source: the name of a recipe of the package, or a YAML file.
        **changes: fields to replace; None leaves a field as it is.

    Raises:
        SpecError: no such recipe, or a field that is unknown or out of range, with its line.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = path.read_text(encoding="utf-8")
        except OSError:
            raise SpecError(f"no such recipe: {path}") from None
    elif source in recipes(cls.kind):
        text = (_folder() / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise SpecError(f"'{source}' is neither a recipe file nor a recipe.{nearest(source, recipes(cls.kind))}")
    value, lines = parse(text, source)
    if not isinstance(value, dict):
        raise SpecError(f"{source}: a recipe is a mapping, e.g. 'steps: 1000'")
    value |= {key: change for key, change in changes.items() if change is not None}
    try:
        return cls.model_validate(value)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = tuple(part for part in item["loc"] if isinstance(part, str | int))
        line = line_of(place, lines)
        where = ".".join(str(part) for part in place) or "recipe"
        hint = nearest(str(place[-1]), cls.model_fields) if item["type"] == "extra_forbidden" else ""
        message = item["msg"].removeprefix("Value error, ")
        raise SpecError(f"{source}{f', line {line}' if line else ''}: {where}: {message}.{hint}") from None


def _folder() -> Any:
    return resources.files(__package__.rpartition(".")[0]) / "recipes"


def _names() -> list[str]:
    return [item.name.removesuffix(".yaml") for item in _folder().iterdir() if item.name.endswith(".yaml")]
