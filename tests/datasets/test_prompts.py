"""The dataset prompts: captions with seeds, lists from files, and images that are the same however they are made."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.core.components import field_roles
from waterproof.core.errors import DatasetError, SpecError, UnavailableError
from waterproof.core.latent_diffusion import Sampling, load_latent_diffusion
from waterproof.core.registry import create, names
from waterproof.core.weights import save_state
from waterproof.core.words import WordEncoder
from waterproof.datasets.prompts import Prompts, built_in

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model that reads the words of the built-in captions, 32 pixels."""
    import diffusers

    folder = tmp_path_factory.mktemp("tiny-model")
    blocks = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8, 8, 8))
    counts = dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1, 1, 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4,
            attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).save_pretrained(folder / "unet")  # fmt: skip
        diffusers.AutoencoderTiny(**blocks, **counts).save_pretrained(folder / "vae")
        encoder = WordEncoder(width=16)
    save_state(encoder.state_dict(), folder / "text_encoder" / "diffusion_pytorch_model.safetensors")
    (folder / "text_encoder" / "config.json").write_text(json.dumps(encoder.config), encoding="utf-8")
    diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing").save_pretrained(folder / "scheduler")
    index = {"_class_name": "WordLatentDiffusion", "autoencoder": "vae"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return str(folder)


@pytest.fixture
def listed(model: str, tmp_path: Path) -> Callable[..., Prompts]:
    """Writes a file of prompts and gives the dataset of it."""

    def write(name: str, content: str | bytes, **fields: Any) -> Prompts:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Prompts(file=path, model=model, **fields)

    return write


def small(model: str, **fields: Any) -> Prompts:
    return Prompts(**{"model": model, "count": 2, "steps": 2, **fields})


# The list -----------------------------------------------------------------------------------------------------------


def test_the_built_in_captions_are_all_different_and_made_of_known_words() -> None:
    captions = built_in()
    assert len(captions) == len(set(captions)) == 540
    with torch.random.fork_rng(devices=[]):
        tokens = WordEncoder(width=8).tokens(captions)
    assert len({tuple(row) for row in tokens.tolist()}) == 540
    assert 2 <= int((tokens > 0).sum(dim=1).min()) <= int((tokens > 0).sum(dim=1).max()) == 4
    assert captions == built_in()
    # Mixed: whoever takes the first few gets every tone and most colours.
    first = " ".join(captions[:40])
    assert all(word in first for word in ("dark", "bright", "soft", "contrasty", "smooth", "detailed", "above"))


def test_each_prompt_is_a_source_with_its_images(model: str) -> None:
    index = small(model, per_prompt=3, first_seed=5).index()
    captions = built_in()[:2]
    assert [r.id for r in index.records] == [f"prompt-00{i}-{j}" for i in (0, 1) for j in (0, 1, 2)]
    assert (
        [r.caption for r in index.records] == [r.source for r in index.records] == [c for c in captions for _ in "123"]
    )
    assert [r.seed for r in index.records] == [5, 6, 7, 8, 9, 10]
    assert {(r.label, r.size, r.split) for r in index.records} == {(Path(model).name, (32, 32), None)}
    assert not index.rejected
    assert len({r.digest for r in index.records}) == 6
    assert len(small(model, count=None).index().records) == 540


def test_digests_follow_everything_that_decides_an_image(model: str, tmp_path: Path) -> None:
    import shutil

    first = small(model, count=1)
    base = first.index().records[0].digest
    assert base == small(model, count=1).index().records[0].digest
    elsewhere = shutil.copytree(model, tmp_path / "elsewhere")
    assert small(str(elsewhere), count=1).index().records[0].digest == base
    path = elsewhere / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("0.02", "0.03"), encoding="utf-8")
    others = [{"first_seed": 1}, {"size": 64}, {"steps": 3}, {"guidance": 2.0}, {"solver": "dpm-solver"}]
    seen = {base, *(small(model, **{"count": 1, **change}).index().records[0].digest for change in others)}
    seen.add(small(str(elsewhere), count=1).index().records[0].digest)
    seen.add(small(model, count=2).index().records[1].digest)
    assert len(seen) == 8
    assert first.index().digest != small(model, count=1, steps=3).index().digest


