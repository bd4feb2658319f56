"""Edits: the same draws for an image and its protected version, whatever stands beside it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from skimage import data

from waterproof.bench import editing
from waterproof.bench.editing import Editor, EditSimilarity, similarities
from waterproof.bench.metrics import Ssim
from waterproof.core import effort
from waterproof.core.errors import UserError
from waterproof.core.images import Images, Record
from waterproof.core.latent_diffusion import Sampling, load_latent_diffusion
from waterproof.core.registry import create
from waterproof.core.seeds import Seed

EDITOR: dict[str, Any] = {"name": "image-to-image", "params": {"steps": 4}}


@pytest.fixture(scope="module")
def pictures() -> Images:
    crops = np.stack([data.astronaut()[40:104, 180:244], data.coffee()[150:214, 250:314]])
    return Images.from_numpy(crops, [Record("a"), Record("b")])


def editor(name: str = "image-to-image", **params: Any) -> Editor:
    return cast("Editor", create("editor", name, params))


def test_an_edit_is_noise_to_a_share_of_the_way_and_back_with_the_prompt(pictures: Images) -> None:
    seed, model = Seed.root(3), load_latent_diffusion("shipped")
    found = editor(steps=6, strength=0.5, guidance=2.0).edit(pictures.take([0]), "dark blue", seed)
    with torch.no_grad():
        latent = model.autoencoder.encode(pictures.take([0]).float())
        noise = torch.randn(latent.shape, generator=seed.child("a").torch())
        edited = model.edit(latent, "dark blue", noise, 0.5, Sampling(6, 2.0))
        wanted = Images.from_float(model.autoencoder.decode(edited), [Record("a")])
    assert torch.equal(found.pixels, wanted.pixels)


@pytest.mark.parametrize("name", ["image-to-image", "reconstruction"])
def test_an_image_is_edited_alike_alone_and_in_any_batch(name: str, pictures: Images) -> None:
    tool = editor(name, **(EDITOR["params"] if name == "image-to-image" else {}))
    together = tool.edit(pictures, "dark", Seed.root(1))
    alone = tool.edit(pictures.take([1]), "dark", Seed.root(1))
    turned = tool.edit(pictures.take([1, 0]), "dark", Seed.root(1))
    assert torch.equal(together.pixels[1], alone.pixels[0])
    assert torch.equal(together.pixels, turned.pixels[[1, 0]])
    other = tool.edit(pictures, "dark", Seed.root(2))
    assert torch.equal(together.pixels, other.pixels) is not tool.seeded


def test_the_similarity_is_that_of_two_edits_with_one_draw_and_is_remembered(
    pictures: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = pictures.with_pixels(np.clip(pictures.numpy().astype(int) + 20, 0, 255).astype(np.uint8))
    metric = EditSimilarity(editor=EDITOR, prompt="pale", seed=5)
    editing._edits.clear()
    values = metric.compare(noisy, metric.prepare(pictures))
    tool, seed = editor(**EDITOR["params"]), Seed.root(5).child("edit")
    edits = [tool.edit(images, "pale", seed) for images in (noisy, pictures)]
    np.testing.assert_array_equal(values, Ssim().compare(edits[0], Ssim().prepare(edits[1])))
    # Asked again, nothing is edited again; more than may be kept changes no value either.
    monkeypatch.setattr(type(tool), "edit", lambda *_: pytest.fail("edited again"))
    np.testing.assert_array_equal(metric.compare(noisy, metric.prepare(pictures)), values)
    monkeypatch.undo()
    monkeypatch.setattr(editing, "_REMEMBERED", 1)
    np.testing.assert_array_equal(metric.compare(noisy, metric.prepare(pictures)), values)


def test_a_floor_compares_two_draws_of_one_image(pictures: Images) -> None:
    same = EditSimilarity(editor=EDITOR, seed=0)
    floor = EditSimilarity(editor=EDITOR, seed=0, other_seed=1)
    assert (same.floor, floor.floor) == (False, True)
    np.testing.assert_allclose(same.compare(pictures, same.prepare(pictures)), 1.0)
    assert (floor.compare(pictures, floor.prepare(pictures)) < 0.95).all()


def test_every_prompt_and_seed_is_compared_and_each_seed_has_its_floor() -> None:
    found = list(similarities(EDITOR, ["dark", "pale"], 3, ["ssim", "psnr"]))
    assert len(found) == 2 * 2 * (3 + 3)
    assert len({metric.label for metric in found}) == len(found)
    assert len({metric.spec().id for metric in found}) == len(found)
    floors = {(m.prompt, m.seed, m.other_seed) for m in found if m.floor}
    assert floors == {(prompt, seed, (seed + 1) % 3) for prompt in ("dark", "pale") for seed in range(3)}
    alone = list(similarities({"name": "reconstruction", "params": {}}, ["dark", "pale"], 3, ["ssim"]))
    assert [(m.prompt, m.seed, m.floor) for m in alone] == [("", 0, False)]
    assert not any(m.floor for m in similarities(EDITOR, ["dark"], 1, ["ssim"]))


def test_an_edit_of_less_than_one_step_is_refused_and_every_evaluation_is_counted(pictures: Images) -> None:
    with pytest.raises(UserError, match="of 5 steps is less than one step"):
        editor(strength=0.1, steps=5)
    with effort.measured() as spent:
        editor(strength=0.5, steps=4, guidance=3.0).edit(pictures, "dark", Seed.root(0))
    # Encoder and decoder, and two steps of two evaluations each, for two images.
    assert spent.evaluations == 2 * (2 + 2 * 2)
