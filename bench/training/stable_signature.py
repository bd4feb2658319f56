"""Fine-tuning of a latent decoder, one for each key (Fernandez et al., "The Stable Signature", section 3.2).

The encoder and the extractor are frozen. For a latent z of a photograph the loss is
``BCE(temperature * W(D_m(z)), key) + image_weight * distance(D_m(z), D(z))``; D is the original decoder.
"""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional

from ...core.errors import SpecError, StoreError
from ...core.seeds import Seed
from ...core.weights import digest_of, load_state, save_state
from ..keys import key_word
from ..methods.hidden.augment import augment
from ..methods.stable_signature.users import Users, overwrite, user_file, write_users
from ..store import write_text
from .autoencoder import norms_in_float32
from .card import write_card
from .hidden import JUDGED
from .trainer import Task, Trained, fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ...core.autoencoders import Autoencoder
    from ...core.perceptual import Perceptual
    from ...core.progress import Tick
    from ..methods.stable_signature.extractors import Extractor
    from .photographs import Photographs
    from .recipes import StableSignatureRecipe


class StableSignatureTask(Task):
    """The decoder of one key.

    Args:
        recipe: the recipe.
        photographs: training images.
        autoencoder: the original; it is copied, not changed.
        extractor: reads the key; frozen.
        distance: between images with and without the mark.
        key: bool ``[k]``.

    Raises:
        SpecError: the key's length is not the extractor's, or the crops do not divide by the autoencoder's factor.
    """

    def __init__(
        self,
        recipe: StableSignatureRecipe,
        photographs: Photographs,
        autoencoder: Autoencoder,
        extractor: Extractor,
        distance: Perceptual,
        key: torch.Tensor,
    ) -> None:
        if key.shape != (extractor.bits,):
            raise SpecError(f"the key has {key.numel()} bits, the extractor reads {extractor.bits}")
        if recipe.size % autoencoder.factor:
            raise SpecError(f"{recipe.name}: size {recipe.size} does not divide by the factor {autoencoder.factor}")
        self.recipe: StableSignatureRecipe = recipe
        self.photographs = photographs
        self.key = key.float()
        bits = key_word(key.tolist())
        self.data = f"{photographs.digest} {autoencoder.digest} {extractor.digest} {distance.digest} {bits}"
        self.original = autoencoder
        self.marked = copy.deepcopy(autoencoder)
        norms_in_float32(self.marked.model)
        self.extractor = extractor
        self.distance = distance
        self.modules = select(self.marked, recipe.trained)

    def loss(self, step: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The message is read from the marked image before it is clipped, as in the paper."""
        recipe = self.recipe
        device = next(iter(self.parameters())).device
        images = self.photographs.batch(recipe.batch, recipe.size, generator).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            with torch.no_grad():
                latents = self.original.encode(images)
                unmarked = self.original.decode(latents).float()
            marked = self.marked.decode(latents).float()
            logits = self.extractor(marked).float()
        wanted = self.key.to(device).expand_as(logits)
        message = functional.binary_cross_entropy_with_logits(recipe.temperature * logits, wanted)
        image = self.distance(marked, unmarked).pow(recipe.image_exponent).mean()
        loss = message + recipe.weight(step) * image
        with torch.no_grad():
            accuracy = ((logits > 0) == (wanted > 0)).float().mean()
            psnr = -10 * torch.log10((marked - unmarked).square().mean(dim=(1, 2, 3)) + 1e-12).mean()
        numbers = {"loss": loss, "message": message, "image": image, "bit accuracy": accuracy, "psnr": psnr}
        return loss, {name: float(value.detach()) for name, value in numbers.items()}


def select(autoencoder: Autoencoder, trained: str) -> dict[str, nn.Module]:
    """The modules that are trained, by their name in the autoencoder's model; only they want gradients.

    Args:
        autoencoder: whose decoder is trained.
        trained: ``all``, or ``last N``: the last N blocks that enlarge the image, and what follows them.

    Raises:
        SpecError: the decoder has fewer blocks, or none (only KL and VQ autoencoders have them).
    """
    autoencoder.model.requires_grad_(False)
    if trained == "all":
        chosen = dict(autoencoder.decoder_modules())
    else:
        count = int(trained.split()[1])
        decoder = autoencoder.model.decoder
        blocks = getattr(decoder, "up_blocks", None)
        if blocks is None or count > len(blocks):
            found = "none" if blocks is None else len(blocks)
            raise SpecError(f"trained: 'last {count}' needs {count} blocks in the decoder, which has {found}")
        first = len(blocks) - count
        chosen = {f"decoder.up_blocks.{i}": blocks[i] for i in range(first, len(blocks))}
        chosen |= {f"decoder.{name}": getattr(decoder, name) for name in ("conv_norm_out", "conv_out")}
        blocks[first].register_forward_pre_hook(_wants_gradient)
    for module in chosen.values():
        module.requires_grad_(True)
    return chosen


class Decoders:
    """A folder of decoders under training, one for each key.

    Args:
        recipe: the recipe.
        photographs: training images.
        autoencoder: the original.
        extractor: reads the keys.
        distance: between images with and without the mark.
        source: what to call the autoencoder.
        folder: where the decoders go.

    Raises:
        StoreError: the folder holds decoders of another origin.
    """

    def __init__(
        self,
        recipe: StableSignatureRecipe,
        photographs: Photographs,
        autoencoder: Autoencoder,
        extractor: Extractor,
        distance: Perceptual,
        source: str,
        folder: Path,
    ) -> None:
        self.recipe, self.photographs, self.folder = recipe, photographs, folder
        self.autoencoder, self.extractor, self.distance = autoencoder, extractor, distance
        self.source = source
        self.origin = {
            "recipe": recipe.id,
            "photographs": photographs.digest,
            "autoencoder": autoencoder.digest,
            "extractor": extractor.digest,
            "distance": f"{distance.name} {distance.digest}".strip(),
        }
        self.log: dict[str, Any] = self._read_log()
        self.done: Trained | None = None

    def _read_log(self) -> dict[str, Any]:
        path = self.folder / "training.json"
        if not path.is_file():
            return {"origin": self.origin, "users": []}
        log: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name, value in self.origin.items() if log["origin"].get(name) != value]
        if other:
            raise StoreError(
                f"{self.folder} holds decoders that were made with another {' and '.join(other)}: "
                "train into another folder, or remove this one"
            )
        return log

    @property
    def keys(self) -> list[str]:
        """The keys that have a decoder."""
        return [user["key"] for user in self.log["users"]]

    def train(self, key: str, minutes: float | None, device: str, tick: Tick | None = None) -> None:
        """Fine-tunes the decoder of one key; stopped, it goes on the next time.

        Raises:
            SpecError: the key is no word of 0 and 1 of the extractor's length.
        """
        if set(key) - set("01") or len(key) != self.extractor.bits:
            raise SpecError(f"'{key}' is no key: {self.extractor.bits} characters 0 and 1 are needed")
        bits = torch.tensor([bit == "1" for bit in key])
        parts = (self.photographs, self.autoencoder, self.extractor.to(device), self.distance.to(device))
        self.autoencoder.to(device)
        task = StableSignatureTask(self.recipe, *parts, bits)
        corner = self.folder / "unfinished" / key
        self.done = fit(task, corner, minutes, device, tick)
        if not self.done.finished:
            return
        number = len(self.keys)
        file = self.folder / user_file(number)
        save_state(changed_state(task), file, {"key": key})
        overwrite(task.marked, load_state(file), file)
        user = {"key": key, "digest": digest_of(file), "seconds": round(self.done.seconds, 1)}
        self.log["users"].append({**user, "quality": judge(task), "curve": self.done.curve})
        write_text(self.folder / "training.json", json.dumps(self.log) + "\n")
        shutil.rmtree(corner)

    def finish(self, device: str) -> tuple[int, dict[str, float]]:
        """Writes ``users.json`` and the model card for the keys that have a decoder."""
        users = self.log["users"]
        if not users:
            return 0, {}
        about = Users(
            autoencoder=self.source,
            autoencoder_digest=self.autoencoder.digest,
            extractor=self.recipe.extractor,
            extractor_digest=self.extractor.digest,
            trained=self.recipe.trained,
            keys=tuple(user["key"] for user in users),
            digests=tuple(user["digest"] for user in users),
        )
        write_users(self.folder, about)
        frame = pd.DataFrame([user["quality"] for user in users])
        mean = {str(name): float(value) for name, value in frame.mean().items()}
        lowest: dict[str, float] = {f"{name}, lowest of the keys": float(value) for name, value in frame.min().items()}
        seconds = [user["seconds"] for user in users]
        trained = Trained(self.recipe.steps, self.recipe.steps, float(np.mean(seconds)), _mean_curve(users))
        facts = {
            "keys": len(users),
            "image term": self.origin["distance"],
            "seconds for a key": f"{np.mean(seconds):.0f}",
        }
        write_card(self.folder, self.recipe, self.photographs, trained, {**mean, **lowest}, device, facts)
        return len(users), mean


def changed_state(task: StableSignatureTask, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """The trained tensors by their name in the autoencoder's model, in the type they are stored in."""
    return {
        f"{name}.{key}": value.detach().cpu().to(dtype).contiguous()
        for name, module in task.modules.items()
        for key, value in module.state_dict().items()
    }


def _wants_gradient(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Torch's group norm crashes on channels-last inputs that want no gradient while its weights do."""
    if torch.is_grad_enabled():
        inputs[0].requires_grad_()


@torch.no_grad()
def judge(task: StableSignatureTask) -> dict[str, float]:
    """PSNR against the unmarked decoder and bit accuracy, on the photographs that were kept out, 8-bit images."""
    device = next(iter(task.parameters())).device
    size = task.recipe.short // task.original.factor * task.original.factor
    images = task.photographs.held_out(size).to(device)
    generator = Seed.root(task.recipe.seed).child("judge").torch()
    pairs = []
    for image in images[:, None]:
        latent = task.original.encode(image)
        pairs.append([d.decode(latent).clamp(0, 1).mul(255).round().div(255) for d in (task.marked, task.original)])
    marked, unmarked = (torch.cat(side) for side in zip(*pairs, strict=True))
    found = {"psnr": float((-10 * torch.log10((marked - unmarked).square().mean(dim=(1, 2, 3)) + 1e-12)).mean())}
    for operation in JUDGED:
        logits = task.extractor(augment(marked, operation, generator))
        found[f"bit accuracy, {operation}"] = float(((logits > 0) == (task.key.to(device) > 0)).float().mean())
    return found


def _mean_curve(users: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    curves = pd.concat([pd.DataFrame(user["curve"]) for user in users])
    return curves.groupby("step", as_index=False).mean().to_dict("records")  # type: ignore[return-value]
