"""The command line: what it says, what it exits with, and that a mistake costs one line, not a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from skimage import data

from waterproof import __version__, load_run
from waterproof.attacks.codec import Jpeg
from waterproof.bench.benchmark import presets
from waterproof.core.images import Images, Record
from waterproof.core.registry import entries
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any as Said

COMMANDS = ("run", "report", "list", "show", "check", "embed", "detect", "attack")
COMMANDS += ("null", "attribute", "baseline", "compare", "leaderboard", "plan")
PARTS = """\
from typing import ClassVar
import torch
from waterproof.bench.methods.base import Evidence, Watermark

class Steady(Watermark):
    bits: ClassVar[int] = 16
    def embed(self, images, keys, seed):
        return images
    def decode(self, images):
        return Evidence(logits=torch.ones(len(images), 16))

class Raising(Steady):
    def embed(self, images, keys, seed):
        raise RuntimeError("out of ink")

class Broken(Raising):
    def decode(self, images):
        raise RuntimeError("out of light")

class Absent(Steady):
    def unavailable(self):
        return "needs the package 'glue': pip install glue"
"""
SMALL = ["--dataset", "{deadleaves: {count: 3, size: 256}}", "--attacks", "identity, {jpeg: {quality: 40}}"]
SMALL += ["--metrics", "psnr", "--engine", "inline", "--no-report", "--fpr", "0.1"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A real photograph as a file."""
    Image.fromarray(data.chelsea()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text(PARTS)
    return tmp_path / "parts.py"


def one_line(said: Said) -> str:
    """The message of a mistake of the user's: exit code 2, one line, nothing else."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("waterproof: ")
    assert said.err.count("\n") == 1, said.err
    return said.err


# Help, listings, descriptions ---------------------------------------------------------------------------------------


def test_help_names_every_command_and_where_to_start(cli: Callable[..., Said]) -> None:
    said = cli("--help")
    assert said.code == 0
    assert all(re.search(rf"\b{command}\b", said.out) for command in COMMANDS)
    assert "waterproof run quick" in said.out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_has_examples_that_call_it(cli: Callable[..., Said], command: str) -> None:
    said = cli(command, "--help")
    assert said.code == 0
    assert re.search(rf"Examples?:\s+waterproof {command}\b", said.out), said.out


def test_the_help_of_run_and_check_explains_the_exit_codes(cli: Callable[..., Said]) -> None:
    for command in ("run", "check"):
        assert "Exit codes: 0 all" in cli(command, "--help").out


@pytest.mark.parametrize("path", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_every_example_names_things_that_exist(cli: Callable[..., Said], path: list[str]) -> None:
    text = " ".join(cli(*path).out.split())
    known = {name for _, name in entries()} | set(presets())
    for command, first in re.findall(r"waterproof (run|show|check|embed|detect|attack) ([\w.:-]+)", text):
        mine = first.startswith("my") and (".yaml" in first or ".py:" in first)
        assert first in known or mine, f"waterproof {command} {first}"


def test_no_arguments_show_the_help_and_are_wrong_usage(cli: Callable[..., Said]) -> None:
    said = cli()
    assert said.code == 2
    assert "Usage: waterproof" in said.out + said.err


def test_the_version_is_printed(cli: Callable[..., Said]) -> None:
    assert cli("--version") == (0, f"{__version__}\n", "")


def test_list_names_everything_that_has_a_name(cli: Callable[..., Said]) -> None:
    said = cli("list")
    words = {line.split()[0] for line in said.out.splitlines() if line.startswith("  ")}
    assert (said.code, said.err) == (0, "")
    assert words == {name for _, name in entries()} | set(presets())
    assert all(len(line.split()) > 2 for line in said.out.splitlines() if line.startswith("  "))


@pytest.mark.parametrize("kind", ["attacks", "attack"])
def test_list_of_one_kind_names_that_kind_only(cli: Callable[..., Said], kind: str) -> None:
    words = [line.split()[0] for line in cli("list", kind).out.splitlines() if line.startswith("  ")]
    assert words == [name for k, name in entries() if k == "attack"]


def test_list_of_presets_says_what_each_is(cli: Callable[..., Said]) -> None:
    lines = [line.split(maxsplit=1) for line in cli("list", "presets").out.splitlines() if line.startswith("  ")]
    assert [name for name, _ in lines] == presets()
    assert all(len(text) > 20 for _, text in lines)


def test_show_explains_a_component(cli: Callable[..., Said]) -> None:
    said = cli("show", "jpeg")
    assert said.code == 0
    for part in ("jpeg: attack, version 1", "quality (default 50", "ge=1", "strength is quality", "99, 95, 90"):
        assert part in said.out
    assert "runtime knob" in cli("show", "folder").out
    assert "cite:" in cli("show", "rivagan").out


@pytest.mark.parametrize("name", [name for _, name in entries()])
def test_show_has_something_to_say_of_everything(cli: Callable[..., Said], name: str) -> None:
    said = cli("show", name)
    assert said.code == 0
    assert len(said.out.splitlines()) >= 3


@pytest.mark.parametrize("name", presets())
def test_show_prints_a_preset_that_can_be_saved_and_run(cli: Callable[..., Said], name: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(cli("show", name).out)
    method = "null-protection" if name in ("protection", "mismatch") else "dwt-dct"
    said = cli("run", "mine.yaml", "--methods", method, "--attacks", "flip", "--limit", "1", "--dry-run")
    assert said.code == 0
    assert said.out.startswith(f"{name}: 1 images, 1 methods, 1 attacks\n")


def test_show_explains_a_class_of_the_user_s(cli: Callable[..., Said], parts: Path) -> None:
    assert "steady: method, version 1" in cli("show", f"{parts}:Steady").out


# Single files -------------------------------------------------------------------------------------------------------


def test_a_photograph_is_marked_attacked_and_read_again(cli: Callable[..., Said], photo: Path) -> None:
    said = cli("embed", "dwt-dct-svd", photo, "marked.png", "--seed", 7)
    assert said.code == 0
    payload = said.out.split("payload ")[1].strip()
    assert re.fullmatch("[01]{32}", payload)

    said = cli("detect", "dwt-dct-svd", "marked.png", "--seed", 7)
    assert said.code == 0
    assert "marked.png: marked at FPR 1e-06 (32 of 32 bits match" in said.out
    assert said.out.strip().endswith(f"read {payload}")

    said = cli("attack", "jpeg", "marked.png", "attacked.png", "--set", "quality=90")
    assert said == (0, "attacked.png: jpeg(quality=90)\n", "")
    assert "attacked.png: marked at FPR 1e-06" in cli("detect", "dwt-dct-svd", "attacked.png", "--key", payload).out

    assert "photo.png: not shown to be marked" in cli("detect", "dwt-dct-svd", photo, "--seed", 7).out
    assert "marked.png: not shown to be marked" in cli("detect", "dwt-dct-svd", "marked.png", "--seed", 8).out


def test_attack_writes_what_the_attack_gives(cli: Callable[..., Said], photo: Path, tmp_path: Path) -> None:
    assert cli("attack", "jpeg", photo, "attacked.png", "-s", "quality=20", "-s", "subsampling='4:4:4'").code == 0
    images = Images.from_numpy(data.chelsea()[None].copy(), [Record("photo.png")])
    expected = Jpeg(quality=20, subsampling="4:4:4").apply(images, Seed.root(0)).numpy()[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "attacked.png")), expected)


def test_the_same_seed_attacks_alike_and_another_does_not(
    cli: Callable[..., Said], photo: Path, tmp_path: Path
) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert cli("attack", "gaussian-noise", photo, f"{name}.png", "--seed", seed).code == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_a_key_may_be_given_and_is_read_back(cli: Callable[..., Said], photo: Path) -> None:
    key = "1100" * 4
    assert cli("embed", "dwt-dct-svd", photo, "m.png", "--key", key, "-s", "payload=16").code == 0
    said = cli("detect", "dwt-dct-svd", "m.png", "--key", key, "--fpr", "1e-4", "-s", "payload=16")
    assert "m.png: marked at FPR 0.0001 (16 of 16 bits match" in said.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["attack", "jpg", "photo.png", "o.png"], "unknown attack 'jpg'. Did you mean 'jpeg'?"),
        (["attack", "dwt-dct", "photo.png", "o.png"], "unknown attack 'dwt-dct'. 'dwt-dct' is one of the methods."),
        (["attack", "jpeg", "absent.png", "o.png"], "no such image: absent.png"),
        (["attack", "jpeg", "parts.py", "o.png"], "parts.py cannot be read as an image"),
        (["attack", "jpeg", "photo.png", "no/such/folder/o.png"], "cannot write no/such/folder/o.png"),
        (["attack", "jpeg", "photo.png", "o.what"], "cannot write o.what"),
        (["attack", "jpeg", "photo.png", "o.png", "--set", "quality"], "--set takes PARAM=VALUE, not 'quality'"),
        (["attack", "jpeg", "photo.png", "o.png", "--set", "qualty=3"], "Did you mean 'quality'?"),
        (["attack", "jpeg", "photo.png", "o.png", "--set", "quality=0"], "greater than or equal to 1, not 0"),
        (["attack", "jpeg", "photo.png", "o.png", "--set", "quality="], "jpeg: quality: input should be a valid"),
        (["attack", "jpeg", "photo.png", "o.png", "--set", "quality=[1"], "the command line, line 1: expected"),
        (["embed", "jpeg", "photo.png", "o.png"], "unknown method 'jpeg'. 'jpeg' is one of the attacks."),
        (["embed", "dwt-dct", "photo.png", "o.png", "--key", "101"], "the key has 3 bits, the method needs 32"),
        (["embed", "dwt-dct", "photo.png", "o.png", "--key", "2" * 32], "a string of 0 and 1, not '2222"),
        (["embed", "dwt-dct", "small.png", "o.png"], "at least 65,536 pixels, this one has 40 x 30"),
        (["embed", "parts.py:Stedy", "photo.png", "o.png"], "'parts.py' has no 'Stedy'. Did you mean 'Steady'?"),
        (["embed", "absent.py:Mark", "photo.png", "o.png"], "no such file: absent.py"),
        (["embed", "parts.py:Absent", "photo.png", "o.png"], "absent: needs the package 'glue': pip install glue"),
        (["detect", "dwt-dct", "photo.png", "--fpr", "0"], "it must lie strictly between 0 and 1"),
        (["detect", "dwt-dct", "photo.png", "--fpr", "1e-12"], "32 bits cannot reach an FPR of 1e-12"),
        (["detect", "dwt-dct", "small.png", "-s", "payload=999"], "999 bits; 40 x 30 has 15"),
        (["show", "jpg"], "nothing is called 'jpg'. Did you mean 'jpeg'?"),
        (["show", "absent.py:Mark"], "no such file: absent.py"),
        (["list", "attaks"], "cannot list 'attaks'. Did you mean 'attacks'?"),
        (["check", "jpg"], "nothing is called 'jpg'. Did you mean 'jpeg'?"),
        (["check", "parts.py:Absent"], "absent: needs the package 'glue': pip install glue"),
        (["check", "jpeg", "--set", "quality=0"], "greater than or equal to 1, not 0"),
        (["report", "absent"], "absent is no run folder"),
        (["run", "qick"], "neither a benchmark file nor a preset. Did you mean 'quick'?"),
        (["run", "absent.yaml"], "no such benchmark file: absent.yaml"),
        (["run", "quick", "--attacks", "jpg"], "unknown attack 'jpg'. Did you mean 'jpeg'?"),
        (["run", "quick", "--attacks", "{jpeg: {qualty: 3}}"], "jpeg: unknown parameter 'qualty'. Did you mean"),
        (["run", "quick", "--attacks", "jpeg: {"], "the command line, line 1"),
        (["run", "quick", "--methods", ""], "methods: list should have at least 1 item"),
        (["run", "quick", "--methods", "parts.py:Stedy"], "Did you mean 'Steady'?"),
        (["run", "quick", "--data", "absent"], "the image folder absent does not exist"),
        (["run", "quick", "--dataset", "{folder: {}}"], "folder: root: field required"),
        (["run", "quick", "--limit", "0"], "limit: input should be greater than or equal to 1, not 0"),
        (["run", "quick", "--key", "random"], "key is 'fixed'"),
        (["run", "quick", "--fpr", "2"], "decision.fpr: input should be less than 1, not 2"),
        (["run", "quick", "--rule", "guess"], "decision.rule: input should be"),
        (["run", "quick", "--engine", "steam"], "runtime.engine: input should be 'processes' or 'inline', not 'steam'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_line_and_exit_code_2(
    cli: Callable[..., Said], arguments: list[str], says: str, photo: Path, parts: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "small.png")
    assert says in one_line(cli(*arguments))
    assert not (tmp_path / "o.png").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [["frobnicate"], ["run"], ["run", "quick", "--limit", "many"], ["list", "--x"]])
def test_wrong_usage_shows_the_usage_and_no_traceback(cli: Callable[..., Said], arguments: list[str]) -> None:
    said = cli(*arguments)
    assert said.code == 2
    assert "Usage: waterproof" in said.err
    assert "Traceback" not in said.err


# check --------------------------------------------------------------------------------------------------------------


def test_check_lists_the_promises_and_exits_0_when_all_are_kept(cli: Callable[..., Said]) -> None:
    said = cli("check", "flip", "--set", "axis=vertical")
    assert (said.code, said.err) == (0, "")
    assert len(said.out.splitlines()) >= 7
    assert all(line.startswith("ok    ") for line in said.out.splitlines())


def test_check_names_the_broken_promise_of_a_user_s_file_and_exits_3(cli: Callable[..., Said], parts: Path) -> None:
    said = cli("check", "parts.py:Steady")
    assert said.code == 3
    failed = [line for line in said.out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert re.fullmatch(r"FAIL  reads its own mark: bit accuracy on its own marked images is 0\.\d+", failed[0])
    assert "Traceback" not in said.out + said.err


# run ----------------------------------------------------------------------------------------------------------------


def test_a_dry_run_says_how_much_and_how_long_and_leaves_nothing_behind(
    cli: Callable[..., Said], tmp_path: Path
) -> None:
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct", "--out", "out", "--dry-run")
    assert said.code == 0
    assert said.out.startswith("quick: 3 images, 1 methods, 2 attacks\ncells: 6 planned, 0 skipped")
    assert re.search(r"time: about \d+\.\d minutes with 1 workers \(\d+\.\d+ core-seconds an image\)", said.out)
    assert re.search(r"disk: about \d+ MB", said.out)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_fail(cli: Callable[..., Said], parts: Path) -> None:
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct, parts.py:Raising", "--dry-run")
    assert said.code == 0
    assert "trial: raising: out of ink" in said.out


def test_a_run_measures_and_exits_0(cli: Callable[..., Said], tmp_path: Path) -> None:
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct-svd", "--out", "out", "--seed", "5")
    assert said.code == 0, said.err
    assert "quick: 3 images, 1 methods x 2 attacks = 6 cells -> out" in said.err
    assert "jpeg(quality=40)" in said.out
    run = load_run(tmp_path / "out")
    assert run.ok
    assert (run.attacks, run.methods) == (["identity", "jpeg(quality=40)"], ["dwt-dct-svd"])
    assert run.config["benchmark"]["seed"] == 5
    again = cli("run", "quick", *SMALL, "--methods", "dwt-dct-svd", "--out", "out", "--seed", "5")
    assert (again.code, again.out) == (0, said.out)


def test_another_benchmark_in_the_same_folder_is_refused(cli: Callable[..., Said]) -> None:
    assert cli("run", "quick", *SMALL, "--methods", "dwt-dct", "--out", "out").code == 0
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct-svd", "--out", "out")
    assert said.code == 2
    assert "choose another folder with --out" in said.err
    assert "Traceback" not in said.err


def test_a_run_folder_is_named_after_the_benchmark_unless_given(cli: Callable[..., Said], tmp_path: Path) -> None:
    assert cli("run", "quick", *SMALL, "--methods", "dwt-dct").code == 0
    assert (tmp_path / "runs" / "quick" / "run.json").is_file()


def test_own_images_and_an_own_file_are_run(cli: Callable[..., Said], tmp_path: Path, photographs: Images) -> None:
    (tmp_path / "photos").mkdir()
    for picture, name in zip(photographs.pil(), photographs.ids, strict=True):
        picture.save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no image")
    text = "dataset: {folder: {root: photos}}\nmethods: [dwt-dct]\nattacks: [flip]\nruntime: {engine: inline}\n"
    (tmp_path / "mine.yaml").write_text(text)
    said = cli("run", "mine.yaml", "--no-report")
    assert "mine: 3 images, 1 unusable (see unreadable.csv), 1 methods" in said.err
    assert said.code == 0
    assert "broken.jpg" in (tmp_path / "runs" / "mine" / "unreadable.csv").read_text()
    assert cli("run", "quick", *SMALL, "--data", "photos", "--methods", "dwt-dct", "--limit", 2).code == 0
    assert len(load_run(tmp_path / "runs" / "quick").images) == 2


def test_a_method_that_raises_fails_its_own_cells_and_the_others_finish(
    cli: Callable[..., Said], parts: Path, tmp_path: Path
) -> None:
    methods = "dwt-dct, parts.py:Raising, dwt-dct-svd"
    said = cli("run", "quick", *SMALL, "--methods", methods, "--out", "out")
    assert said.code == 3
    assert "4 of 18 cells failed or are incomplete; the first reasons:\n  RuntimeError: out of ink" in said.err
    assert "Traceback" not in said.err
    cells = load_run(tmp_path / "out").cells
    failed = cells[cells["maker"] == "raising"]
    assert set(failed["status"]) == {"failed"}
    assert set(failed["reason"]) == {"RuntimeError: out of ink"}
    assert set(cells.drop(failed.index)["status"]) == {"ok"}


def test_a_run_in_which_nothing_is_measured_exits_4(cli: Callable[..., Said], parts: Path) -> None:
    said = cli("run", "quick", *SMALL, "--methods", "parts.py:Broken", "--out", "broken")
    assert said.code == 4
    assert "nothing was measured" in said.err
    said = cli("run", "quick", *SMALL, "--methods", "parts.py:Absent", "--out", "absent")
    assert said.code == 4
    assert "skipped: absent: needs the package 'glue': pip install glue" in said.err
    assert "Traceback" not in said.err


def test_a_skipped_method_is_announced_and_does_not_spoil_the_run(cli: Callable[..., Said], parts: Path) -> None:
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct, parts.py:Absent", "--out", "out")
    assert said.code == 0
    assert "skipped: absent: needs the package 'glue': pip install glue" in said.err


# The process --------------------------------------------------------------------------------------------------------


def test_an_interruption_exits_130_and_says_how_to_go_on(
    cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("waterproof.bench.run.run_benchmark", interrupted)
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct")
    assert said.code == 130
    assert "the same command goes on from there" in said.err
    assert "Traceback" not in said.err


def test_an_error_of_the_program_s_own_exits_70_with_what_a_bug_report_needs(
    cli: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("waterproof.bench.run.run_benchmark", mistaken)
    said = cli("run", "quick", *SMALL, "--methods", "dwt-dct")
    assert said.code == 70
    assert "ZeroDivisionError: a bug" in said.err
    assert "belong in a bug report" in said.err


@pytest.mark.parametrize("arguments", [["list", "attaks"], ["check", "parts.py:Steady"], ["--version"]], ids=" ".join)
def test_a_real_process_exits_with_the_same_code(arguments: list[str], parts: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "waterproof", *arguments]
    done = subprocess.run(command, cwd=parts.parent, capture_output=True, text=True, check=False)
    assert done.returncode == {"list": 2, "check": 3, "--version": 0}[arguments[0]], done.stderr
    assert "Traceback" not in done.stderr
