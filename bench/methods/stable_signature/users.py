"""A folder of marked decoders, one for each user: which key each writes, and what they belong to."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ....core.autoencoders import Autoencoder, load_from
from ....core.components import describe
from ....core.errors import UnavailableError
from ....core.weights import digest_of, load_state
from .extractors import Extractor, load_extractor
from .released import DECODER as RELEASED_DECODER
from .released import EXTRACTOR, KEY, load_marked_decoder, locate

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

SHIPPED = Path(__file__).parents[3] / "core" / "shipped"
"""Where the weights are that come with the package."""


class Users(BaseModel):
    """What ``users.json`` says.

    Attributes:
        autoencoder: ``shipped``, a folder, or a hub id with its revision after an ``@``.
        autoencoder_digest: what the decoders were fine-tuned from.
        extractor: ``shipped``, a file or a folder.
        extractor_digest: what the decoders were fine-tuned against.
        trained: which part of the decoder differs: ``all`` or ``last N``.
        keys: 0 and 1, one for each user; user i's tensors are in ``user-00i.safetensors``.
        digests: SHA-256 of these files.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    autoencoder: str
    autoencoder_digest: str
    extractor: str
    extractor_digest: str
    trained: str
    keys: tuple[str, ...] = Field(min_length=1)
    digests: tuple[str, ...]

    @field_validator("keys")
    @classmethod
    def _bits(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        lengths = {len(key) for key in keys}
        if len(lengths) > 1 or set("".join(keys)) - set("01") or "" in keys:
            raise ValueError("keys are words of 0 and 1, all of one length")
        if len(set(keys)) < len(keys):
            raise ValueError("two users have one key")
        return keys


def user_file(number: int) -> str:
    """Name of the file of one user's tensors.

    Example:
        >>> user_file(7)
        'user-007.safetensors'
    """
    return f"user-{number:03d}.safetensors"


def read_users(folder: Path) -> Users:
    """Reads ``users.json``.

    Raises:
        UnavailableError: there is none, or it is damaged.
    """
    path = folder / "users.json"
    try:
        return Users.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError:
        raise UnavailableError(
            f"{folder} holds no marked decoders (it has no users.json): make them with "
            "`waterproof train stable-signature`, or name another folder"
        ) from None
    except ValidationError as error:
        raise UnavailableError(f"{path} is damaged: {describe(error)}") from None


def write_users(folder: Path, users: Users) -> None:
    """Writes ``users.json``, whole or not at all."""
    from ...store import write_text

    write_text(folder / "users.json", json.dumps(users.model_dump(), indent=2) + "\n")


class Makers:
    """The original decoder, the marked ones and the extractor of a folder.

    Attributes:
        users: what the folder says.
        autoencoder: the original.
        extractor: reads the key.
    """

    def __init__(
        self, users: Users, autoencoder: Autoencoder, extractor: Extractor, states: Mapping[str, Path | dict[str, Any]]
    ) -> None:
        self.users = users
        self.autoencoder = autoencoder
        self.extractor = extractor
        self._states = states
        self._last: tuple[str, Autoencoder] | None = None

    def marked(self, key: str) -> Autoencoder:
        """The autoencoder with the decoder of the user of ``key``.

        Raises:
            UnavailableError: no user has this key, or the user's file is missing or another one.
        """
        if self._last is None or self._last[0] != key:
            self._last = (key, self._load(key))
        return self._last[1]

    def _load(self, key: str) -> Autoencoder:
        if key not in self._states:
            raise UnavailableError(f"no decoder writes the key {key}: fine-tune one with waterproof train")
        state = self._states[key]
        copied = copy.deepcopy(self.autoencoder)
        if isinstance(state, Path) and state.name.startswith("user-"):
            overwrite(copied, load_state(state, self.users.digests[self.users.keys.index(key)]), state)
        else:
            copied.model = load_marked_decoder(copied.model, state)
        return copied


def overwrite(autoencoder: Autoencoder, state: Mapping[str, torch.Tensor], what: object) -> None:
    """Puts a user's tensors into an autoencoder, in place.

    Raises:
        UnavailableError: a tensor has no place in it, or another shape.
    """
    own = autoencoder.model.state_dict()
    for name, tensor in state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise UnavailableError(f"{what} does not fit its autoencoder: {name} {list(tensor.shape)}")
        own[name].copy_(tensor)


def load_makers(weights: str, autoencoder: str | None, extractor: str | None) -> Makers:
    """Loads everything but the marked decoders themselves, which come when they are asked for.

    Args:
        weights: ``shipped``, ``released`` (the files of Stable Signature's authors), or a folder.
        autoencoder: in place of the one that the folder names.
        extractor: in place of the one that the folder names.

    Raises:
        UnavailableError: something is missing, or is not what the decoders were made with.
    """
    if weights == "released":
        return _released(autoencoder, extractor)
    folder = SHIPPED / "stable_signature" if weights == "shipped" else Path(weights).expanduser()
    users = read_users(folder)
    return _makers(folder, users.model_dump_json(), autoencoder, extractor)


@lru_cache(maxsize=2)
def _makers(folder: Path, users_json: str, autoencoder: str | None, extractor: str | None) -> Makers:
    """The folder's content is part of the key: one that was trained anew is loaded anew."""
    users = Users.model_validate_json(users_json)
    model = open_autoencoder(autoencoder or users.autoencoder)
    reader = open_extractor(extractor or users.extractor)
    for what, mine, wanted in (
        ("autoencoder", model.digest, users.autoencoder_digest),
        ("extractor", reader.digest, users.extractor_digest),
    ):
        if mine != wanted:
            raise UnavailableError(
                f"the decoders in {folder} were made with another {what} "
                f"(its sha256 begins {wanted[:12]}, that of this one {mine[:12]})"
            )
    _check_length(users, reader)
    return Makers(users, model, reader, {key: folder / user_file(i) for i, key in enumerate(users.keys)})


@lru_cache(maxsize=1)
def _released(autoencoder: str | None, extractor: str | None) -> Makers:
    if autoencoder is None:
        raise UnavailableError(
            "the released decoder belongs to Stable Diffusion's autoencoder: give its folder, or its hub id and "
            "revision as owner/name@revision, as 'autoencoder'"
        )
    model = open_autoencoder(autoencoder)
    path = locate(RELEASED_DECODER)
    reader = open_extractor(extractor or str(locate(EXTRACTOR)))
    users = Users(
        autoencoder=autoencoder,
        autoencoder_digest=model.digest,
        extractor=extractor or EXTRACTOR.name,
        extractor_digest=reader.digest,
        trained="all",
        keys=(KEY,),
        digests=(digest_of(path),),
    )
    _check_length(users, reader)
    return Makers(users, model, reader, {KEY: path})


def _check_length(users: Users, extractor: Extractor) -> None:
    if len(users.keys[0]) != extractor.bits:
        raise UnavailableError(f"the keys have {len(users.keys[0])} bits, the extractor reads {extractor.bits}")


def open_autoencoder(source: str) -> Autoencoder:
    """``shipped``, a folder (whatever its name), or ``owner/name@revision``; a new one, which may be trained."""
    return load_from(source)


def open_extractor(source: str) -> Extractor:
    """``shipped``, a file, or a folder that ``waterproof train hidden`` wrote."""
    return load_extractor(SHIPPED / "hidden" if source == "shipped" else Path(source))
