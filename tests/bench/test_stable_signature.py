"""The method stable-signature: with the weights that ship, with a folder, with the released files' names."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

from waterproof.bench.check import check_component
from waterproof.bench.methods.stable_signature.method import StableSignature
from waterproof.bench.methods.stable_signature.released import KEY, DecoderLayout
from waterproof.bench.methods.stable_signature.users import SHIPPED, load_makers, read_users
from waterproof.core.errors import ContractError, UnavailableError, UserError
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from pathlib import Path

    from waterproof.core.images import Images

FOLDER = SHIPPED / "stable_signature"


def bits_of(*keys: str) -> torch.Tensor:
    return torch.tensor([[bit == "1" for bit in key] for key in keys])


def psnr(a: Images, b: Images) -> float:
    return float(-10 * torch.log10((a.float() - b.float()).square().mean(dim=(1, 2, 3))).mean())


def test_the_shipped_weights_keep_the_contract() -> None:
    for result in check_component("stable-signature"):
        assert result.ok, f"{result.promise}: {result.detail}"


def test_what_ships_is_small_and_has_its_card() -> None:
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    for name in ("autoencoder", "hidden", "stable_signature"):
        card = json.loads((SHIPPED / name / "card.json").read_text(encoding="utf-8"))
        assert card["training"]["steps"] == card["training"]["of"]
        assert {"psnr"} < set(card["quality"])
        for file, digest in card["digests"].items():
            from waterproof.core.identity import file_digest

            assert file_digest(SHIPPED / name / file) == digest, file


def test_the_shipped_users_write_their_keys_into_photographs(photographs: Images) -> None:
    mark = StableSignature()
    users = mark.users
    assert len(users) >= 10
    keys = bits_of(users[0], users[1], users[0])
    pair = mark.mark(photographs, keys, Seed.root(0))
    logits = mark.decode(pair.marked).logits
    plain = mark.decode(pair.unmarked).logits
    assert logits is not None
    assert plain is not None
    assert float(((logits > 0) == keys).float().mean()) > 0.95
    assert 0.2 < float(((plain > 0) == keys).float().mean()) < 0.8
    assert psnr(pair.marked, pair.unmarked) > 27


def test_a_pair_differs_by_the_mark_alone(photographs: Images) -> None:
    mark = StableSignature()
    makers = load_makers("shipped", None, None)
    pair = mark.mark(photographs, bits_of(*[mark.users[2]] * 3), Seed.root(0))
    again = makers.autoencoder.reconstruct(photographs.float()[1:2]).clamp(0, 1).mul(255).round().to(torch.uint8)
    assert torch.equal(pair.unmarked.pixels[1:2], again)


def test_results_do_not_depend_on_the_batch(photographs: Images) -> None:
    mark = StableSignature()
    keys = bits_of(mark.users[3], mark.users[1], mark.users[3])
    together = mark.mark(photographs, keys, Seed.root(0))
    for i in range(3):
        alone = mark.mark(photographs.take([i]), keys[i : i + 1], Seed.root(9))
        assert torch.equal(alone.marked.pixels, together.marked.pixels[i : i + 1])
        assert torch.equal(alone.unmarked.pixels, together.unmarked.pixels[i : i + 1])


def test_sides_that_do_not_divide_are_extended_and_cut_back(photographs: Images) -> None:
    mark = StableSignature()
    odd = photographs.with_pixels(np.ascontiguousarray(photographs.numpy()[:, :101, :70]))
    pair = mark.mark(odd, bits_of(*[mark.users[0]] * 3), Seed.root(0))
    assert pair.marked.size == pair.unmarked.size == (101, 70)


def test_a_key_that_nobody_has_is_refused(photographs: Images) -> None:
    mark = StableSignature()
    with pytest.raises(ContractError, match="no decoder writes the key 0101"):
        mark.mark(photographs.take([0]), bits_of("01" * 24), Seed.root(0))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return shutil.copytree(FOLDER, tmp_path / "decoders")


def test_decoders_that_were_tampered_with_are_refused(copied: Path, photographs: Images) -> None:
    mark = StableSignature(weights=str(copied))
    assert mark.unavailable() is None
    path = copied / "user-001.safetensors"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(bytes(changed))
    with pytest.raises(UserError, match=r"user-001.safetensors.*sha256"):
        mark.mark(photographs.take([0]), bits_of(mark.users[1]), Seed.root(0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"autoencoder_digest": "ab" * 32}, "made with another autoencoder"),
        ({"extractor_digest": "ab" * 32}, "made with another extractor"),
        ({"keys": ["01", "01"]}, "is damaged"),
        ({"keys": ["012"]}, "is damaged"),
    ],
)
def test_decoders_of_another_origin_are_refused(copied: Path, change: dict[str, Any], says: str) -> None:
    path = copied / "users.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    reason = StableSignature(weights=str(copied)).unavailable()
    assert reason is not None
    assert says in reason


def test_an_absent_folder_is_a_reason(tmp_path: Path) -> None:
    mark = StableSignature(weights=str(tmp_path / "absent"))
    assert "has no users.json" in str(mark.unavailable())
    assert mark.digests() == {}
    with pytest.raises(UnavailableError, match="waterproof train stable-signature"):
        read_users(tmp_path)


def compvis(layout: DecoderLayout, seed: int) -> dict[str, torch.Tensor]:
    """A random decoder under CompVis names."""
    generator = torch.Generator().manual_seed(seed)
    return {theirs: 0.05 * torch.randn(shape, generator=generator) for theirs, _, shape in layout.tensors()}


def test_the_released_names_work_with_an_autoencoder_of_their_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: Images
) -> None:
    """A toy of Stable Diffusion's shape stands for the release, which nobody may ship."""
    from diffusers import AutoencoderKL

    assert "give its folder" in str(StableSignature(weights="released").unavailable())
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    toy = AutoencoderKL(block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=32, **kinds)
    toy.save_pretrained(tmp_path / "vae")
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(tmp_path))
    mark = StableSignature(weights="released", autoencoder=str(tmp_path / "vae"), extractor=str(SHIPPED / "hidden"))
    assert "waterproof fetch stable-signature" in str(mark.unavailable())
    (tmp_path / "stable-signature").mkdir()
    state = compvis(DecoderLayout.of(toy), 1)
    torch.save(state, tmp_path / "stable-signature" / "sd2_decoder.pth")
    assert mark.unavailable() is None
    assert mark.users == (KEY,)
    small = photographs.with_pixels(np.ascontiguousarray(photographs.numpy()[:, :32, :32]))
    pair = mark.mark(small, bits_of(KEY, KEY, KEY), Seed.root(0))
    assert psnr(pair.marked, pair.unmarked) < 60
    assert isinstance(toy, nn.Module)


def test_the_command_fetch_says_what_to_put_where(cli: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from waterproof.bench.methods.stable_signature import released

    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(released, "_download", refuse)
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(tmp_path / "w"))
    said = cli("fetch", "stable-signature")
    assert said.code == 2
    assert said.err.count("\n") == 1
    for part in ("sd2_decoder.pth", "dec_48b_whit.torchscript.pt", "77cd0a20", str(tmp_path / "w")):
        assert part in said.err
    assert "Did you mean 'stable-signature'" in cli("fetch", "stable-signatur").err
