"""Weights: what is found, what is refused, and what is written."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from waterproof.core import weights
from waterproof.core.errors import StoreError, UnavailableError, UserError
from waterproof.core.identity import file_digest
from waterproof.core.weights import cache_folder, digest_of, find, load_module, load_state, save_state

STATE = {"b.weight": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.float16), "n": torch.tensor(7)}


class Payload:
    """A pickle that makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one
    )


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# Reading ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pth.tar"])
def test_what_was_saved_is_loaded(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{ending}"
    if ending == ".safetensors":
        save_state(STATE, path)
    else:
        torch.save(STATE, path)
    assert equal(load_state(path), STATE)
    assert equal(load_state(str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper()), STATE)


def test_another_digest_is_refused_before_the_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"x": Payload(tmp_path / "ran")}, path)
    expected, found = "ab" * 32, hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UnavailableError) as error:
        load_state(path, sha256=expected)
    assert all(part in one_line(error) for part in (str(path), expected[:12], found[:12]))
    with pytest.raises(UserError, match="64 hexadecimal digits"):
        load_state(path, sha256="abc")


@pytest.mark.parametrize("whole", [True, False], ids=["torch.save", "bare pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(whole: bool, tmp_path: Path) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "ran"
    payload = {"weight": torch.ones(2), "x": Payload(trace)}
    if whole:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match="full unpickling is never done") as error:
        load_state(path)
    assert str(path) in one_line(error)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # noqa: S301 - proves that the payload works
    assert trace.exists()


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match="TorchScript archive is a program"):
        load_state(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.003, 0.1, 0.5, 0.9, 0.999])
