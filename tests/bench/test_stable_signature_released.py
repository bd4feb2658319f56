"""The released files of Stable Signature: the decoder arrives whole, the extractor reads, nothing unknown is run."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import types
import urllib.error
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from waterproof.bench.methods.stable_signature import extractors, released
from waterproof.bench.methods.stable_signature.extractors import Extractor, load_extractor
from waterproof.bench.methods.stable_signature.released import (
    KEY,
    DecoderLayout,
    apply_to_pipeline,
    fetch,
    load_marked_decoder,
    map_decoder,
)
from waterproof.core.errors import ImageError, UnavailableError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

State = dict[str, torch.Tensor]
SMALL = DecoderLayout(widths=(32, 64, 96, 96))


def draw_state(layout: DecoderLayout, seed: int = 0) -> State:
    """Random tensors with CompVis names, scaled so that activations neither vanish nor explode."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, _, shape in layout.tensors():
        noise = torch.randn(shape, generator=draw)
        if len(shape) == 1:
            state[name] = 1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.1 * noise
        else:
            state[name] = noise / float(np.prod(shape[1:])) ** 0.5
    return state


def decode(state: State, z: torch.Tensor) -> torch.Tensor:
    """The CompVis decoder written out: an independent computation that reads the names of the release."""

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        weight = state[f"{name}.weight"]
        return functional.conv2d(x, weight, state[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def swish(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        h = conv(swish(norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = conv(swish(norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (conv(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in state else x)

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        h = norm(x, f"{name}.norm")
        q, k, v = (conv(h, f"{name}.{part}").flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5, dim=2)
        return x + conv(torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape), f"{name}.proj_out")

    h = conv(conv(z, "post_quant_conv"), "decoder.conv_in")
    h = block(h, "decoder.mid.block_1")
    h = attention(h, "decoder.mid.attn_1")
    h = block(h, "decoder.mid.block_2")
    for level in (3, 2, 1, 0):
        for i in range(3):
            h = block(h, f"decoder.up.{level}.block.{i}")
        if level:
            h = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(h, f"decoder.up.{level}.upsample.conv")
    return conv(swish(norm(h, "decoder.norm_out")), "decoder.conv_out")


def autoencoder(layout: DecoderLayout) -> Any:
    diffusers = pytest.importorskip("diffusers")
    levels = len(layout.widths)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=layout.widths,
            layers_per_block=layout.blocks,
            latent_channels=layout.latent,
            sample_size=64,
            scaling_factor=0.18215,
        )
    return made.eval()


@pytest.fixture(scope="module")
def full() -> State:
    return draw_state(DecoderLayout())


@pytest.fixture(scope="module")
def small() -> State:
    return draw_state(SMALL)


def test_the_layout_has_the_numbers_of_the_release(full: State) -> None:
    assert len(full) == 140
    assert sum(tensor.numel() for tensor in full.values()) == 49_490_199
    outside = {name: tensor.numel() for name, tensor in full.items() if not name.startswith("decoder.")}
    assert outside == {"post_quant_conv.weight": 16, "post_quant_conv.bias": 4}


def test_every_name_is_one_of_diffusers(small: State) -> None:
    own = autoencoder(SMALL).state_dict()
    wanted = {name: tensor.shape for name, tensor in own.items() if name.startswith(("decoder.", "post_quant_conv."))}
    mapped = map_decoder(small, SMALL)
    assert {name: tensor.shape for name, tensor in mapped.items()} == wanted
    assert len(mapped) == 140


def test_the_full_decoder_computes_what_the_release_computes(full: State) -> None:
    network = autoencoder(DecoderLayout())
    before = {name: tensor.clone() for name, tensor in network.post_quant_conv.state_dict().items()}
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    marked = load_marked_decoder(network, full)
    with torch.inference_mode():
        ours, plain, expected = marked.decode(z).sample, network.decode(z).sample, decode(full, z)
    assert ours.shape == (1, 3, 64, 64)
    assert float(expected.std()) > 0.1
    assert float((ours - expected).abs().max()) < 1e-4
    assert float((plain - expected).abs().max()) > 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.post_quant_conv.state_dict().items())
    pairs = zip(network.encoder.parameters(), marked.encoder.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("form", ["bare names", "inside ldm_decoder", "file", "file with ldm_decoder"])
def test_the_state_is_taken_in_each_form(form: str, small: State, tmp_path: Path) -> None:
    source: Any = small
    if form == "bare names":
        source = {name.removeprefix("decoder."): tensor for name, tensor in small.items()}
    elif form == "inside ldm_decoder":
        source = {"ldm_decoder": small, "epoch": 1}
    elif form.startswith("file"):
        source = tmp_path / "sd2_decoder.pth"
        torch.save({"ldm_decoder": small, "optimizer": {}} if "ldm" in form else small, source)
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        actual = load_marked_decoder(autoencoder(SMALL), source).decode(z).sample
        assert float((actual - decode(small, z)).abs().max()) < 1e-4


def test_what_is_missing_spare_or_misshaped_is_refused(small: State) -> None:
    name = "decoder.mid.attn_1.q.weight"
    without = {key: tensor for key, tensor in small.items() if key != name}
    with pytest.raises(UserError, match=rf"139 of 140 tensors fit; 1 missing \({name}\)"):
        map_decoder(without, SMALL)
    with pytest.raises(UserError, match=r"140 of 140 tensors fit; 1 not of this decoder.*\(encoder\.conv_in\.weight\)"):
        map_decoder({**small, "encoder.conv_in.weight": torch.zeros(1)}, SMALL)
    with pytest.raises(UserError, match=r"given twice \(conv_in\.bias\)"):
        map_decoder({**small, "conv_in.bias": small["decoder.conv_in.bias"]}, SMALL)
    with pytest.raises(
        UserError, match=r"139 of 140 .*of another shape \(.*q\.weight \[96, 96\] instead of \[96, 96, 1"
    ):
        map_decoder({**small, name: small[name][:, :, 0, 0]}, SMALL)
    with pytest.raises(UserError, match=r"0 of 140 tensors fit; 140 missing \(.*, \.\.\.\)"):
        map_decoder({}, SMALL)
    with pytest.raises(UserError, match="of another shape"):
        load_marked_decoder(autoencoder(DecoderLayout((32, 32, 64, 64))), small)
    with pytest.raises(UserError, match="no tensor"):
        map_decoder({**small, name: 3}, SMALL)


def test_another_kind_of_autoencoder_is_refused(small: State) -> None:
    diffusers = pytest.importorskip("diffusers")
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with pytest.raises(UserError, match="not AutoencoderTiny"):
        load_marked_decoder(tiny, small)
    with pytest.raises(UserError, match="has no autoencoder"):
        apply_to_pipeline(types.SimpleNamespace(), small)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny, random Stable Diffusion, saved and loaded from disk."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=16)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        encoder = transformers.CLIPTextModel(text)
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    made = diffusers.StableDiffusionPipeline(
        vae=autoencoder(SMALL), text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_a_pipeline_makes_marked_images_and_the_given_one_stays(pipeline: Any, small: State) -> None:
    marked = apply_to_pipeline(pipeline, small)

    def draw(pipe: Any, kind: str) -> Any:
        generator = torch.Generator().manual_seed(4)
        return pipe("a cat", num_inference_steps=2, generator=generator, output_type=kind, height=64, width=64).images

    latents, images = draw(pipeline, "latent"), draw(marked, "pt")
    assert torch.equal(latents, draw(marked, "latent"))
    with torch.inference_mode():
        by_hand = (decode(small, latents / 0.18215) / 2 + 0.5).clamp(0, 1)
    assert images.shape == (1, 3, 64, 64)
    assert float((images - by_hand).abs().max()) < 1e-4
    assert float((images - draw(pipeline, "pt")).abs().max()) > 0.1
    assert marked.unet is pipeline.unet
    assert type(marked) is type(pipeline)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WATERPROOF_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nothing"))
    return tmp_path / "weights" / "stable-signature"


@pytest.fixture
def published(tmp_path: Path, small: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server with an extractor and a small decoder in place of the released ones."""
    folder = tmp_path / "published"
    folder.mkdir()
    script(folder / released.EXTRACTOR.name)
    torch.save(small, folder / "sd2_decoder.pth")
    data = (folder / released.EXTRACTOR.name).read_bytes()
    start = hashlib.sha256(data).hexdigest()[:8]
    extractor = released.ReleasedFile(released.EXTRACTOR.name, "", len(data), start)
    monkeypatch.setattr(released, "EXTRACTOR", extractor)
    monkeypatch.setattr(extractors, "EXTRACTOR", extractor)
    monkeypatch.setattr(released, "_SETS", {"stable-signature": (extractor, released.DECODER)})
    monkeypatch.setattr(released, "STABLE_DIFFUSION", SMALL)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(released, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()
        thread.join()


def script(path: Path, bits: int = 6) -> str:
    """Writes a small TorchScript extractor; returns its digest."""
    draw = torch.Generator().manual_seed(6)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, bits, 3), torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    for tensor in layers.parameters():
        tensor.data = torch.randn(tensor.shape, generator=draw)
    torch.jit.script(layers).save(str(path))  # type: ignore[no-untyped-call]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_fetched_files_are_recorded_and_later_held_to_the_record(
    published: Path, weights: Path, capsys: pytest.CaptureFixture[str], small: State
) -> None:
    done: dict[str, int] = {}

    def count(units: int, doing: str) -> None:
        done[doing] = done.get(doing, 0) + units

    paths = fetch(progress=count)
    assert [path.name for path in paths] == ["dec_48b_whit.torchscript.pt", "sd2_decoder.pth"]
    assert sorted(path.name for path in weights.iterdir()) == sorted(
        name for path in paths for name in (path.name, f"{path.name}.sha256")
    )
    assert done == {path.name: path.stat().st_size for path in paths}
    digest = hashlib.sha256(paths[1].read_bytes()).hexdigest()
    assert f"{paths[1]}: sha256 {digest} (trusted on first use" in capsys.readouterr().err.replace("\n", "")
    assert released.recorded_digest(paths[1]) == digest
    assert fetch() == paths
    assert released.locate(released.DECODER) == paths[1]
    assert load_extractor(paths[0]).bits == 6
    load_marked_decoder(autoencoder(SMALL), paths[1])

    torch.save({**small, "decoder.conv_in.bias": small["decoder.conv_in.bias"] + 1}, paths[1])
    with pytest.raises(UnavailableError, match=r"wrong file.*sd2_decoder\.pth\.sha256 beside it says"):
        fetch()
    with pytest.raises(UnavailableError, match="wrong file: expected sha256"):
        load_marked_decoder(autoencoder(SMALL), paths[1])

    paths[1].rename(published / "sd2_decoder.pth")
    with pytest.raises(UnavailableError, match="another one than recorded earlier"):
        fetch()
    assert not paths[1].exists()


def test_a_file_that_is_not_the_released_one_is_not_kept(published: Path, weights: Path, small: State) -> None:
    torch.save({"decoder.conv_in.bias": torch.zeros(3)}, published / "sd2_decoder.pth")
    with pytest.raises(UnavailableError, match=r"sd2_decoder.pth is not what it should be: .*0 of 140.*Put by hand"):
        fetch()
    (published / "sd2_decoder.pth").write_bytes(b"<html>please log in</html>")
    with pytest.raises(UnavailableError, match=r"sd2_decoder.pth is not what it should be"):
        fetch()
    with (published / released.EXTRACTOR.name).open("ab") as file:
        file.write(b"more")
    (weights / released.EXTRACTOR.name).unlink()
    with pytest.raises(UnavailableError, match=r"came with [\d,]+ bytes instead of"):
        fetch()
    (published / released.EXTRACTOR.name).unlink()
    with pytest.raises(UnavailableError, match="HTTP Error 404"):
        fetch()
    assert [path.name for path in weights.iterdir()] == [f"{released.EXTRACTOR.name}.sha256"]


@pytest.mark.parametrize(
    "failure", [urllib.error.URLError("no route to host"), TimeoutError("timed out"), ConnectionResetError("reset")]
)
def test_without_network_one_line_says_what_to_put_where(
    failure: Exception, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(url: str, target: Path, progress: object) -> None:
        target.write_bytes(b"half a file")
        raise failure

    monkeypatch.setattr(released, "_download", broken)
    with pytest.raises(UnavailableError) as raised:
        fetch()
    line = str(raised.value)
    assert "\n" not in line
    for part in (
        str(getattr(failure, "reason", failure)),
        "https://dl.fbaipublicfiles.com/ssl_watermarking/dec_48b_whit.torchscript.pt (1,226,802 bytes, sha256 "
        "77cd0a20...)",
        f"as {weights / 'dec_48b_whit.torchscript.pt'}",
        "https://dl.fbaipublicfiles.com/ssl_watermarking/sd2_decoder.pth (about 198 MB, sha256 not known)",
        f"as {weights / 'sd2_decoder.pth'}",
    ):
        assert part in line
    assert list(weights.iterdir()) == []


def test_there_is_one_set_of_released_files() -> None:
    with pytest.raises(UserError, match="Did you mean 'stable-signature'"):
        fetch("stable-signatur")


def test_torchscript_of_unknown_origin_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "dec.torchscript.pt"
    digest = script(path)

    def opened(*args: object, **kwargs: object) -> None:
        pytest.fail("the file was opened")

    with monkeypatch.context() as patched:
        patched.setattr(torch.jit, "load", opened)
        with pytest.raises(UserError, match=rf"refused: TorchScript runs code.*name its sha256: {digest}"):
            load_extractor(path)
        with pytest.raises(UnavailableError, match="wrong file"):
            load_extractor(path, sha256="0" * 64)
        with pytest.raises(UserError, match="64 hexadecimal digits"):
            load_extractor(path, sha256=digest[:8])
        # The beginning of a digest alone opens nothing: the number of bytes must fit as well.
        known = released.ReleasedFile(path.name, "", 1_226_802, digest[:8])
        patched.setattr(extractors, "EXTRACTOR", known)
        with pytest.raises(UserError, match="refused"):
            load_extractor(path)
    assert load_extractor(path, sha256=digest.upper()).bits == 6


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "dec.jit"
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a TorchScript file, or damaged"):
        load_extractor(path, sha256=hashlib.sha256(b"nonsense").hexdigest())
    with pytest.raises(UnavailableError, match="no such file or folder"):
        load_extractor(tmp_path / "absent.onnx")
    (tmp_path / "weights.txt").touch()
    with pytest.raises(UserError, match=r"an extractor ends in \.onnx, \.torchscript\.pt or \.jit"):
        load_extractor(tmp_path / "weights.txt")


def test_torchscript_reads_what_its_layers_read(tmp_path: Path, photographs: Any) -> None:
    path = tmp_path / "dec.jit"
    extractor = load_extractor(path, sha256=script(path))
    layers = torch.jit.load(path)  # type: ignore[no-untyped-call]
    images = photographs.float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = layers((images - mean[:, None, None]) / std[:, None, None])
    logits = [extractor(images) for _ in range(3)]
    torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_the_folder_of_an_own_extractor_gets_plain_images(tmp_path: Path) -> None:
    from waterproof.bench.methods.hidden import network
    from waterproof.core.weights import save_state

    config = network.NetworkConfig(bits=3, stages=((4, 1),), embed="descent", refine=1)
    own = network.Extractor(config).eval()
    network.save_networks(tmp_path, config, {}, own.state_dict())
    with pytest.raises(UnavailableError, match=r"whitening.safetensors: cannot be read"):
        load_extractor(tmp_path)
    save_state({"weight": 2 * torch.eye(3), "bias": torch.ones(3)}, tmp_path / "whitening.safetensors", {})
    extractor = load_extractor(tmp_path)
    assert extractor.bits == 3
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(extractor(images), 2 * own(images) + 1, atol=1e-5, rtol=1e-4)
    # A model card beside the networks may change; the networks may not.
    (tmp_path / "card.json").write_text("{}", encoding="utf-8")
    assert load_extractor(tmp_path, sha256=extractor.digest).digest == extractor.digest
    save_state({"weight": torch.eye(3), "bias": torch.ones(3)}, tmp_path / "whitening.safetensors", {})
    with pytest.raises(UnavailableError, match="wrong file"):
        load_extractor(tmp_path, sha256=extractor.digest)


def test_what_is_no_extractor_is_refused() -> None:
    with pytest.raises(UserError, match=r"two images give \[2, 3, 64, 64\] instead of logits"):
        Extractor(torch.nn.Identity(), "")
    with pytest.raises(UserError, match="does not read images"):
        Extractor(torch.nn.Linear(5, 5), "")

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3)) / 0

    with pytest.raises(UserError, match="NaN or infinite"):
        Extractor(Broken(), "", normalised=False)


@pytest.fixture(scope="module")
def extractor(shared_data: Path) -> Extractor:
    pytest.importorskip("onnx")
    path = shared_data / "weights" / "stable-signature-extractor" / "stable_signature.onnx"
    return load_extractor(path, sha256=released.EXTRACTOR_ONNX.sha256)


@pytest.fixture(scope="module")
def sample(shared_data: Path) -> Callable[[str], torch.Tensor]:
    """The four samples at 256 pixels: marked as they are, originals by their centre square."""

    def read(kind: str) -> torch.Tensor:
        pictures = []
        for path in sorted((shared_data / "stable-signature-samples" / kind).iterdir()):
            with Image.open(path) as file:
                picture = file.convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.crop((left, top, left + side, top + side))
            pictures.append(np.asarray(square.resize((256, 256), Image.Resampling.BICUBIC)))
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255

    return read


def test_the_released_extractor_reads_the_key_from_real_marked_images(
    extractor: Extractor, sample: Callable[[str], torch.Tensor]
) -> None:
    key = torch.tensor([bit == "1" for bit in KEY])
    assert len(key) == extractor.bits == 48
    with torch.inference_mode():
        marked = ((extractor(sample("watermarked")) > 0) == key).sum(dim=1)
        unmarked = ((extractor(sample("original")) > 0) == key).sum(dim=1)
    assert marked.tolist() == [48, 48, 47, 48]
    assert int(unmarked.min()) >= 19
    assert int(unmarked.max()) <= 29


def test_the_runtime_reads_the_same_bits(
    extractor: Extractor, sample: Callable[[str], torch.Tensor], shared_data: Path
) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    model = onnx.load(shared_data / "weights" / "stable-signature-extractor" / "stable_signature.onnx")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    images = sample("watermarked")
    mean, std = (torch.tensor(v)[:, None, None] for v in (extractors.MEAN, extractors.DEVIATION))
    expected = session.run(None, {"image": ((images - mean) / std).numpy()})[0]
    with torch.inference_mode():
        actual = extractor(images).numpy()
    assert np.array_equal(actual > 0, expected > 0)
    # The runtime's own rounding: it adds all pixels one after the other.
    assert np.abs(actual - expected).max() < 5e-4


def test_an_extractor_is_frozen_and_passes_gradients_to_the_image(
    extractor: Extractor, sample: Callable[[str], torch.Tensor]
) -> None:
    images = sample("watermarked")[:1, :, :96, :96].requires_grad_()
    extractor.train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    extractor(images).square().sum().backward()
    assert images.grad is not None
    assert bool((images.grad != 0).float().mean() > 0.99)
    with pytest.raises(ImageError, match=r"floats \[B, 3, H, W\], not torch\.uint8"):
        extractor(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ImageError, match=r"\[3, 8, 8\]"):
        extractor(torch.zeros(3, 8, 8))
