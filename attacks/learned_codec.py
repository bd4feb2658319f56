"""Compression by neural codecs: what an autoencoder keeps of an image after its latents were rounded."""

from __future__ import annotations

import importlib
import importlib.util
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch.nn import functional

from ..core.components import knob, labelled, param
from ..core.errors import UnavailableError, UserError, first_line
from ..core.images import Images, Record
from ..core.weights import cache_folder, digest_of, load_module, load_state
from .imagewise import ImagewiseAttack

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from pydantic import ValidationInfo

    from ..core.seeds import Seed

Codec = Literal["bmshj2018-factorized", "bmshj2018-hyperprior", "mbt2018-mean", "mbt2018", "cheng2020-anchor"]

_SITE = "compressai.s3.amazonaws.com/models/v1"
_PUBLISHED = {
    "bmshj2018-factorized": "446d5c7f 87279a02 5c6f152b 1ed4405a 866ba797 9b02ea3a 6dfd6734 5232faa3",
    "bmshj2018-hyperprior": "7eb97409 93677231 6d87be32 de1b779c f8b614e1 1ab9c41e 3804dcbd a583f0cf",
    "mbt2018-mean": "e522738d e54a039d 723404a8 6dba02a3 d504e8eb a19628ab d5d441d1 8089ae3e",
    "mbt2018": "3f36cd77 43b70cdd 22901978 456e2af9 b4a046dd 7052e5ea 8ba2bf82 dd0097aa",
    "cheng2020-anchor": "dad2ebff a29008eb e49be189 98b0b468 23852949 4c052b1a",
}
"""Networks trained for squared error: the first digits of their files' SHA-256, quality 1 first."""

_INSTALL = (
    "pip install --no-deps compressai, then pip install einops pytorch-msssim torch-geometric torchvision (its own "
    "requirements ask for numpy < 2, which it does not need)"
)
_TABLES = ("_offset", "_quantized_cdf", "_cdf_length", "scale_table")
"""Of the entropy coder: made after training, of any size, and not looked at where no bits are written."""
_MULTIPLE = 64
"""Pixels per cell of the coarsest latent."""


