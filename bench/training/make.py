"""What ``waterproof train`` does: load the photographs, train, measure, write weights with their model card."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import torch

from ...core.progress import progress_bar
from ...core.seeds import Seed
from ..keys import key_word
from ..store import locked, write_text
from .card import write_card
from .photographs import Photographs
from .trainer import Task, Trained, choose_device, fit

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from .recipes import (
        AutoencoderRecipe,
        HiddenRecipe,
        LatentDiffusionRecipe,
        PixelDiffusionRecipe,
        Recipe,
        StableSignatureRecipe,
    )


def train_autoencoder(
    recipe: AutoencoderRecipe, data: Path, out: Path, minutes: float | None = None, device: str = "auto"
) -> tuple[Trained, dict[str, float]]:
    """Trains an autoencoder and saves it as diffusers does; see :func:`.trainer.fit`."""
    from .autoencoder import AutoencoderTask

    device = choose_device(device)
    photographs = load_photographs(recipe, data)
    task = AutoencoderTask(recipe, photographs)
    trained = _fit(task, out, minutes, device)
    quality = task.judge()
    # What a diffusion model sees then has a standard deviation of about 1.
    task.model.register_to_config(scaling_factor=round(1 / quality["latent sd"], 4))
    task.model.to(memory_format=torch.contiguous_format).half().save_pretrained(out, safe_serialization=True)
    # safetensors writes files that their owner alone may read.
    for path in out.glob("*.safetensors"):
        path.chmod(0o644)
    facts = {"parameters": sum(p.numel() for p in task.model.parameters()), "stored as": "float16"}
    write_card(out, recipe, photographs, trained, quality, device, facts)
    return trained, quality


def train_hidden(
    recipe: HiddenRecipe, data: Path, out: Path, minutes: float | None = None, device: str = "auto"
) -> tuple[Trained, dict[str, float]]:
    """Trains an encoder and an extractor, whitens the extractor, saves all three; see :func:`.trainer.fit`."""
    from ...core.weights import save_state
    from ..methods.hidden.network import save_networks
    from .hidden import HiddenTask, fit_whitening
    from .photographs import centre

    device = choose_device(device)
    photographs = load_photographs(recipe, data)
    task = HiddenTask(recipe, photographs)
    trained = _fit(task, out, minutes, device)
    # The whitening takes every photograph of the training: what is kept out measures, and is no part of it.
    images = [centre(image, recipe.whitening_size) for image in photographs.train]
    whitening = (recipe.whitening_scale, recipe.whitening_floor, recipe.whitening_operations, recipe.seed)
    layer, found = fit_whitening(task.extractor, images, *whitening, recipe.whitening_rotation)
    if recipe.network.embed == "descent":
        task.whiten(layer)
    quality = task.judge()
    save_networks(out, recipe.network, task.encoder.state_dict(), task.extractor.state_dict())
    save_state(layer, out / "whitening.safetensors", {})
    facts: dict[str, float] = {"parameters of the extractor": sum(p.numel() for p in task.extractor.parameters())}
    facts |= {f"whitening, {name}": value for name, value in found.items()}
    write_card(out, recipe, photographs, trained, quality, device, facts)
    return trained, quality


def train_latent_diffusion(
    recipe: LatentDiffusionRecipe, data: Path, out: Path, minutes: float | None = None, device: str = "auto"
) -> tuple[Trained, dict[str, float]]:
    """Trains a latent diffusion model and saves its parts as diffusers does; see :func:`.trainer.fit`.

    The autoencoder is not copied: ``model_index.json`` names it.
    """
    from ...core.weights import save_state
    from ..methods.stable_signature.users import open_autoencoder
    from .latent_diffusion import LatentDiffusionTask

    device = choose_device(device)
    source = f"{recipe.autoencoder}@{recipe.revision}" if recipe.revision else recipe.autoencoder
    autoencoder = open_autoencoder(source)
    photographs = load_photographs(recipe, data)
    with progress_bar("encoding photographs", len(photographs.train), "images") as tick:
        task = LatentDiffusionTask(recipe, photographs, autoencoder, tick)
    trained = _fit(task, out, minutes, device)
    task.follow(trained.step)
    quality = task.judge()
    (out / "text_encoder").mkdir(parents=True, exist_ok=True)
    task.mean_unet.half().save_pretrained(out / "unet", safe_serialization=True)
    write_text(out / "text_encoder" / "config.json", json.dumps(task.mean_words.config, indent=2) + "\n")
    save_state(task.mean_words.half().state_dict(), out / "text_encoder" / "diffusion_pytorch_model.safetensors")
    task.scheduler.save_pretrained(out / "scheduler")
    index = {"_class_name": "WordLatentDiffusion", "autoencoder": source, "autoencoder_digest": autoencoder.digest}
    write_text(out / "model_index.json", json.dumps(index, indent=2) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    facts = {"parameters": sum(p.numel() for p in task.parameters()), "stored as": "float16"}
    write_card(out, recipe, photographs, trained, quality, device, facts)
    return trained, quality


def train_pixel_diffusion(
    recipe: PixelDiffusionRecipe, data: Path, out: Path, minutes: float | None = None, device: str = "auto"
) -> tuple[Trained, dict[str, float]]:
    """Trains a diffusion model of pixels and saves its parts as diffusers does; see :func:`.trainer.fit`."""
    from .pixel_diffusion import PixelDiffusionTask

    device = choose_device(device)
    photographs = load_photographs(recipe, data)
    task = PixelDiffusionTask(recipe, photographs)
    trained = _fit(task, out, minutes, device)
    task.follow(trained.step)
    quality = task.judge()
    task.mean_unet.half().save_pretrained(out / "unet", safe_serialization=True)
    task.scheduler.save_pretrained(out / "scheduler")
    index = {"_class_name": "PixelDiffusion", "patch": recipe.patch}
    write_text(out / "model_index.json", json.dumps(index, indent=2) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)
    facts = {"parameters": sum(p.numel() for p in task.parameters()), "stored as": "float16"}
    write_card(out, recipe, photographs, trained, quality, device, facts)
    return trained, quality


def load_photographs(recipe: Recipe, data: Path) -> Photographs:
    """The recipe's photographs from a folder, with progress."""
    with progress_bar("reading photographs", None, "files") as tick:
        return Photographs.load(data, recipe.short, recipe.validation, tick)


