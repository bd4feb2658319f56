"""Editors: what a protection is meant to spoil; and how alike the edits of two images are."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from pydantic import model_validator

from ..core.components import Component, format_value, param
from ..core.holding import HoldsAutoencoder, HoldsDiffusion, one_by_one, through_latent
from ..core.identity import content_digest
from ..core.images import Images
from ..core.latent_diffusion import Sampling, edit_steps
from ..core.registry import create
from ..core.seeds import Seed
from .metrics import Metric

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from ..core.images import Record

_REMEMBERED = 256
"""Edited images that are kept: the edits of the clean image are compared with those of many others."""


class Editor(Component):
    """Changes images as a person asks for it: image-to-image, inpainting, or what stands in for them.

    An editor treats every image by itself and draws only from ``seed.child(record.id)``: the clean and the protected
    version of an image are edited with the same draws.

    Class attributes:
        seeded: whether it draws at all; without, there is one seed.
        prompted: whether it reads the prompt.
    """

    kind: ClassVar[str] = "editor"
    seeded: ClassVar[bool] = True
    prompted: ClassVar[bool] = True

    @abstractmethod
    def edit(self, images: Images, prompt: str, seed: Seed) -> Images:
        """The edited images, in the size that they had.

        Args:
            images: a batch of one size.
            prompt: what to make of them.
            seed: draw from ``seed.child(record.id)`` only.
        """


class ImageToImage(HoldsDiffusion, Editor):
    """SDEdit (Meng et al., ICLR 2022) with a latent diffusion model: noise for a part of the way, back with a prompt.

    As diffusers' image-to-image pipeline with DDIM. The literature takes strength .5, guidance 7.5 and 50 steps with
    Stable Diffusion; the defaults are for the model that ships, whose images of higher guidance are oversaturated.

    Example:
        >>> ImageToImage(strength=0.3).label
        'image-to-image(strength=0.3)'
    """

    name: ClassVar[str] = "image-to-image"

    strength: float = param(0.5, doc="share of the noise, 0 to 1", gt=0, le=1)
    steps: int = param(20, doc="steps of the sampler, of which strength is used", ge=1, le=999)
    guidance: float = param(3.0, doc="classifier-free guidance; 1 for none", ge=0, le=100)

    @model_validator(mode="after")
    def _takes_a_step(self) -> ImageToImage:
        if edit_steps(self.steps, self.strength) < 1:
            raise ValueError(f"strength {self.strength:g} of {self.steps} steps is less than one step")
        return self

    def edit(self, images: Images, prompt: str, seed: Seed) -> Images:
        """The edited images."""
        model, sampling = self.diffusion, Sampling(self.steps, self.guidance)

        def change(image: torch.Tensor, record: Record) -> torch.Tensor:
            draw = seed.child(record.id).torch()

            def edited(latent: torch.Tensor) -> torch.Tensor:
                noise = torch.randn(latent.shape, generator=draw)
                return model.edit(latent, prompt, noise, self.strength, sampling)

            return through_latent(model.autoencoder, image, model.multiple, edited)

        return one_by_one(images, change)


class Reconstruction(HoldsAutoencoder, Editor):
    """What an autoencoder makes of an image: a proxy of an edit where there is no diffusion model, without a prompt.

    Example:
        >>> Reconstruction().label
        'reconstruction'
    """

    name: ClassVar[str] = "reconstruction"
    seeded: ClassVar[bool] = False
    prompted: ClassVar[bool] = False

    def edit(self, images: Images, prompt: str, seed: Seed) -> Images:
        """The reconstructions."""
        network = self.network

        def change(image: torch.Tensor, _record: Record) -> torch.Tensor:
            return through_latent(network, image, network.factor, lambda latent: latent)

        return one_by_one(images, change)


class EditSimilarity(Metric):
    """How alike the edit of an image and the edit of its reference are: same prompt, same draws.

    With ``other_seed`` the reference is edited with other draws. Of a clean image and itself that is the floor: two
    edits of one image differ by so much without any protection.
    """

    name: ClassVar[str] = "edit"
    better: ClassVar[Literal["higher", "lower"]] = "higher"

    editor: dict[str, Any] = param(doc="the editor: {name: {parameter: value}}, as a benchmark file has it")
    prompt: str = param("", doc="what the editor is asked for")
    seed: int = param(0, doc="number of the draw")
    other_seed: int | None = param(None, doc="number of the draw for the reference; None: the same")
    measure: Literal["ssim", "psnr"] = param("ssim", doc="how alike two edits are: ssim or psnr")

    @property
    def label(self) -> str:
        """Measure, editor, prompt and seed."""
        seeds = format_value(self.seed) + ("" if self.other_seed is None else f" against {self.other_seed}")
        return f"{self.measure} of {self.tool.label}, '{self.prompt}', seed {seeds}"

    @property
    def unit(self) -> str:  # type: ignore[override]
        """That of the measure."""
        return "dB" if self.measure == "psnr" else ""

    @property
    def floor(self) -> bool:
        """Whether it is for clean images alone."""
        return self.other_seed is not None

    @property
    def tool(self) -> Editor:
        """The editor."""
        return cast("Editor", create("editor", self.editor["name"], self.editor["params"]))

    def unavailable(self) -> str | None:
        """Needs what the editor needs."""
        return self.tool.unavailable()

    def digests(self) -> dict[str, str]:
        """Those of the editor, and its version."""
        return {**self.tool.digests(), "editor": content_digest(self.tool.version)}

    def prepare(self, reference: Images) -> Any:
        """The edits of the reference, prepared for the measure."""
        seed = self.seed if self.other_seed is None else self.other_seed
        return self._measured.prepare(_edited(self.tool, reference, self.prompt, seed))

    def compare(self, images: Images, prepared: Any) -> np.ndarray:
        """The measure between the edits."""
        return self._measured.compare(_edited(self.tool, images, self.prompt, self.seed), prepared)

    @property
    def _measured(self) -> Metric:
        return cast("Metric", create("metric", self.measure))


_edits: OrderedDict[str, torch.Tensor] = OrderedDict()


def _edited(editor: Editor, images: Images, prompt: str, number: int) -> Images:
    """The edits of images, each remembered by its pixels: a pure function, however often it is asked."""
    seed = Seed.root(number).child("edit")
    pixels = []
    for i, record in enumerate(images.records):
        one = images.take([i])
        content = hashlib.sha256(one.pixels.contiguous().numpy().tobytes()).hexdigest()
        key = content_digest([editor.spec().id, record.id, prompt, number, list(one.size), content])
        if key not in _edits:
            _edits[key] = editor.edit(one, prompt, seed).pixels
            while len(_edits) > _REMEMBERED:
                _edits.popitem(last=False)
        _edits.move_to_end(key)
        pixels.append(_edits[key])
    return Images(torch.cat(pixels), images.records) if pixels else images


def similarities(
    editor: dict[str, Any], prompts: list[str], seeds: int, measures: list[str]
) -> Iterator[EditSimilarity]:
    """Every comparison that an editor is judged by: each prompt and seed, and the floors between seeds.

    Args:
        editor: name and parameters.
        prompts: what is asked for.
        seeds: how many draws.
        measures: ``ssim``, ``psnr``.
    """
    tool = cast("Editor", create("editor", editor["name"], editor["params"]))
    count = seeds if tool.seeded else 1
    for measure in measures:
        for prompt in prompts if tool.prompted else [""]:
            shared: dict[str, Any] = {"editor": editor, "prompt": prompt, "measure": measure}
            for seed in range(count):
                yield EditSimilarity(**shared, seed=seed)
            if count > 1:
                for seed in range(count):
                    yield EditSimilarity(**shared, seed=seed, other_seed=(seed + 1) % count)