def test_the_identity_holds_the_bytes_of_model_and_file_and_not_their_places(
    model: str, listed: Callable[..., Prompts], tmp_path: Path
) -> None:
    one, moved = listed("a.txt", "dark\n"), listed("b.txt", "dark\n")
    assert one.spec().id == moved.spec().id
    assert one.spec().id != listed("c.txt", "bright\n").spec().id
    assert one.spec().id != small(model).spec().id
    assert one.digests().keys() == {"model", "file"}
    assert one.digests()["model"] == load_latent_diffusion(model).digest
    assert one.label.endswith("file=a.txt)")
    assert Prompts(count=3).label == "prompts(count=3)"
    absent = Prompts(model=str(tmp_path / "absent"))
    assert "there is no such folder" in str(absent.unavailable())
    assert absent.digests() == {}
    with pytest.raises(UnavailableError, match="there is no such folder"):
        absent.index()


def test_it_is_registered_classified_and_documented() -> None:
    assert "prompts" in names("dataset")
    roles = field_roles(Prompts)
    assert {name for name, role in roles.items() if role == "knob"} == {"file", "model"}
    assert set(roles.values()) == {"identity", "knob"}
    assert all(info.description for info in Prompts.model_fields.values())


def test_listing_makes_no_image_and_tells_how_far_it_is(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_latent_diffusion(model), "_run", lambda *_, **__: pytest.fail("an image was made"))
    seen: list[tuple[int, str]] = []
    small(model, count=3, per_prompt=2).index(lambda units, doing: seen.append((units, doing)))
    assert seen == [(1, caption) for caption in built_in()[:3]]


# Images -------------------------------------------------------------------------------------------------------------


def test_images_are_the_same_one_by_one_and_together(model: str) -> None:
    dataset = small(model, count=3, per_prompt=2)
    records = dataset.index().records
    (together,), rejected = dataset.load(records)
    assert not rejected
    assert together.records == records
    load_latent_diffusion(model)._latents.clear()
    for place in reversed(range(len(records))):
        (alone,), _ = dataset.load([records[place]])
        assert torch.equal(alone.pixels[0], together.pixels[place])
    assert len({image.tobytes() for image in together.numpy()}) == 6
    assert dataset.load([]) == ([], [])


@torch.no_grad()
def test_an_image_is_its_prompt_and_seed_through_the_model(model: str) -> None:
    dataset = small(model, count=1, first_seed=9, size=48, steps=3, guidance=2.0)
    (images,), _ = dataset.load(dataset.index().records)
    own = load_latent_diffusion(model)
    noise = torch.randn((1, 4, 12, 12), generator=torch.Generator().manual_seed(9))
    decoded = own.autoencoder.decode(own.sample(noise, built_in()[0], Sampling(3, 2.0)))
    expected = np.rint(decoded.clamp(0, 1)[0].permute(1, 2, 0).numpy() * 255)
    assert images.size == (48, 48)
    assert np.array_equal(images.numpy()[0], expected)


def test_a_copy_that_was_pickled_makes_the_same_images_and_nobody_can_write_into_them(model: str) -> None:
    dataset = small(model)
    again = pickle.loads(pickle.dumps(dataset))  # noqa: S301 - our own bytes
    assert again == dataset
    assert again.spec().id == dataset.spec().id
    records = dataset.index().records
    assert again.index().records == records
    (images,), _ = dataset.load(records)
    kept = images.numpy().copy()
    images.pixels.zero_()
    assert np.array_equal(again.load(records)[0][0].numpy(), kept)


def test_a_size_that_the_model_cannot_make_is_answered_with_one_that_it_can(model: str) -> None:
    with pytest.raises(
        DatasetError, match=r"prompts: size 30: .*multiples of 8 pixels: not 30 x 30, .*example 32 x 32"
    ):
        small(model, size=30).index()


def test_no_two_images_begin_as_the_same_noise(model: str) -> None:
    seeds = [r.seed for r in small(model, count=20, per_prompt=3).index().records]
    assert len(set(seeds)) == 60
    rest = [r.seed for r in small(model, count=5, skip=20, per_prompt=3).index().records]
    assert not set(rest) & set(seeds)


# Files --------------------------------------------------------------------------------------------------------------


