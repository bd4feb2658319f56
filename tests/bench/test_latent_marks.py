"""Marks that are born with the image: what they write into the noise, what they read, and the pairs that they make."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest, ncx2

from waterproof.bench.methods.latent.gaussian_shading import GaussianShading
from waterproof.bench.methods.latent.tree_ring import TreeRing
from waterproof.bench.methods.stable_signature.method import StableSignature
from waterproof.bench.methods.stable_signature.users import load_makers
from waterproof.bench.run import run_benchmark
from waterproof.core.errors import ContractError, SpecError, StatisticsError
from waterproof.core.images import Images, Record
from waterproof.core.latent_diffusion import load_latent_diffusion
from waterproof.core.registry import create
from waterproof.core.seeds import Seed
from waterproof.core.weights import save_state
from waterproof.core.words import WordEncoder
from waterproof.datasets.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from waterproof.bench.results import Run

NO_KEY = torch.zeros(0, dtype=torch.bool)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model that reads words: 32 pixels, latents of 4 x 8 x 8."""
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


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def drawn_key(seed: int, bits: int) -> torch.Tensor:
    return torch.randint(0, 2, (bits,), generator=torch.Generator().manual_seed(seed)).bool()


# Gaussian shading ---------------------------------------------------------------------------------------------------


def shading(model: str, **fields: Any) -> GaussianShading:
    return GaussianShading(**{"model": model, "channel_copies": 2, "cell_copies": 4, **fields})


def test_the_payload_has_a_bit_for_each_place_that_is_not_a_copy(model: str) -> None:
    assert GaussianShading(model=model, size=256).bits == 256
    assert shading(model).bits == 2 * 2 * 2
    assert shading(model, channel_copies=4, cell_copies=8).bits == 1
    assert shading(model, channel_copies=1, cell_copies=1).bits == 256


def test_signs_are_the_encrypted_tiled_payload_place_by_place(model: str) -> None:
    mark, start, key = shading(model, secret=7), noise(1, 4, 8, 8), drawn_key(1, 8)
    written = mark.write(start, key)
    stream = Seed.root(7).child("gaussian-shading").numpy().integers(0, 2, (4, 8, 8))
    payload = key.numpy().reshape(2, 2, 2)
    for c in range(4):
        for y in range(8):
            for x in range(8):
                bit = int(payload[c % 2, y % 2, x % 2]) ^ int(stream[c, y, x])
                assert (float(written[0, c, y, x]) > 0) == bool(bit)
    assert torch.equal(written.abs(), start.abs())
    assert torch.equal(start, noise(1, 4, 8, 8))
    assert not torch.equal(shading(model, secret=8).write(start, key), written)


def test_copies_of_a_bit_vote_place_by_place(model: str) -> None:
    mark, seen = shading(model, secret=7), noise(2, 4, 8, 8)
    stream = Seed.root(7).child("gaussian-shading").numpy().integers(0, 2, (4, 8, 8))
    votes = np.zeros((2, 2, 2))
    for c in range(4):
        for y in range(8):
            for x in range(8):
                votes[c % 2, y % 2, x % 2] += 2 * (int(seen[0, c, y, x] > 0) ^ int(stream[c, y, x])) - 1
    np.testing.assert_allclose(mark.votes(seen)[0].numpy(), votes.ravel() / 32, atol=1e-6)