class LearnedCompression(ImagewiseAttack):
    """A learned codec of CompressAI, image by image: analysis, rounded latents, synthesis.

    The attack is the network's forward pass in evaluation mode, as Zhao et al. and WAVES use it; no bits are written.
    For the first three models that gives exactly what the decoder would; ``mbt2018`` and ``cheng2020-anchor`` round
    the latents themselves there, where their coder rounds what their context model leaves. Sides are extended to the
    right and below to multiples of 64, by repeating the edge, and cropped back.

    Weights are never downloaded. A quality is a network of its own: in a folder, the file of the quality that is asked
    for is looked up by its published name, or as ``MODEL-QUALITY.safetensors`` (or ``.pth``). A published file that
    stands for another model or quality is refused. ``cheng2020-anchor`` has qualities 1 to 6.

    Example:
        >>> LearnedCompression(model="mbt2018-mean", quality=1).label
        'learned-compression(quality=1, model=mbt2018-mean)'
    """

    name: ClassVar[str] = "learned-compression"
    family: ClassVar[str] = "regeneration"
    summary: ClassVar[str] = "a neural image codec of CompressAI"
    strength: ClassVar[str | None] = "quality"
    strengths: ClassVar[tuple[Any, ...]] = (8, 7, 6, 5, 4, 3, 2, 1)
    harder: ClassVar[int] = -1
    references: ClassVar[tuple[str, ...]] = (
        "J. Balle, D. Minnen, S. Singh, S. J. Hwang, N. Johnston: Variational Image Compression with a Scale "
        "Hyperprior. ICLR 2018, arXiv:1802.01436.",
        "D. Minnen, J. Balle, G. Toderici: Joint Autoregressive and Hierarchical Priors for Learned Image Compression. "
        "NeurIPS 2018, arXiv:1809.02736.",
        "Z. Cheng, H. Sun, M. Takeuchi, J. Katto: Learned Image Compression with Discretized Gaussian Mixture "
        "Likelihoods and Attention Modules. CVPR 2020, arXiv:2001.01568.",
        "J. Begaint, F. Racape, S. Feltman, A. Pushparaja: CompressAI. arXiv:2011.03029, 2020.",
        "X. Zhao et al.: Invisible Image Watermarks Are Provably Removable Using Generative AI. NeurIPS 2024, "
        "arXiv:2306.01953.",
    )

    model: Codec = param("bmshj2018-factorized", doc="The codec's architecture, by CompressAI's name.")
    quality: int = param(3, doc="1 (coarse) to 8 (fine), 6 for cheng2020-anchor.", ge=1, le=8)
    weights: str | None = knob(
        None, doc="A folder of weights, or one file of a state dict; left out, compressai/ in the weights folder."
    )
    entry: str | None = param(
        None, doc="Which entry of a PyTorch file holds the tensors, e.g. state_dict; left out, the file itself."
    )

    @field_validator("quality")
    @classmethod
    def _has_it(cls, quality: int, info: ValidationInfo) -> int:
        model = info.data.get("model", "bmshj2018-factorized")
        if quality > (highest := len(_PUBLISHED[model].split())):
            raise ValueError(f"{model} has qualities 1 to {highest}")
        return quality

    @property
    def label(self) -> str:
        """Name and settings, and whose weights where they are not those of the weights folder."""
        place = {} if self.weights is None else {"weights": Path(self.weights).name}
        return labelled(self.name, {"quality": self.quality, **place, **self.changed_params()})

    def unavailable(self) -> str | None:
        """Needs the package compressai and the weights of this model and quality."""
        if importlib.util.find_spec("compressai") is None:
            return f"needs the package compressai: {_INSTALL}"
        try:
            self._network()
        except UserError as error:
            return str(error)
        return None

    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights."""
        return {} if self.unavailable() else {"weights": digest_of(self._file())}

    def alter(self, picture: np.ndarray, seed: Seed) -> np.ndarray:
        """The picture after compression."""
        height, width = picture.shape[:2]
        values = torch.tensor(picture).permute(2, 0, 1)[None].float() / 255
        below, right = -height % _MULTIPLE, -width % _MULTIPLE
        with torch.inference_mode():
            decoded = self._network()(functional.pad(values, (0, right, 0, below), mode="replicate"))["x_hat"]
        rounded: np.ndarray = Images.from_float(decoded[..., :height, :width], [Record("picture")]).numpy()[0]
        return rounded

    def _network(self) -> torch.nn.Module:
        path = self._file()
        digest = digest_of(path)
        _check_published(path, digest, self.model, self.quality)
        return _load(self.model, self.quality, path, digest, self.entry)

    def _file(self) -> Path:
        place = cache_folder() / "compressai" if self.weights is None else Path(self.weights).expanduser()
        if place.is_file():
            return place
        stem = f"{self.model}-{self.quality}"
        published = _published(self.model, self.quality)
        names = [stem + ending for ending in (".safetensors", ".pth")]
        names += [published + ending for ending in (".pth.tar", ".pth", ".safetensors")]
        found = next((place / name for name in names if (place / name).is_file()), None)
        if found is None:
            raise UnavailableError(
                f"{self.model} at quality {self.quality} needs its weights ({_SITE}/{published}.pth.tar): put them at "
                f"{place / published}.pth"
            )
        return found


def _published(model: str, quality: int) -> str:
    """The name of a published file, without its ending."""
    family = "bmshj2018-factorized-prior" if model == "bmshj2018-factorized" else model
    return f"{family}-{quality}-{_PUBLISHED[model].split()[quality - 1]}"


def _check_published(path: Path, digest: str, model: str, quality: int) -> None:
    """Refuses a file that is known to be another one: networks of several qualities have one shape.

    Raises:
        UserError: it is the published file of another model or quality.
        UnavailableError: it has the name of a published file and another content.
    """
    known = {begin: (name, i + 1) for name, begins in _PUBLISHED.items() for i, begin in enumerate(begins.split())}
    what = known.get(digest[:8])
    if what is not None and what != (model, quality):
        raise UserError(f"{path}: is {what[0]} at quality {what[1]}, not {model} at quality {quality}")
    names = [_published(model, quality) + ending for ending in (".pth.tar", ".pth")]
    if what is None and path.name in names:
        begin = _PUBLISHED[model].split()[quality - 1]
        raise UnavailableError(
            f"{path}: is not the published file: its SHA-256 does not begin with {begin}; fetch it again"
        )


@lru_cache(maxsize=4)
def _load(model: str, quality: int, path: Path, digest: str, entry: str | None) -> torch.nn.Module:
    """The network with its weights; the digest makes a changed file another one."""
    state = load_state(path, entry=entry)
    # Networks draw their first weights from torch's global generator, which is not ours to move.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        network: torch.nn.Module = _zoo().models[model](quality=quality, pretrained=False)
        load_module(network, _named_as_in(network, state), str(path))
    return network.eval().requires_grad_(False)


def _zoo() -> Any:
    with warnings.catch_warnings():
        # About what its requirements do with torch.
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("compressai.zoo")
        except ImportError as error:
            raise UnavailableError(f"compressai cannot be imported ({first_line(error)}): {_INSTALL}") from None


def _named_as_in(network: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state of any release of CompressAI by the names of the one that is installed, without the coder's tables."""
    own = network.state_dict()
    today = {_timeless(name): name for name in own}
    tables = {name: tensor for name, tensor in own.items() if name.endswith(_TABLES)}
    renamed = {today.get(_timeless(name), name): tensor for name, tensor in state.items()}
    return {**{name: tensor for name, tensor in renamed.items() if not name.endswith(_TABLES)}, **tables}


def _timeless(name: str) -> str:
    """One name for what releases called ``_matrices.0``, ``_matrix0`` and ``matrices.0``, and their like."""
    name = name.removeprefix("module.").replace(".downsample.", ".skip.")
    return re.sub(r"(entropy_bottleneck)\._?(matri|bias|factor)[a-z]*\.?(\d)$", r"\1.\2\3", name)
