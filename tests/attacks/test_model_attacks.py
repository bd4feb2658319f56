"""Attacks on the model: the arithmetic on weights against NumPy, and one training step against plain tensors."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from waterproof.attacks.base import Access, ModelAttack
from waterproof.attacks.model import (
    AverageDecoders,
    FineTuneDecoder,
    FineTuneDiffusion,
    PruneDecoder,
    QuantiseDecoder,
    SwapDecoder,
)
from waterproof.core.autoencoders import Autoencoder, load_autoencoder
from waterproof.core.errors import ContractError, SpecError
from waterproof.core.latent_diffusion import LatentDiffusion
from waterproof.core.registry import create
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from waterproof.core.images import Images

SEED = Seed.root(2)
RATE, DECAY, EPSILON = 1e-3, 0.01, 1e-8
"""AdamW's own weight decay and epsilon, and a learning rate for the tests."""
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

State = dict[str, np.ndarray]


def toy(seed: int) -> Autoencoder:
    """A random autoencoder of Stable Diffusion's kind, two pixels to a latent cell."""
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoencoderKL(
            block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, mid_block_add_attention=False, **kinds
        )
    return Autoencoder(model, "kl", 2, 4, 0.5, 0.0, f"toy {seed}")


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return toy(0)


@pytest.fixture(scope="module")
def shipped() -> Autoencoder:
    return load_autoencoder("shipped")


@pytest.fixture(scope="module")
def pictures(photographs: Images) -> Images:
    """Three pieces of photographs, 32 x 32."""
    return photographs.with_pixels(np.ascontiguousarray(photographs.numpy()[:, 100:132, 90:122]))


def first(images: Images) -> Callable[[int], Images]:
    return lambda count: images.take(range(count))


def change(attack: ModelAttack, seed: Seed = SEED, **handles: Any) -> Autoencoder:
    return attack.change_decoder(Access(**handles).only_for(attack), seed)


def decoder(model: Autoencoder) -> State:
    """Copies of the decoder's weights."""
    parts = model.decoder_modules().items()
    return {f"{n}.{k}": t.detach().numpy().copy() for n, part in parts for k, t in part.state_dict().items()}


def everything(module: torch.nn.Module) -> State:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def assert_close(one: State, other: State, atol: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], atol=atol, rtol=0, err_msg=name)


def differ(one: State, other: State) -> bool:
    return any(not np.array_equal(value, other[name]) for name, value in one.items())


@torch.no_grad()
def through(model: Autoencoder, images: Images) -> torch.Tensor:
    return model.reconstruct(images.float())


def encoder_of(model: Autoencoder) -> State:
    names = ("encoder.", "quant_conv.")
    return {name: value for name, value in everything(model.model).items() if name.startswith(names)}


@pytest.fixture
def untouched() -> Any:
    """Checks that nobody moved a global random state."""
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore[index] # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index] # noqa: NPY002
    assert random.getstate() == before[2]


# Rounded, pruned, averaged, swapped ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_few_bits_are_whole_numbers_times_a_scale_for_each_output_channel(shipped: Autoencoder, bits: int) -> None:
    before, after = decoder(shipped), decoder(change(QuantiseDecoder(bits=bits), model=shipped))
    most = 2 ** (bits - 1) - 1
    for name, weight in before.items():
        if weight.ndim < 2:
            np.testing.assert_array_equal(after[name], weight)
            continue
        for channel, mine in enumerate(weight):
            step = np.abs(mine).max() / np.float32(most)
            np.testing.assert_allclose(after[name][channel], np.rint(mine / step) * step, rtol=1e-6, atol=1e-9)
            assert np.abs(after[name][channel] - mine).max() <= step / 2 * (1 + 1e-5)
            assert len(np.unique(after[name][channel])) <= 2**bits - 1


def test_sixteen_bits_are_half_precision(model: Autoencoder) -> None:
    before, after = decoder(model), decoder(change(QuantiseDecoder(bits=16), model=model))
    assert_equal(after, {name: weight.astype(np.float16).astype(np.float32) for name, weight in before.items()})
    assert differ(before, after)


def test_a_channel_of_zeros_stays_zero() -> None:
    own = toy(5)
    own.model.get_parameter("decoder.conv_in.weight").data[1] = 0
    assert not decoder(change(QuantiseDecoder(bits=3), model=own))["decoder.conv_in.weight"][1].any()


