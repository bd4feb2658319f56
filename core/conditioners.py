"""What turns prompts into the embeddings that a latent diffusion model attends to."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Protocol

import torch

from .errors import UnavailableError, UserError, first_line
from .identity import content_digest
from .model_folders import read_json, weights_in
from .weights import digest_of, load_module, load_state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Conditioner(Protocol):
    """Turns prompts into what the network attends to."""

    digest: str

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embeddings ``[B, L, W]``.

        Raises:
            UserError: a prompt that the model cannot take.
        """


class WordConditioner:
    """The word encoder of a model that was trained by this project."""

    def __init__(self, folder: Path) -> None:
        from .words import WordEncoder

        known = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
        try:
            with torch.random.fork_rng(devices=[]):
                self.encoder = WordEncoder(**known).eval().requires_grad_(False)
        except TypeError as error:
            raise UserError(
                f"{folder / 'config.json'}: no word encoder can be built from it: {first_line(error)}"
            ) from None
        weights = weights_in(folder)
        load_module(self.encoder, load_state(weights), str(weights))
        self.encoder.float()
        self.digest = content_digest({"config": known, "weights": digest_of(weights)})

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """See :class:`Conditioner`."""
        embedded: torch.Tensor = self.encoder(self.encoder.tokens(prompts))
        return embedded


class ClipConditioner:
    """Stable Diffusion's tokeniser and text encoder, through transformers."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise UnavailableError(
                "a Stable Diffusion pipeline needs transformers: pip install 'waterproof[generation]'"
            )
        from transformers import CLIPTextModel, CLIPTokenizer

        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            with torch.random.fork_rng(devices=[]):
                encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UnavailableError(
                f"{folder}: tokenizer/ or text_encoder/ cannot be loaded: {first_line(error)}"
            ) from None
        _load_strictly(encoder, folder / "text_encoder")
        self.encoder = encoder.float().eval().requires_grad_(False)
        self.digest = digest_of(folder / "text_encoder") + digest_of(folder / "tokenizer")

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        """See :class:`Conditioner`."""
        longest = self.tokenizer.model_max_length
        for prompt in prompts:
            count = len(self.tokenizer(prompt).input_ids)
            if count > longest:
                raise UserError(f"prompt '{prompt[:60]}...': {count} tokens, this model takes {longest}")
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=longest, return_tensors="pt").input_ids
        embedded: torch.Tensor = self.encoder(tokens)[0]
        return embedded


def _load_strictly(encoder: torch.nn.Module, folder: Path) -> None:
    """Loads the weights once more: transformers draws at random what a file lacks, and says so in a warning only."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return

    def short(name: str) -> str:
        # Releases of transformers disagree about this prefix.
        return name.removeprefix("text_model.")

    own = {short(name): name for name in encoder.state_dict()}
    # Positions are counted from 0 by the module itself; files of before 2023 hold them.
    state = {n: tensor for n, tensor in load_state(path).items() if not n.endswith("position_ids")}
    load_module(encoder, {own.get(short(n), n): tensor for n, tensor in state.items()}, str(path))
