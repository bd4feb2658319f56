"""Folders of models as diffusers saves them, and the repositories of a hub that they are fetched from."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import UnavailableError, UserError, first_line
from .weights import load_module, load_state

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
"""Names of a network's weights, the preferred one first."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UnavailableError: the file is missing or damaged.
        UserError: it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{path}: cannot be read ({first_line(error)}); fetch it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def weights_in(folder: Path, names: Sequence[str] = WEIGHTS) -> Path:
    """The first of ``names`` that is in the folder.

    Raises:
        UnavailableError: none of them is.
    """
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise UnavailableError(f"{folder}: config.json is there, but not the weights: put {names[0]} beside it")
    return found


def is_hub_id(source: str) -> bool:
    """Whether ``source`` is written as a repository of a hub, ``owner/name``."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) is not None


def check_pinned(what: str, repository: str, revision: str | None, form: str = "") -> None:
    """Checks that a repository of a hub can be asked for: a commit is named, and the hub's client is installed.

    Args:
        what: the kind of model, for messages.
        repository: ``owner/name``.
        revision: must be a commit of 40 hexadecimal digits: branches and tags move.
        form: how the revision is written.

    Raises:
        UserError: another revision, or none.
        UnavailableError: huggingface_hub is not installed.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        given = f"not '{revision}'" if revision else "not none"
        raise UserError(
            f"{what} {repository}: there is no such folder, and a hub id needs its revision pinned to a commit of 40 "
            f"hexadecimal digits{form and f', as {form}'}, {given}"
        )
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UnavailableError("a hub id needs the package huggingface_hub: pip install huggingface_hub")


def out_of_reach(what: str, repository: str, revision: str, reason: str, suffices: str = "") -> UnavailableError:
    """What to do where a repository cannot be fetched from here.

    Args:
        what: the kind of model.
        repository: ``owner/name``.
        revision: the commit.
        reason: why it cannot.
        suffices: which files are enough.
    """
    return UnavailableError(
        f"{what} {repository} at {revision[:12]}: {reason}: where there is a network, run 'hf download {repository} "
        f"--revision {revision} --local-dir FOLDER'{suffices and f' ({suffices})'}, then give FOLDER in the place of "
        "the id"
    )


def find_folder(what: str, source: str, shipped: Path, check: Callable[[Path], None], wanted: Sequence[str]) -> Path:
    """The folder of a model.

    Args:
        what: the kind of model, for messages.
        source: ``shipped``, a folder, or ``owner/name@revision`` of a hub.
        shipped: where the one is that comes with the package.
        check: raises UnavailableError where a folder lacks a part.
        wanted: patterns of the files to fetch from a hub.

    Raises:
        UnavailableError: there is no such folder, it lacks a part, or the hub is out of reach.
        UserError: a hub id without a pinned revision.
    """
    if source == "shipped":
        if not shipped.is_dir():
            raise UnavailableError(f"this copy of waterproof ships no {what}: give a folder instead")
        return shipped
    path = Path(source).expanduser()
    if path.is_dir():
        check(path)
        return path
    repository, _, revision = source.partition("@")
    if is_hub_id(repository):
        return _snapshot(what, repository, revision, check, wanted)
    raise UnavailableError(
        f"{what} {source}: there is no such folder; give 'shipped', a folder as diffusers saves it, or "
        "owner/name@revision"
    )


def _snapshot(what: str, repository: str, revision: str, check: Callable[[Path], None], wanted: Sequence[str]) -> Path:
    """The local copy of a hub's repository, downloaded where it is not in the cache."""
    check_pinned(what, repository, revision, f"{repository}@REVISION")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = "it is neither in the local cache nor within reach"
    patterns = list(wanted)
    for local in (True, False):
        try:
            found = snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=local)
        except LocalEntryNotFoundError:
            continue
        except Exception as error:  # the errors of the hub's network clients share no base
            reason = first_line(error)
            break
        try:
            check(Path(found))
        except UnavailableError as error:
            # The cache may hold a part of it, an autoencoder for example: then the rest is fetched.
            reason = str(error)
        else:
            return Path(found)
    raise out_of_reach(what, repository, revision, reason)


def load_network(kind: Any, config: Mapping[str, Any], path: Path) -> tuple[Any, Path]:
    """A network of diffusers in float32, channels last, and the file of its weights.

    Args:
        kind: the class.
        config: its configuration; names that begin with an underscore are left out.
        path: the configuration's file; the weights lie beside it.

    Raises:
        UserError: the configuration is not that of such a network, or the weights do not fit.
        UnavailableError: there are no weights.
    """
    try:
        # Networks draw their first weights from torch's global generator, which is not ours to move.
        with torch.random.fork_rng(devices=[]):
            network = kind(**{name: value for name, value in config.items() if not name.startswith("_")})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the network cannot be built from it: {first_line(error)}") from None
    weights = weights_in(path.parent)
    load_module(network, load_state(weights), str(weights))
    # diffusers' own method only adds a warning about types.
    module: Any = torch.nn.Module
    module.to(network, torch.float32, memory_format=torch.channels_last)
    return network, weights
