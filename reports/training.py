"""``waterproof train``: recipes into weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Train the networks of a method from photographs: recipe in, weights out.")

Data = Annotated[Path, typer.Option(help="Folder of photographs; sub-folders count.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the weights. [default: trained/NAME]")]
Minutes = Annotated[float | None, typer.Option(min=0.0, help="Stop after so many; the same command goes on.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")]
Seed = Annotated[int | None, typer.Option(help="Instead of the recipe's.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command()
def autoencoder(
    data: Data,
    recipe: Annotated[str, typer.Argument(help="A recipe or a YAML file.")] = "autoencoder",
    out: Out = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train a small KL autoencoder, saved so that diffusers' AutoencoderKL.from_pretrained loads it.

    Example:
        waterproof train autoencoder --data photos/train --out trained/autoencoder
    """
    from ..bench.training.make import train_autoencoder
    from ..bench.training.recipes import AutoencoderRecipe, load_recipe

    wanted = load_recipe(AutoencoderRecipe, recipe, steps=steps, seed=seed)
    folder = out or Path("trained") / wanted.name
    _say(*train_autoencoder(wanted, data, folder, minutes, device), folder)


@app.command()
def hidden(
    data: Data,
    recipe: Annotated[str, typer.Argument(help="A recipe or a YAML file.")] = "hidden",
    out: Out = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train HiDDeN's encoder and extractor, and whiten the extractor on the same photographs.

    A training that was stopped or killed goes on where its last checkpoint was, and ends with the same weights.

    Examples:
        waterproof train hidden --data photos/train

        waterproof train hidden hidden-full --data coco --device cuda --minutes 600
    """
    from ..bench.training.make import train_hidden
    from ..bench.training.recipes import HiddenRecipe, load_recipe

    wanted = load_recipe(HiddenRecipe, recipe, steps=steps, seed=seed)
    folder = out or Path("trained") / wanted.name
    _say(*train_hidden(wanted, data, folder, minutes, device), folder)


@app.command("latent-diffusion")
def latent_diffusion(
    data: Data,
    recipe: Annotated[str, typer.Argument(help="A recipe or a YAML file.")] = "latent-diffusion",
    out: Out = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train a small latent diffusion model over an autoencoder; captions are measured on the photographs.

    Examples:
        waterproof train latent-diffusion --data photos/train

        waterproof run generation --dataset '{prompts: {model: trained/latent-diffusion, count: 60}}'
        --methods '{gaussian-shading: {model: trained/latent-diffusion}}'
    """
    from ..bench.training.make import train_latent_diffusion
    from ..bench.training.recipes import LatentDiffusionRecipe, load_recipe

    wanted = load_recipe(LatentDiffusionRecipe, recipe, steps=steps, seed=seed)
    folder = out or Path("trained") / wanted.name
    _say(*train_latent_diffusion(wanted, data, folder, minutes, device), folder)


@app.command("pixel-diffusion")
def pixel_diffusion(
    data: Data,
    recipe: Annotated[str, typer.Argument(help="A recipe or a YAML file.")] = "pixel-diffusion",
    out: Out = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Train a small unconditional diffusion model of pixels, for the attacks diffpure and gridpure.

    Example:
        waterproof train pixel-diffusion --data photos/train
    """
    from ..bench.training.make import train_pixel_diffusion
    from ..bench.training.recipes import PixelDiffusionRecipe, load_recipe

    wanted = load_recipe(PixelDiffusionRecipe, recipe, steps=steps, seed=seed)
    folder = out or Path("trained") / wanted.name
    _say(*train_pixel_diffusion(wanted, data, folder, minutes, device), folder)


@app.command("stable-signature")
def stable_signature(
    data: Data,
    keys: Annotated[
        str, typer.Option(help="How many keys to draw, or a file of keys, one word of 0 and 1 a line.")
    ] = "1",
    recipe: Annotated[str, typer.Argument(help="A recipe or a YAML file.")] = "stable-signature",
    out: Out = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="A folder, or owner/name@revision. [default: the recipe's]")
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="A file (.onnx, TorchScript) or a folder. [default: the recipe's]")
    ] = None,
    perceptual: Annotated[Path | None, typer.Option(help="Folder with the weights of the image distance.")] = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = "auto",
) -> None:
    """Fine-tune a latent decoder for each key: one decoder per user.

    Keys that the folder holds already are kept; the same command with more keys adds the others.

    Examples:
        waterproof train stable-signature --data photos/train --keys 10

        waterproof train stable-signature --data photos/train --keys users.txt --extractor stable_signature.onnx
    """
    from ..bench.training.make import train_stable_signature
    from ..bench.training.recipes import StableSignatureRecipe, load_recipe

    changes: dict[str, str | None] = {"autoencoder": None, "revision": None}
    if autoencoder is not None:
        name, _, revision = autoencoder.partition("@")
        changes = {"autoencoder": name, "revision": revision or None}
    wanted = load_recipe(StableSignatureRecipe, recipe, steps=steps, seed=seed, extractor=extractor, **changes)
    folder = out or Path("trained") / wanted.name
    words = _keys(keys)
    done, quality = train_stable_signature(wanted, data, folder, words, minutes, device, perceptual)
    asked = words if isinstance(words, int) else len(words)
    typer.echo(f"{folder}: {done} decoders{'' if done >= asked else f' of {asked}: the same command goes on'}")
    _say_quality(quality)


def _keys(text: str) -> list[str] | int:
    from ..core.errors import SpecError

    if text.isdecimal() and len(text) < 7:
        if int(text) < 1:
            raise SpecError("--keys: at least one")
        return int(text)
    try:
        lines = Path(text).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"--keys is a number, or a file of keys: cannot read '{text}' ({error})") from None
    if not lines:
        raise SpecError(f"--keys: {text} holds no key")
    if len(set(lines)) < len(lines):
        raise SpecError(f"--keys: {text} holds a key twice")
    return lines


def _say(trained: Any, quality: dict[str, float], folder: Path) -> None:
    rest = "" if trained.finished else " (not finished: the same command goes on)"
    typer.echo(f"{folder}: {trained.step} of {trained.steps} steps, {trained.seconds / 60:.1f} minutes{rest}")
    _say_quality(quality)


def _say_quality(quality: dict[str, float]) -> None:
    for name, value in quality.items():
        typer.echo(f"  {name:<44}{value:.3f}")