def _fit(task: Task, out: Path, minutes: float | None, device: str) -> Trained:
    with locked(out), progress_bar(f"training {task.recipe.name}", task.recipe.steps, "steps") as tick:
        return fit(task, out, minutes, device, tick)


def train_stable_signature(
    recipe: StableSignatureRecipe,
    data: Path,
    out: Path,
    keys: Sequence[str] | int,
    minutes: float | None = None,
    device: str = "auto",
    perceptual: Path | None = None,
) -> tuple[int, dict[str, float]]:
    """Fine-tunes one decoder for each key; keys that ``out`` holds already are not trained again.

    Args:
        recipe: the recipe.
        data: folder of photographs.
        out: folder of the decoders.
        keys: words of 0 and 1, or how many to draw from the recipe's seed.
        minutes: stop after so many; the next call goes on.
        device: ``auto``, ``cpu`` or ``cuda``.
        perceptual: folder with the weights of the image distance, where it has any.

    Returns:
        how many of the keys have a decoder, and the mean of what was measured on the photographs kept out.

    Raises:
        SpecError: a key of another length than the extractor's, or twice the same.
        StoreError: ``out`` holds decoders of another recipe, autoencoder, extractor or set of photographs.
    """
    from ...core.perceptual import load_perceptual
    from ..methods.stable_signature.users import open_autoencoder, open_extractor
    from .stable_signature import Decoders

    device = choose_device(device)
    distance = load_perceptual(recipe.image, perceptual, beta=recipe.image_beta)
    source = f"{recipe.autoencoder}@{recipe.revision}" if recipe.revision else recipe.autoencoder
    autoencoder, extractor = open_autoencoder(source), open_extractor(recipe.extractor)
    photographs = load_photographs(recipe, data)
    words = drawn_keys(keys, extractor.bits, recipe.seed) if isinstance(keys, int) else list(keys)
    with locked(out), progress_bar(f"training {recipe.name}", recipe.steps * len(words), "steps") as tick:
        decoders = Decoders(recipe, photographs, autoencoder, extractor, distance, source, out)
        started = time.perf_counter()
        tick(recipe.steps * sum(word in decoders.keys for word in words), "")
        for word in [word for word in words if word not in decoders.keys]:
            spent = (time.perf_counter() - started) / 60
            decoders.train(word, None if minutes is None else max(0.0, minutes - spent), device, tick)
            if minutes is not None and (time.perf_counter() - started) / 60 > minutes:
                break
        return decoders.finish(device)


def drawn_keys(count: int, bits: int, seed: int) -> list[str]:
    """Keys of fair bits, each from its own place in the tree of seeds: more of them begin with the same ones."""
    drawn = (Seed.root(seed).child("users", bits, i).numpy().integers(0, 2, bits) for i in range(count))
    return [key_word(key) for key in drawn]
