"""Marks by descent: a perturbation that leads an extractor to a message, found up the extractor's own gradient.

A trained encoder writes a mark in one pass, but takes days on many GPUs. The few steps of gradient descent that
teach an extractor its bits (see :mod:`waterproof.bench.training.hidden`) also mark an image, at the price of a forward
and a backward pass each: Fernandez et al., "Watermarking Images in Self-Supervised Latent Spaces" (ICASSP 2022), embed
so. They can begin with an encoder's proposal, or with nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from .augment import augment
from .network import attenuate, normalise

if TYPE_CHECKING:
    from collections.abc import Callable

    from .network import Encoder

    Network = Callable[[torch.Tensor], torch.Tensor]
    Attack = Callable[[torch.Tensor, int], torch.Tensor]

_WINDOW = 9
_STEP = 0.25
REHEARSED = ("identity", "jpeg 50", "crop 0.5+brightness 1.5+jpeg 80", "resize 0.5")
"""What a mark goes through, turn by turn, while it is found."""


def mark_image(
    encoder: Encoder | None,
    extractor: Network,
    image: torch.Tensor,
    bits: torch.Tensor,
    steps: int,
    attenuation: str,
    strength: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """One image with its message, before it is rounded: an encoder's proposal, led on by :func:`descend`.

    Every step of the descent reads the image after one of :data:`REHEARSED`, in turn.

    Args:
        encoder: proposes a perturbation; None: the descent begins with none.
        extractor: from images in 0 to 1 to logits ``[1, k]``.
        image: float ``[1, 3, H, W]``, 0 to 1.
        bits: float ``[1, k]``, 0 or 1.
        steps: of the descent.
        attenuation: how a perturbation is added.
        strength: of the mark.
        generator: of the crops' places.
    """
    delta = torch.zeros_like(image) if encoder is None else encoder(normalise(image), 2 * bits - 1)

    def attack(marked: torch.Tensor, step: int) -> torch.Tensor:
        return augment(marked, REHEARSED[step % len(REHEARSED)], generator)

    delta = descend(extractor, image, bits, delta, steps, _STEP, attenuation, strength, attack)
    return image + attenuate(image, delta, attenuation, strength)


def descend(
    extractor: Network,
    images: torch.Tensor,
    bits: torch.Tensor,
    delta: torch.Tensor,
    steps: int,
    size: float,
    attenuation: str,
    strength: float,
    attack: Attack,
) -> torch.Tensor:
    """The perturbation after ``steps`` down the gradient of the message loss.

    Each step is brought to a root mean square of 1 in each image, clipped at 2, and multiplied by ``size``. The local
    mean of the gradient over 9 x 9 pixels is taken out first: the mean colour carries three numbers only, yet all bits
    would begin by sharing it and never get further.

    Args:
        extractor: from images in 0 to 1 to logits ``[B, k]``; its parameters want no gradient.
        images: float ``[B, 3, H, W]``, 0 to 1, sides of at least 5 pixels.
        bits: float ``[B, k]``, 0 or 1.
        delta: where to begin, ``[B, 3, H, W]`` in -1 to 1.
        steps: how many; 0 gives ``delta`` back.
        size: of one step, in units of the largest perturbation.
        attenuation: how a perturbation is added; see :class:`.network.NetworkConfig`.
        strength: of the mark.
        attack: what the marked images go through before they are read, given the number of the step.

    Returns:
        A perturbation ``[B, 3, H, W]`` in -1 to 1, detached.

    Example:
        >>> extractor = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        >>> images, bits = torch.full((1, 3, 16, 16), 0.5), torch.ones(1, 12)
        >>> found = descend(extractor, images, bits, torch.zeros_like(images), steps=2, size=0.5,
        ...                 attenuation="uniform", strength=0.1, attack=lambda marked, step: marked)
        >>> found.shape
        torch.Size([1, 3, 16, 16])
    """
    delta = delta.detach()
    for step in range(steps):
        with torch.enable_grad():
            delta = delta.requires_grad_()
            marked = images + attenuate(images, delta, attenuation, strength)
            logits = extractor(attack(marked, step)).float()
            loss = functional.binary_cross_entropy_with_logits(logits, bits, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, delta)
        gradient = gradient - _local_mean(gradient)
        gradient = gradient / (gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-12)
        delta = (delta.detach() - size * gradient.clamp(-2, 2)).clamp(-1, 1)
    return delta


def _local_mean(values: torch.Tensor) -> torch.Tensor:
    padded = functional.pad(values, (_WINDOW // 2,) * 4, mode="reflect")
    return functional.avg_pool2d(padded, _WINDOW, stride=1)