def test_exact_noise_gives_the_key_back_and_so_does_noise_with_a_fifth_of_its_signs_turned(model: str) -> None:
    mark = GaussianShading(model=model, size=256)
    starts = torch.cat([noise(seed, 4, 64, 64) for seed in range(8)])
    keys = torch.stack([drawn_key(seed, 256) for seed in range(8)])
    written = torch.cat([mark.write(one[None], key) for one, key in zip(starts, keys, strict=True)])
    votes = mark.votes(written)
    assert torch.equal(votes, 2 * keys.float() - 1)
    turned = torch.rand(written.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    votes = mark.votes(torch.where(turned, -written, written))
    assert torch.equal(votes > 0, keys)
    assert abs(float(votes.abs().mean()) - 0.6) < 0.02
    # Who has another secret reads chance.
    stranger = GaussianShading(model=model, size=256, secret=1)
    assert 0.4 < float(((stranger.votes(written) > 0) == keys).float().mean()) < 0.6


def test_with_a_payload_of_its_own_for_each_image_marked_noise_is_standard_normal(model: str) -> None:
    mark = shading(model)
    starts = [noise(seed, 4, 8, 8) for seed in range(600)]
    written = torch.cat([mark.write(start, drawn_key(seed, 8)) for seed, start in enumerate(starts)])
    assert torch.equal(written.abs(), torch.cat(starts).abs())
    values = written.double().numpy()
    assert kstest(values.ravel(), "norm").pvalue > 0.01
    # 256 places: the farthest mean and variance of as many, each within five standard errors.
    assert float(np.abs(values.mean(axis=0)).max()) < 5 / 600**0.5
    assert float(np.abs(values.var(axis=0) - 1).max()) < 5 * (2 / 600) ** 0.5
    assert len({row.tobytes() for row in values > 0}) > 200


def test_images_of_one_payload_share_all_their_signs(model: str) -> None:
    mark, key = shading(model), drawn_key(0, 8)
    signs = [mark.write(noise(seed, 4, 8, 8), key) > 0 for seed in range(3)]
    assert torch.equal(signs[0], signs[1])
    assert torch.equal(signs[0], signs[2])
    assert 0.4 < float(signs[0].float().mean()) < 0.6


# Tree ring ----------------------------------------------------------------------------------------------------------


def rings(height: int, width: int, radius: int, secret: int) -> dict[tuple[int, int], float]:
    """The key by frequency (row, column), zero in the middle."""
    drawn = Seed.root(secret).child("tree-ring", radius).numpy().standard_normal(radius + 1)
    key = {}
    for v in range(-(height // 2), height - height // 2):
        for u in range(-(width // 2), width - width // 2):
            ring = next((i for i in range(1, radius + 1) if i - 1 < (v * v + u * u) ** 0.5 <= i or v == u == 0), None)
            if ring is not None:
                key[v, u] = float(drawn[ring]) * (height * width / 2) ** 0.5
    return key


@pytest.mark.parametrize(("height", "width", "radius"), [(64, 64, 10), (33, 48, 7)])
def test_rings_are_in_the_spectrum_of_one_channel_and_nothing_else_changes(
    height: int, width: int, radius: int
) -> None:
    mark, start = TreeRing(radius=radius, channel=2, secret=5), noise(3, 4, height, width)
    written = mark.write(start, NO_KEY)
    assert torch.equal(written[:, [0, 1, 3]], start[:, [0, 1, 3]])
    wanted = np.fft.fft2(start[0, 2].double().numpy())
    key = rings(height, width, radius, 5)
    outside = float((np.abs(wanted) ** 2).sum()) - sum(abs(wanted[f]) ** 2 for f in key)
    for frequency, value in key.items():
        wanted[frequency] = value
    back = np.fft.ifft2(wanted)
    # The key is real and the same at f and -f: nothing is lost by taking the real part.
    assert float(np.abs(back.imag).max()) < 1e-12
    np.testing.assert_allclose(written[0, 2].numpy(), back.real, atol=1e-6)
    found = np.fft.fft2(written[0, 2].double().numpy())
    np.testing.assert_allclose([found[f] for f in key], list(key.values()), atol=1e-3)
    energy = (outside + sum(value**2 for value in key.values())) / (height * width)
    np.testing.assert_allclose(float(written[0, 2].double().square().sum()), energy, rtol=1e-6)


def test_a_ring_has_half_the_variance_of_what_it_replaces() -> None:
    squares = [next(iter(rings(24, 24, 1, secret).values())) ** 2 / (24 * 24) for secret in range(400)]
    assert abs(np.mean(squares) - 0.5) < 0.1
    white = np.fft.fft2(np.random.default_rng(0).standard_normal((400, 24, 24)))
    assert abs(np.mean(np.abs(white[:, 0, 1]) ** 2) / (24 * 24) - 1) < 0.1


def test_the_score_is_the_mean_distance_from_the_key_over_the_disc() -> None:
    mark = TreeRing(radius=6, secret=5)
    key = rings(32, 32, 6, 5)
    plain = torch.cat([noise(seed, 4, 32, 32) for seed in range(40)])
    for one, score in zip(plain.double().numpy(), mark.compare(plain).tolist(), strict=True):
        spectrum = np.fft.fft2(one[3])
        assert score == pytest.approx(-np.mean([abs(spectrum[f] - key[f]) for f in key]) / 32, rel=1e-9)
    marked = torch.cat([mark.write(one[None], NO_KEY) for one in plain])
    assert mark.compare(marked).dtype == torch.float64
    assert float(mark.compare(marked).min()) > -1e-4
    assert float(mark.compare(plain).max()) < -0.7
    assert abs(float(mark.compare(plain).mean()) + 1) < 0.25
    assert float(TreeRing(radius=6, secret=6).compare(marked).max()) < -0.5


def test_the_published_p_value_is_that_of_the_paper_and_no_p_value() -> None:
    plain = torch.randn(3000, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    spectra = np.fft.fft2(plain[:20, 0].double().numpy())
    # The key's energy decides which way it errs: the rings of secret 2 are strong, those of secret 8 weak.
    for secret, low, high in ((2, 0.02, 0.05), (8, 0.0, 0.005)):
        mark = TreeRing(statistic="chi-square", channel=0, secret=secret)
        p = 10 ** -mark.compare(plain).numpy()
        key = rings(64, 64, 10, secret)
        values = np.array(list(key.values()))
        for spectrum, found in zip(spectra, p, strict=False):
            seen = np.array([spectrum[f] for f in key])
            variance = np.concatenate([seen.real, seen.imag]).var(ddof=1)
            distance = float((np.abs(seen - values) ** 2).sum() / variance)
            wanted = float(ncx2.cdf(distance, 2 * len(key), (values**2).sum() / variance))
            assert found == pytest.approx(wanted, rel=1e-6)
        share = float((p < 0.01).mean())
        said = f"secret {secret}: {share:.4f} of the p-values of ideal, unmarked noise are below .01"
        assert low < share < high or share == low, said
        assert kstest(p, "uniform").pvalue < 1e-6, said
        marked = torch.cat([mark.write(one[None], NO_KEY) for one in plain[:3]])
        assert float(mark.compare(marked).min()) > 100


# Images -------------------------------------------------------------------------------------------------------------


def listed(model: str, **fields: Any) -> Images:
    """Unmarked images of two prompts."""
    dataset = Prompts(**{"model": model, "count": 2, "steps": 3, **fields})
    (images,), _ = dataset.load(dataset.index().records)
    return images


@pytest.mark.parametrize("name", ["tree-ring", "gaussian-shading"])
def test_a_pair_is_one_seed_with_and_without_the_mark(name: str, model: str) -> None:
    images = listed(model, per_prompt=2)
    own = {"tree-ring": {"radius": 3}, "gaussian-shading": {"cell_copies": 4}}[name]
    mark: Any = create("method", name, {"model": model, "steps": 3, **own})
    keys = torch.stack([drawn_key(i, mark.bits) for i in range(4)])
    blank = images.with_pixels(np.zeros_like(images.numpy()))
    pair = mark.mark(blank, keys, Seed.root(0))
    assert torch.equal(pair.unmarked.pixels, images.pixels)
    assert pair.marked.records == pair.unmarked.records == images.records
    assert not torch.equal(pair.marked.pixels, pair.unmarked.pixels)
    assert torch.equal(mark.embed(blank, keys, Seed.root(1)).pixels, pair.marked.pixels)
    load_latent_diffusion(model)._latents.clear()
    for i in (3, 1):
        alone = mark.mark(images.take([i]), keys[i : i + 1], Seed.root(9))
        assert torch.equal(alone.marked.pixels[0], pair.marked.pixels[i])
    diffusion = load_latent_diffusion(model)
    written = mark.write(diffusion.noise(images.records[0].seed), keys[0])
    with torch.no_grad():
        latent = diffusion.sample(written, images.records[0].caption, mark.sampling)
        direct = Images.from_float(diffusion.autoencoder.decode(latent), images.records[:1])
    assert torch.equal(direct.pixels[0], pair.marked.pixels[0])
    # Other settings than the dataset's give other images.
    changed = mark.model_copy(update={"guidance": 1.5})
    assert not torch.equal(changed.mark(images, keys, Seed.root(0)).unmarked.pixels, images.pixels)


@pytest.mark.parametrize("name", ["tree-ring", "gaussian-shading"])
def test_images_of_any_size_are_brought_to_the_size_that_is_read_one_by_one(name: str, model: str) -> None:
    images = listed(model, size=48)
    own = {"tree-ring": {"radius": 3}, "gaussian-shading": {"cell_copies": 4}}[name]
    mark: Any = create("method", name, {"model": model, **own})
    evidence = mark.decode(images)
    values = evidence.score if name == "tree-ring" else evidence.logits
    assert values.shape == ((2,) if name == "tree-ring" else (2, 16))
    for i in range(2):
        alone = mark.decode(images.take([i]))
        assert torch.equal((alone.score if name == "tree-ring" else alone.logits)[0], values[i])
    diffusion = load_latent_diffusion(model)
    square = torch.nn.functional.interpolate(images.float()[:1], (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.no_grad():
        found = diffusion.invert(diffusion.autoencoder.encode(square), 10)
    expected = mark.compare(found) if name == "tree-ring" else mark.votes(found)
    torch.testing.assert_close(expected[0], values[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tree-ring", "gaussian-shading", "stable-signature"])
def test_images_without_a_prompt_or_a_seed_cannot_be_made(name: str, model: str) -> None:
    own: dict[str, Any] = {
        "tree-ring": {"model": model, "radius": 3},
        "gaussian-shading": {"model": model, "cell_copies": 4},
        "stable-signature": {"mode": "generate"},
    }[name]
    mark: Any = create("method", name, own)
    key = torch.tensor([[bit == "1" for bit in mark.users[0]]]) if mark.users else drawn_key(0, mark.bits)[None]
    full = Record("mine", caption="red", seed=3)
    for record in (replace(full, seed=None), replace(full, caption=None)):
        images = Images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), (record,))
        with pytest.raises(
            ContractError, match="needs a prompt and a seed for each, which image mine has not: use the"
        ):
            mark.mark(images, key, Seed.root(0))
    images = Images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), (replace(full, caption="", seed=0),))
    assert len(mark.model_copy(update={"steps": 1}).mark(images, key, Seed.root(0)).marked) == 1


def test_images_of_another_size_than_is_read_cannot_be_made(model: str) -> None:
    images = listed(model, size=48)
    mark = TreeRing(model=model, radius=3)
    with pytest.raises(
        ContractError, match="reads marks at 32 x 32 pixels and cannot make images of 48 x 48: set 'size'"
    ):
        mark.mark(images, NO_KEY[None].expand(2, 0), Seed.root(0))
    larger = mark.model_copy(update={"size": 48, "radius": 5, "steps": 3})
    assert torch.equal(larger.mark(images, NO_KEY[None].expand(2, 0), Seed.root(0)).unmarked.pixels, images.pixels)


def test_fields_that_do_not_fit_the_latent_are_one_line(model: str) -> None:
    start = noise(0, 4, 8, 8)
    for fields in ({"radius": 4}, {"radius": 3, "channel": 9}):
        with pytest.raises(ContractError, match=r"radius \d do not fit latents of 4 x 8 x 8: channels count from 0"):
            TreeRing(model=model, **fields).write(start, NO_KEY)
    for fields in ({"channel_copies": 3}, {"cell_copies": 3}, {"cell_copies": 16}):
        with pytest.raises(ContractError, match="must divide the latent, 4 x 8 x 8"):
            _ = shading(model, **fields).bits
    for name, wrong in (("tree-ring", {"radius": 0}), ("gaussian-shading", {"cell_copies": 0})):
        with pytest.raises(SpecError, match="greater than or equal to 1"):
            create("method", name, wrong)


def test_identity_holds_the_model_and_not_its_place(model: str, tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(model, tmp_path / "moved")
    mark, again = TreeRing(model=model), TreeRing(model=str(moved))
    assert mark.spec().id == again.spec().id
    assert again.label == "tree-ring(model=moved)"
    assert mark.spec().id != TreeRing().spec().id
    assert mark.digests() == {"model": load_latent_diffusion(model).digest}
    absent = TreeRing(model=str(tmp_path / "absent"))
    assert "there is no such folder" in str(absent.unavailable())
    assert absent.digests() == {}


def test_the_shipped_model_makes_marks_that_are_read_from_its_images() -> None:
    settings: dict[str, Any] = {"steps": 5}
    dataset = Prompts(count=2, **settings)
    records = dataset.index().records
    blank = Images(torch.zeros(2, 3, 256, 256, dtype=torch.uint8), records)
    shade, ring = GaussianShading(**settings), TreeRing(**settings)
    assert shade.bits == 256
    keys = torch.stack([drawn_key(i, 256) for i in range(2)])
    pair = shade.mark(blank, keys, Seed.root(0))
    logits = shade.decode(pair.marked).logits
    assert logits is not None
    assert float(((logits > 0) == keys).float().mean()) > 0.9
    rung = ring.mark(blank, NO_KEY[None].expand(2, 0), Seed.root(0))
    assert torch.equal(rung.unmarked.pixels, pair.unmarked.pixels)
    marked, plain = ring.decode(rung.marked).score, ring.decode(rung.unmarked).score
    assert marked is not None
    assert plain is not None
    assert bool((marked > plain).all())


# Stable Signature over made latents ---------------------------------------------------------------------------------


@torch.no_grad()
def test_decoders_of_users_make_their_images_from_the_same_latents() -> None:
    images = listed("shipped", size=64, steps=2, per_prompt=2)
    mark = StableSignature(mode="generate", steps=2)
    assert mark.unavailable() is None
    keys = torch.tensor([[bit == "1" for bit in mark.users[i]] for i in (2, 0, 2, 1)])
    pair = mark.mark(images.with_pixels(np.zeros_like(images.numpy())), keys, Seed.root(0))
    assert torch.equal(pair.unmarked.pixels, images.pixels)
    makers, diffusion = load_makers("shipped", None, None), load_latent_diffusion("shipped")
    record = images.records[1]
    latent = diffusion.sample(diffusion.noise(record.seed or 0, (64, 64)), record.caption or "", mark.sampling)
    direct = Images.from_float(makers.marked(mark.users[0]).decode(latent), [record])
    assert torch.equal(pair.marked.pixels[1], direct.pixels[0])
    assert not torch.equal(pair.marked.pixels, pair.unmarked.pixels)
    assert mark.digests()["model"] == diffusion.digest
    assert "model" not in StableSignature().digests()
    assert mark.spec().id != StableSignature(steps=2).spec().id


def test_a_model_over_another_autoencoder_than_the_decoders_is_a_reason(model: str) -> None:
    mark = StableSignature(mode="generate", model=model)
    assert "makes latents of another autoencoder than the decoders were fine-tuned from" in str(mark.unavailable())
    assert StableSignature(model=model).unavailable() is None


# Decisions of scores beside those of payloads -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tiny: Callable, awkward: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A mark with a payload under theory, and one without under a certified threshold."""
    benchmark = tiny(
        dataset={"deadleaves": {"count": 24}},
        methods=[awkward("Presence"), "dwt-dct"],
        attacks=["identity"],
        metrics=[],
        decision={"fpr": 1e-3, "rule": "theory", "calibration": 0.5, "scores": {"rule": "certified", "fpr": 0.4}},
        runtime={"shard": 12},
    )
    return run_benchmark(benchmark, tmp_path_factory.mktemp("mixed") / "run")


def rule_of(frame: Any) -> dict[str, tuple[str, float]]:
    return {row.method: (row.rule, row.alpha) for row in frame.itertuples()}


def test_scores_and_payloads_are_each_decided_by_their_rule(mixed: Run) -> None:
    summary = mixed.summary().set_index("method")
    assert rule_of(mixed.summary()) == {"presence": ("certified", 0.4), "dwt-dct": ("theory", 1e-3)}
    values = mixed.sample("presence", "identity", "unmarked").calibration()[0]
    certified = mixed.summary(rule="certified", fpr=0.4).set_index("method")
    assert summary.loc["presence", "threshold"] == certified.loc["presence", "threshold"]
    assert summary.loc["presence", "threshold"] >= np.quantile(values, 0.6)
    assert (
        summary.loc["dwt-dct", "threshold"]
        == mixed.summary(rule="theory").set_index("method").loc["dwt-dct", "threshold"]
    )
    for method in mixed.methods:
        flags = mixed.sample(method, "identity", "marked").tested()[0] >= summary.loc[method, "threshold"]
        assert summary.loc[method, "tpr"] == pytest.approx(flags.mean())
        assert "no payload" not in summary.loc[method, "note"]


def test_who_names_a_rule_or_a_threshold_means_every_method(mixed: Run) -> None:
    assert rule_of(mixed.summary(fpr=1e-2)) == {"presence": ("certified", 0.4), "dwt-dct": ("theory", 1e-2)}
    assert set(rule_of(mixed.summary(rule="certified", fpr=0.3)).values()) == {("certified", 0.3)}
    decided = mixed.decision()
    assert decided.of(32) is decided
    assert decided.scores is not None
    assert (decided.of(0), decided.scores.sided, decided.scores.level) == (decided.scores, "one", 0.95)
    assert mixed.decision(threshold=3.0).of(0).threshold == 3.0
    theory = mixed.summary(rule="theory").set_index("method")
    assert "has no payload, so no theory gives its threshold" in theory.loc["presence", "note"]


def test_reports_say_both_rules(mixed: Run) -> None:
    from waterproof.reports import words

    assert words.rule(mixed) == "FPR 0.001, threshold by theory (presence: FPR 0.4, certified)"
    assert words.rule(mixed.deciding(rule="certified", fpr=0.3)) == "FPR 0.3, threshold by certified"


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"rule": "theory"}, "'certified', 'extrapolated' or 'fixed'"),
        ({"rule": "fixed"}, "the rule 'fixed' and a threshold go together"),
        ({"threshold": 1.0}, "the rule 'fixed' and a threshold go together"),
        ({"fpr": 0}, "greater than 0"),
        ({"alpha": 0.1}, "alpha"),
    ],
)
def test_a_rule_for_scores_that_cannot_be_is_refused(tiny: Callable, scores: dict[str, Any], message: str) -> None:
    with pytest.raises((SpecError, StatisticsError), match=message):
        tiny(decision={"scores": scores})
