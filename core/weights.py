"""Weights from outside: found, checked against their digest, and loaded without ever running a file's code.

Safetensors files hold nothing but tensors. PyTorch files are pickles, which can run anything, so they are read with
``weights_only=True`` and refused if that is not enough. A state meets its network strictly: a missing, spare or
mis-shaped tensor is an error, because a network that is loaded in part still runs and gives plausible, wrong numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import time
import uuid
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import StoreError, UnavailableError, UserError, nearest
from .identity import canonical_json, file_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".tar")
"""Endings that are read with ``torch.load(weights_only=True)``."""

_DIGESTED = {".safetensors", ".json", ".onnx", *PICKLES}
_SETTLED_NS = 2_000_000_000
"""A file this young may be written again within one tick of its time stamp: its digest is not remembered."""


def load_state(path: Path | str, sha256: str | None = None, entry: str | None = None) -> dict[str, torch.Tensor]:
    """Reads a file of named tensors onto the CPU.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file (``.pt``, ``.pth``, ``.ckpt``, ``.bin``).
        sha256: 64 hexadecimal digits that the file must have; None trusts it as it is.
        entry: which dictionary of a PyTorch file holds the tensors, e.g. ``"state_dict"``; None: the file is that
            dictionary. Nothing is unwrapped silently.

    Returns:
        The tensors by name, in the types of the file.

    Raises:
        UnavailableError: the file is missing, damaged, or has another digest.
        UserError: it needs full unpickling, or holds something else than named tensors.

    Example:
        >>> state = load_state("decoder.pth", entry="ldm_decoder")  # doctest: +SKIP
    """
    path = Path(path).expanduser()
    if path.suffix not in (".safetensors", *PICKLES):
        raise UserError(f"{path}: weights end in .safetensors, {', '.join(PICKLES[:-1])} or {PICKLES[-1]}")
    if not path.is_file():
        raise UnavailableError(f"{path}: there is no such file")
    if sha256 is not None:
        _require_digest(path, sha256)
    _require_content(path)
    if path.suffix == ".safetensors":
        if entry is not None:
            raise UserError(f"{path}: a safetensors file has no entries, but entry '{entry}' was asked for")
        return _read_safetensors(path)
    return _tensors(_entry(_unpickle(path), entry, path), path)


def load_module(module: torch.nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    """Copies a state into a module, strictly.

    Args:
        module: the network; its device and type stay as they are.
        state: its tensors by name.
        what: what is loaded, for the message.

    Raises:
        UserError: a tensor is missing, spare or has another shape; the network is then unchanged.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    missing = [name for name in wanted if name not in given]
    spare = [name for name in given if name not in wanted]
    other = [
        f"{name} {list(given[name])} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    parts = [
        f"{len(names)} {word} ({_few(names)})"
        for word, names in (("missing", missing), ("unexpected", spare), ("of another shape", other))
        if names
    ]
    if parts:
        raise UserError(f"{what}: the weights do not fit the network of {len(wanted)} tensors: {'; '.join(parts)}")
    module.load_state_dict(dict(state), strict=True)


def cache_folder() -> Path:
    """Where downloaded weights are kept: ``$WATERPROOF_WEIGHTS``, else ``waterproof`` in the user's cache folder."""
    own = os.environ.get("WATERPROOF_WEIGHTS")
    return Path(own).expanduser() if own else _default_cache()


def find(name: str, file: str, sha256: str | None = None, fetchable: bool = False) -> Path:
    """Finds a downloaded file in ``$WATERPROOF_WEIGHTS/name``, else in ``~/.cache/waterproof/name``.

    Args:
        name: the set of weights, e.g. ``"taef2"``.
        file: the file in it.
        sha256: the digest that it must have.
        fetchable: whether ``waterproof fetch`` knows where it is published.

    Raises:
        UnavailableError: it is in neither folder, or has another digest; the message says which file goes where.
        UserError: the name points out of the folder.
    """
    relative = Path(name, file)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"weights '{name}/{file}': the name must stay inside the weights folder")
    for folder in dict.fromkeys((cache_folder(), _default_cache())):
        path = folder / relative
        if path.is_file():
            if sha256 is not None:
                _require_digest(path, sha256)
            return path
    known = f" (sha256 {sha256})" if sha256 else ""
    fetch = f", or run: waterproof fetch {name}" if fetchable else ""
    raise UnavailableError(f"{file} of {name} is not here: put it at {cache_folder() / relative}{known}{fetch}")