def test_fewer_bits_are_further_from_the_marked_image(shipped: Autoencoder, pictures: Images) -> None:
    plain = through(shipped, pictures)
    attacks = [QuantiseDecoder(bits=bits) for bits in (16, 8, 6, 4, 3)]
    errors = [float((through(change(a, model=shipped), pictures) - plain).square().mean()) for a in attacks]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5 < errors[-1]


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_bits_between_eight_and_sixteen_are_refused(bits: int) -> None:
    with pytest.raises(SpecError, match="weights have 16 bits, or 2 to 8"):
        create("attack", "quantise-decoder", {"bits": bits})


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7])
def test_pruning_zeroes_the_smallest_weights_of_each_tensor(model: Autoencoder, share: float) -> None:
    before, after = decoder(model), decoder(change(PruneDecoder(share=share), model=model))
    for name, weight in before.items():
        count = int(share * weight.size)
        expected = weight.copy()
        if weight.ndim > 1 and count:
            limit = np.partition(np.abs(weight).ravel(), count - 1)[count - 1]
            expected[np.abs(weight) <= limit] = 0
            # Random weights are next to never equal, so no more than the share goes.
            assert count <= (after[name] == 0).sum() <= count + 1
        np.testing.assert_array_equal(after[name], expected)


@pytest.mark.parametrize("users", [2, 3])
def test_averaged_decoders_have_the_mean_weights(users: int) -> None:
    models = [toy(seed) for seed in range(4)]
    asked: list[int] = []

    def others(count: int) -> Sequence[Autoencoder]:
        asked.append(count)
        return models[1 : 1 + count]

    after = decoder(change(AverageDecoders(users=users), model=models[0], others=others))
    states = [decoder(one) for one in models[:users]]
    expected = {name: np.mean([state[name].astype(np.float64) for state in states], axis=0) for name in after}
    assert_close(after, expected, 1e-7)
    assert asked == [users - 1]


def test_the_decoder_of_one_user_alone_is_averaged_to_itself(model: Autoencoder) -> None:
    assert_equal(decoder(change(AverageDecoders(users=1), model=model, others=lambda count: [])), decoder(model))


def test_the_swapped_decoder_makes_the_originals_images(pictures: Images) -> None:
    marked, original = toy(0), toy(1)
    swapped = change(SwapDecoder(), model=marked, original=original)
    assert torch.equal(through(swapped, pictures), through(original, pictures))
    assert not torch.allclose(through(swapped, pictures), through(marked, pictures))


@pytest.mark.parametrize(
    "attack", [QuantiseDecoder(bits=3), PruneDecoder(share=0.5), AverageDecoders(users=2), FineTuneDecoder(steps=2)]
)
def test_the_owners_model_and_the_encoder_stay_as_they_are(
    attack: ModelAttack, pictures: Images, untouched: None
) -> None:
    model, other = toy(0), toy(1)
    before = everything(model.model)
    attacked = change(attack, model=model, others=lambda count: [other], clean=lambda count: pictures)
    assert differ(decoder(attacked), decoder(model))
    assert_equal(everything(model.model), before)
    assert_equal(encoder_of(attacked), encoder_of(model))
    for one in (model, attacked):
        assert not any(weight.requires_grad for weight in one.model.parameters())
        assert not one.model.training


@pytest.mark.parametrize(
    "attack",
    [FineTuneDecoder(), FineTuneDecoder(original=True), SwapDecoder(), AverageDecoders(), QuantiseDecoder()],
)
def test_an_attack_on_a_decoder_without_its_handles_says_what_it_must_know(attack: ModelAttack) -> None:
    with pytest.raises(ContractError, match=f"was not given what it must know.*{min(attack.knowledge)}"):
        change(attack)


def test_an_attack_on_the_other_part_leaves_the_model_as_it_is(model: Autoencoder) -> None:
    assert change(FineTuneDiffusion(), model=model) is model
    diffusion = denoiser()
    assert SwapDecoder().change_diffusion(diffusion, Access(), SEED) is diffusion
    with pytest.raises(ContractError, match="was given no model"):
        change(FineTuneDiffusion())


# The decoder fine-tuned ---------------------------------------------------------------------------------------------


def small(**changes: Any) -> FineTuneDecoder:
    return FineTuneDecoder(**{"images": 3, "crop": 16, "batch": 2, "learning_rate": RATE, "steps": 3, **changes})