def test_a_text_file_has_a_prompt_on_each_line(listed: Callable[..., Prompts]) -> None:
    text = "\ufeff# warm ones\n  a dark red photograph \n\norange, light above\r\nred\n"
    records = listed("p.txt", text).index().records
    assert [(r.id, r.caption, r.seed) for r in records] == [
        ("prompt-000", "a dark red photograph", 0),
        ("prompt-001", "orange, light above", 1),
        ("prompt-002", "red", 2),
    ]
    assert listed("p.TXT", text, count=2).index().records == records[:2]
    assert listed("p.txt", text, skip=1, count=1).index().records == records[1:2]
    with pytest.raises(DatasetError, match="skip 3 passes over all 3 prompts"):
        listed("p.txt", text, skip=3).index()


def test_a_table_may_give_seeds_and_ids(listed: Callable[..., Prompts]) -> None:
    table = 'seed,prompt,id\n7,"dark, blue",mine\n,red,\n\n9223372036854775807,red,\n3,red,other\n,blue,many\n'
    records = listed("p.csv", table, per_prompt=2, first_seed=1).index().records
    assert [(r.id, r.caption, r.seed) for r in records] == [
        ("mine", "dark, blue", 7),
        ("prompt-001-0", "red", 3),
        ("prompt-001-1", "red", 4),
        ("prompt-002", "red", 2**63 - 1),
        ("other", "red", 3),
        ("many-0", "blue", 9),
        ("many-1", "blue", 10),
    ]
    assert [r.caption for r in listed("q.csv", "prompt\nred\n").index().records] == ["red"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "text,seed\nred,1\n", r", line 1: the columns are prompt and, .*, not text, seed"),
        ("p.csv", "prompt,sede\nred,1\n", r", line 1: the columns are .*, not prompt, sede"),
        ("p.csv", "", r", line 1: the columns are .*, not none"),
        ("p.csv", "prompt,seed\nred,1\n ,2\n", r", line 3: the prompt is empty"),
        ("p.csv", "prompt,seed\nred,-1\n", r", line 2: a seed is a whole number of 0 to 9223372036854775807, not '-1'"),
        ("p.csv", "prompt,seed\nred,1.5\n", r", line 2: a seed is a whole number"),
        ("p.csv", f"prompt,seed\nred,{2**63}\n", r", line 2: a seed is a whole number"),
        ("p.csv", "prompt,seed\nred,1\nred\n", r", line 3: expected 2 fields; a prompt with a comma stands in quotes"),
        ("p.csv", "prompt,seed\nred,1\ndark, green,1\n", r", line 3: expected 2 fields"),
        ("p.csv", 'prompt\n"red\n', r", line \d: no valid CSV"),
        ("p.csv", "prompt,id,seed\nred,a,1\n\nblue,a,2\n", r", line 4: a stands twice, first in .*, line 2"),
        ("p.csv", "prompt,seed\nred,1\na bleu photograph,2\n", r", line 3: .*the word 'bleu'\. Did you mean 'blue'\?"),
        ("p.txt", "red\n# blue\nbleu\n", r", line 3: .*the word 'bleu'"),
        ("p.txt", "dark bright soft contrasty smooth detailed pale grey pink", r", line 1: .*9 words, .* takes 8"),
        ("p.txt", "# nothing\n\n", r" holds no prompt"),
        ("p.csv", "prompt\n", r" holds no prompt"),
        ("p.txt", b"red\n\xff\xfe\n", r" cannot be read as UTF-8 text"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_that_says_where(
    name: str, content: str | bytes, message: str, listed: Callable[..., Prompts]
) -> None:
    with pytest.raises(DatasetError, match=rf"{re.escape(name)}{message}") as raised:
        listed(name, content).index()
    assert "\n" not in str(raised.value)


def test_an_absent_file_and_another_ending_are_one_line(model: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"no such file of prompts: {re.escape(str(tmp_path))}"):
        Prompts(file=tmp_path / "absent.txt", model=model).index()
    with pytest.raises(SpecError, match=r"prompts\.json: prompts are read from \.txt \(one on each line\) or \.csv"):
        create("dataset", "prompts", {"file": tmp_path / "prompts.json"})
    for wrong in ({"per_prompt": 0}, {"first_seed": -1}, {"solver": "euler"}, {"guidance": -1}, {"steps": 0}):
        with pytest.raises(SpecError, match=f"prompts: {next(iter(wrong))}: input should be"):
            create("dataset", "prompts", wrong)