def digest_of(path: Path | str) -> str:
    """SHA-256 of a file, or of a folder's weights and configurations.

    A folder's digest covers the relative names and digests of its ``.safetensors``, ``.json``, ``.onnx`` and PyTorch
    files, hidden ones left out. A file's digest is remembered until its size or modification time changes.

    Raises:
        UnavailableError: there is no such file, or the folder holds none of these.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _folder_digest(path)
    try:
        status = path.stat()
        if abs(time.time_ns() - status.st_mtime_ns) < _SETTLED_NS:
            return file_digest(path)
        return _remembered_digest(str(path.resolve()), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise UnavailableError(f"{path}: cannot be read: {error.strerror or error}") from None


def save_state(state: Mapping[str, torch.Tensor], path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as a safetensors file, whole or not at all; equal contents give equal bytes.

    Args:
        state: tensors by name, from any device.
        path: the file; its folder is made where it is missing.
        metadata: text by name, kept in the file's header.

    Raises:
        StoreError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".new-{uuid.uuid4().hex[:12]}-{path.name}")
    data = _serialised(state, metadata or {})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _default_cache() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or ".")
    # The XDG specification: a relative path is to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "waterproof"


def _few(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


@lru_cache(maxsize=1024)
def _remembered_digest(path: str, size: int, mtime_ns: int) -> str:
    return file_digest(Path(path))


def _folder_digest(folder: Path) -> str:
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix in _DIGESTED and path.is_file() and not _hidden(path.relative_to(folder))
    )
    if not names:
        raise UnavailableError(f"{folder}: holds no weights (.safetensors, .json, .onnx, {', '.join(PICKLES)})")
    listed = [[name, digest_of(folder / name)] for name in names]
    return hashlib.sha256(canonical_json(listed).encode()).hexdigest()


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _require_digest(path: Path, sha256: str) -> None:
    expected = sha256.lower()
    if not re.fullmatch("[0-9a-f]{64}", expected):
        raise UserError(f"{path}: a sha256 has 64 hexadecimal digits, not '{sha256}'")
    found = digest_of(path)
    if found != expected:
        raise UnavailableError(
            f"{path}: wrong file: expected sha256 {expected[:12]}..., found {found[:12]}...; fetch it again"
        )


def _require_content(path: Path) -> None:
    """Refuses what is plainly no weights file with the reason that a person can act on."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise UnavailableError(f"{path}: the file is empty; fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise UnavailableError(f"{path}: is a git-lfs pointer, not the weights; run: git lfs pull")


def _broken(path: Path, error: Exception) -> UnavailableError:
    lines = str(error).strip().splitlines()
    reason = lines[0].split(". ")[0] if lines else type(error).__name__
    return UnavailableError(f"{path}: cannot be read, it is incomplete or damaged ({reason}); fetch it again")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, error) from None


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # About the pickle protocol and TorchScript; both end in an error below or do no harm.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        needs = f"it asks for {asked[1]}" if asked else "it holds more than tensors or is no PyTorch file"
        raise UserError(
            f"{path}: refused: {needs}, and full unpickling is never done because it runs the file's code; "
            "save the tensors alone, best as .safetensors"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        if "TorchScript" in str(error):
            raise UserError(
                f"{path}: refused: a TorchScript archive is a program, and full unpickling is never done; "
                "save its state_dict, best as .safetensors"
            ) from None
        raise _broken(path, error) from None


def _entry(loaded: Any, entry: str | None, path: Path) -> Any:
    if entry is None:
        return loaded
    keys = [key for key in loaded if isinstance(key, str)] if isinstance(loaded, Mapping) else []
    if entry not in keys:
        hint = f"it holds {_few(keys)}.{nearest(entry, keys)}" if keys else "it holds no dictionary"
        raise UserError(f"{path}: there is no entry '{entry}': {hint}")
    return loaded[entry]


def _tensors(loaded: Any, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}, not tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            inside = [key for key, item in loaded.items() if isinstance(item, Mapping)]
            hint = f"; its tensors may be inside: entry='{inside[0]}'" if inside else ""
            raise UserError(f"{path}: '{name}' is a {type(value).__name__}, not a tensor{hint}")
    return {name: value.detach() for name, value in loaded.items()}


def _serialised(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file, its header sorted: the library writes metadata in a random order."""
    from safetensors.torch import save

    # Copies, because the format has no tensors that share memory.
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if metadata:
        header["__metadata__"] = dict(metadata)
    text = canonical_json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