def test_a_half_written_pytorch_file_is_one_clear_line(legacy: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match=r"incomplete or damaged|is empty|no PyTorch file") as error:
        load_state(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("kept", [0, 4, 20, -1, -8])
def test_a_half_written_safetensors_file_is_one_clear_line(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_state(STATE, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UnavailableError, match=r"incomplete or damaged|is empty") as error:
        load_state(path)
    assert str(path) in one_line(error)


def test_damaged_pickles_never_raise_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    data = np.frombuffer(path.read_bytes(), np.uint8)
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(60):
        broken = data.copy()
        broken[random.integers(len(broken), size=3)] = random.integers(256, size=3)
        path.write_bytes(broken.tobytes())
        try:
            load_state(path)
        except UserError:
            refused += 1
    assert 10 < refused <= 60


def test_entries_are_asked_for_and_never_unwrapped_silently(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"epoch": 3, "ldm_decoder": STATE}, path)
    assert equal(load_state(path, entry="ldm_decoder"), STATE)
    with pytest.raises(UserError, match=r"'epoch' is a int, not a tensor; .* entry='ldm_decoder'"):
        load_state(path)
    with pytest.raises(UserError, match=r"no entry 'ldm_decode'.*Did you mean 'ldm_decoder'"):
        load_state(path, entry="ldm_decode")
    with pytest.raises(UserError, match="not tensors by name"):
        load_state(path, entry="epoch")
    save_state(STATE, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no entries"):
        load_state(tmp_path / "w.safetensors", entry="ldm_decoder")
    torch.save(torch.ones(2), path)
    with pytest.raises(UserError, match="holds a Tensor"):
        load_state(path)
    with pytest.raises(UserError, match="holds no dictionary"):
        load_state(path, entry="x")


def test_a_missing_file_a_pointer_and_an_unknown_ending_say_so(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no such file"):
        load_state(tmp_path / "w.pth")
    (tmp_path / "w.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(UnavailableError, match="git lfs pull"):
        load_state(tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"end in \.safetensors"):
        load_state(tmp_path / "w.onnx")


# Into a network -----------------------------------------------------------------------------------------------------


def test_a_state_meets_its_network_strictly() -> None:
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    load_module(target, source.state_dict(), "extractor")
    assert equal(dict(target.state_dict()), dict(source.state_dict()))


def test_what_does_not_fit_is_named_and_nothing_is_copied() -> None:
    network = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(3), "spare": torch.ones(1)}
    with pytest.raises(UserError) as error:
        load_module(network, state, "decoder.pth")
    text = one_line(error)
    assert text.startswith("decoder.pth: ")
    assert "6 missing (1.weight, 1.bias, 2.weight, ...)" in text
    assert "1 unexpected (spare)" in text
    assert "1 of another shape (0.bias [3] instead of [2])" in text
    assert equal(dict(network.state_dict()), before)


# Finding ------------------------------------------------------------------------------------------------------------


def test_weights_are_found_in_the_chosen_folder_then_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, cache = tmp_path / "own", tmp_path / "cache"
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(own))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert cache_folder() == own
    with pytest.raises(UnavailableError) as error:
        find("taef2", "taef2_encoder.pth", "cd" * 32)
    assert all(part in one_line(error) for part in (str(own / "taef2" / "taef2_encoder.pth"), "cd" * 32, "put it at"))
    second = cache / "waterproof" / "taef2" / "taef2_encoder.pth"
    second.parent.mkdir(parents=True)
    second.write_bytes(b"weights")
    assert find("taef2", "taef2_encoder.pth") == second
    first = own / "taef2" / "taef2_encoder.pth"
    first.parent.mkdir(parents=True)
    first.write_bytes(b"other")
    assert find("taef2", "taef2_encoder.pth", hashlib.sha256(b"other").hexdigest()) == first
    with pytest.raises(UnavailableError, match="wrong file"):
        find("taef2", "taef2_encoder.pth", hashlib.sha256(b"weights").hexdigest())


def test_the_cache_follows_the_desktop_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATERPROOF_WEIGHTS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == Path.home() / ".cache" / "waterproof"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "waterproof"


@pytest.mark.parametrize(("name", "file"), [("..", "passwd"), ("a", "../../b"), ("a", "/etc/passwd")])
def test_a_name_never_leaves_the_weights_folder(name: str, file: str) -> None:
    with pytest.raises(UserError, match="inside the weights folder"):
        find(name, file)


# Digests ------------------------------------------------------------------------------------------------------------


def test_a_digest_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.bin"
    path.write_bytes(b"one")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    reads: list[Path] = []

    def counted(file: Path) -> str:
        reads.append(file)
        return file_digest(file)

    monkeypatch.setattr(weights, "file_digest", counted)
    assert digest_of(path) == digest_of(path) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1
    path.write_bytes(b"two")
    assert digest_of(path) == hashlib.sha256(b"two").hexdigest()
    path.write_bytes(b"six")  # at once, of the same size: within one tick of the clock
    assert digest_of(path) == hashlib.sha256(b"six").hexdigest()
    with pytest.raises(UnavailableError, match="cannot be read"):
        digest_of(tmp_path / "absent.bin")


def test_a_folders_digest_covers_weights_and_configurations(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / ".cache").mkdir()
    with pytest.raises(UnavailableError, match="holds no weights"):
        digest_of(tmp_path)
    files = {"config.json": b"{}", "vae/w.safetensors": b"1", "a.pth": b"2", "b.bin": b"3", "c.onnx": b"4"}
    for name, data in {**files, "README.md": b"x", ".cache/meta.json": b"y"}.items():
        (tmp_path / name).write_bytes(data)
    listed = [[name, hashlib.sha256(files[name]).hexdigest()] for name in sorted(files)]
    expected = hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()
    assert digest_of(tmp_path) == expected
    (tmp_path / "README.md").write_bytes(b"changed")
    assert digest_of(tmp_path) == expected
    (tmp_path / "vae" / "w.safetensors").write_bytes(b"0")
    assert digest_of(tmp_path) != expected


# Writing ------------------------------------------------------------------------------------------------------------


def test_a_saved_file_is_safetensors_by_its_specification(tmp_path: Path) -> None:
    path = tmp_path / "new" / "w.safetensors"
    metadata = {"recipe": "extractor", "seed": "7", "éa": "ü"}
    save_state(STATE, path, metadata)
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__") == metadata
    assert set(header) == set(STATE)
    types = {"F32": "<f4", "F16": "<f2", "I64": "<i8"}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        array = np.frombuffer(data[8 + length :][start:end], types[entry["dtype"]]).reshape(entry["shape"])
        assert np.array_equal(array, STATE[name].numpy())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    # The library's own order of metadata differs from call to call.
    names, written = ["1", "2", "3", "4"], set[bytes]()
    for path in (tmp_path / str(number) for number in range(10)):
        names = names[::-1] if len(written) % 2 else names[1:] + names[:1]
        save_state({n: torch.full((2, 2), float(n)) for n in names}, path, {n: n for n in names})
        written.add(path.read_bytes())
    assert len(written) == 1


def test_shared_and_strided_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"a": base, "b": base.T, "c": base[:, ::2], "d": base}
    save_state(state, tmp_path / "w.safetensors")
    assert equal(load_state(tmp_path / "w.safetensors"), state)


def test_a_failed_write_is_an_error_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_state(STATE, path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        save_state({"a": torch.zeros(9)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