@pytest.mark.parametrize("original", [False, True])
def test_fine_tuning_brings_the_images_closer_to_the_target(original: bool, pictures: Images, untouched: None) -> None:
    model, other = toy(0), toy(1)
    wanted = through(other, pictures) if original else pictures.float()
    attack = small(steps=60, learning_rate=5e-3, original=original)
    attacked = change(attack, model=model, original=other, clean=first(pictures))
    before, after = (float((through(one, pictures) - wanted).square().mean()) for one in (model, attacked))
    assert after < 0.8 * before


def test_fine_tuning_is_decided_by_the_seed(model: Autoencoder, pictures: Images) -> None:
    seeds = (SEED, Seed.root(2), Seed.root(3))
    one, again, other = (decoder(change(small(), seed, model=model, clean=first(pictures))) for seed in seeds)
    assert_equal(one, again)
    assert differ(one, other)


def test_crops_are_cut_from_the_images_and_more_steps_begin_with_the_same_ones(
    model: Autoencoder, pictures: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    encode = Autoencoder.encode

    def watched(self: Autoencoder, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return encode(self, images)

    monkeypatch.setattr(Autoencoder, "encode", watched)
    for steps in (1, 3):
        change(small(steps=steps), model=model, clean=first(pictures))
    assert len(seen) == 1 + 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    windows = pictures.float().unfold(2, 16, 1).unfold(3, 16, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 16, 16)
    for crop in torch.cat(seen):
        assert (windows == crop).flatten(1).all(dim=1).any()


def test_no_step_changes_no_image(model: Autoencoder, pictures: Images) -> None:
    attacked = change(small(steps=0), model=model, clean=first(pictures))
    assert torch.equal(through(attacked, pictures), through(model, pictures))


def test_only_the_images_that_the_adversary_has_are_used(model: Autoencoder, pictures: Images) -> None:
    """Two of three, whatever the third shows."""
    changed = pictures.with_pixels(np.concatenate([pictures.numpy()[:2], 255 - pictures.numpy()[2:]]))
    found = [decoder(change(small(images=2), model=model, clean=first(images))) for images in (pictures, changed)]
    assert_equal(*found)


def adam_step(weight: torch.Tensor, gradient: torch.Tensor) -> np.ndarray:
    """AdamW's first step, after Loshchilov and Hutter: the moments, corrected for their start, are the gradient's."""
    stepped = weight * (1 - RATE * DECAY) - RATE * gradient / (gradient.abs() + EPSILON)
    return stepped.detach().numpy()


@pytest.mark.parametrize("original", [False, True])
def test_one_step_of_fine_tuning_is_that_of_plain_tensors(pictures: Images, original: bool) -> None:
    one = pictures.take([0])
    attacked = change(
        small(steps=1, images=1, crop=64, batch=1, original=original),
        model=toy(0), original=toy(1), clean=first(one),
    )  # fmt: skip
    by_hand, values = toy(0), one.float()
    latent = by_hand.encode(values)
    wanted = toy(1).decode(latent) if original else values
    parameters = {
        n: p.requires_grad_(True) for n, p in by_hand.model.named_parameters() if "decoder" in n or "post" in n
    }
    loss = (by_hand.decode(latent) - wanted).pow(2).sum() / wanted.numel()
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    expected = {n: adam_step(p, g) for (n, p), g in zip(parameters.items(), gradients, strict=True)}
    # Where a gradient is next to nothing its direction is the rounding's; such weights are few.
    firm = {n: g.abs().numpy() > 1e-6 for n, g in zip(parameters, gradients, strict=True)}
    assert np.mean(np.concatenate([f.ravel() for f in firm.values()])) > 0.9
    after = decoder(attacked)
    assert after.keys() == expected.keys()
    for name, weight in after.items():
        np.testing.assert_allclose(weight[firm[name]], expected[name][firm[name]], atol=3e-7, err_msg=name)


# The diffusion fine-tuned -------------------------------------------------------------------------------------------


class Wordless:
    """Every prompt means the same."""

    digest = "wordless"

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.full((len(prompts), 2, 16), 0.1)


def denoiser(prediction: str = "epsilon") -> LatentDiffusion:
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        unet = diffusers.UNet2DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            cross_attention_dim=16, norm_num_groups=4, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
    return LatentDiffusion(unet, toy(0), Wordless(), SCHEDULE | {"prediction_type": prediction}, "toy", "digest")


def tuned(model: LatentDiffusion, held: Images, seed: Seed = SEED, **changes: Any) -> LatentDiffusion:
    attack = FineTuneDiffusion(**{"steps": 2, "images": 2, "batch": 2, "learning_rate": RATE, **changes})
    access = Access(model=model.autoencoder, clean=first(held)).only_for(attack)
    return attack.change_diffusion(model, access, seed)


def test_fine_tuning_the_diffusion_changes_its_network_alone_and_only_in_the_copy(
    pictures: Images, untouched: None
) -> None:
    model = denoiser()
    unet, autoencoder = everything(model.unet), everything(model.autoencoder.model)
    attacked = tuned(model, pictures)
    assert differ(everything(attacked.unet), unet)
    assert_equal(everything(model.unet), unet)
    assert_equal(everything(attacked.autoencoder.model), autoencoder)
    assert attacked.digest != model.digest
    assert not any(weight.requires_grad for weight in (*model.unet.parameters(), *attacked.unet.parameters()))


def test_fine_tuning_the_diffusion_is_decided_by_the_seed(pictures: Images) -> None:
    model = denoiser()
    one, again, other = (everything(tuned(model, pictures, seed).unet) for seed in (SEED, Seed.root(2), Seed.root(3)))
    assert_equal(one, again)
    assert differ(one, other)


def test_no_step_leaves_the_diffusion_as_it_is(pictures: Images) -> None:
    model = denoiser()
    assert_equal(everything(tuned(model, pictures, steps=0).unet), everything(model.unet))
    assert (FineTuneDiffusion(steps=0).aligned, FineTuneDiffusion(steps=1).aligned) == (True, False)


def noisy(model: LatentDiffusion, latents: torch.Tensor, prediction: str, step: int, batch: int) -> Any:
    """One batch of the model's own training: what the network sees, when, and what it should say."""
    generator = SEED.child(step).torch()
    chosen = latents[torch.randint(len(latents), (batch,), generator=generator)]
    times = torch.randint(1000, (batch,), generator=generator)
    noise = torch.randn(chosen.shape, generator=generator)
    betas = np.linspace(SCHEDULE["beta_start"] ** 0.5, SCHEDULE["beta_end"] ** 0.5, 1000) ** 2  # type: ignore[operator]
    kept = torch.from_numpy(np.cumprod(1 - betas)[times.numpy()]).float().reshape(-1, 1, 1, 1)
    given = kept.sqrt() * chosen + (1 - kept).sqrt() * noise
    wanted = noise if prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * chosen
    return given, times, wanted


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_step_of_the_diffusion_is_that_of_plain_tensors(pictures: Images, prediction: str) -> None:
    after = everything(tuned(denoiser(prediction), pictures, steps=1, images=3, batch=4).unet)
    model = denoiser(prediction)
    with torch.no_grad():
        latents = torch.cat([model.autoencoder.encode(image[None]) for image in pictures.float()])
    given, times, wanted = noisy(model, latents, prediction, 0, 4)
    parameters = dict(model.unet.requires_grad_(True).named_parameters())
    loss = (model.unet(given, times, torch.full((4, 2, 16), 0.1)).sample - wanted).pow(2).mean()
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    firm = 0
    for name, weight in parameters.items():
        sure = gradients[name].abs().numpy() > 1e-5
        firm += int(sure.sum())
        expected = adam_step(weight, gradients[name])
        np.testing.assert_allclose(after[name][sure], expected[sure], atol=3e-7, err_msg=name)
    assert firm > 0.5 * sum(weight.numel() for weight in parameters.values())


def test_fine_tuning_the_diffusion_lowers_its_own_loss(pictures: Images) -> None:
    model = denoiser()
    with torch.no_grad():
        latents = torch.cat([model.autoencoder.encode(image[None]) for image in pictures.float()])
    attacked = tuned(model, pictures, steps=40, images=3, learning_rate=5e-3)
    given, times, wanted = noisy(model, latents, "epsilon", 999, 32)
    with torch.no_grad():
        losses = [
            float((one.unet(given, times, torch.full((32, 2, 16), 0.1)).sample - wanted).square().mean())
            for one in (model, attacked)
        ]
    assert losses[1] < 0.9 * losses[0]
