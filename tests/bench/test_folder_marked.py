"""folder-marked: images that something else marked, read by a CSV or by a program of the user's."""

from __future__ import annotations

import csv
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from waterproof.bench.benchmark import validate
from waterproof.bench.methods.folder_marked import FolderMarked
from waterproof.bench.plan import make_plan
from waterproof.bench.run import evaluate
from waterproof.core.components import build
from waterproof.core.errors import ContractError, DatasetError, SpecError
from waterproof.core.images import Images, Record
from waterproof.core.seeds import Seed

if TYPE_CHECKING:
    from pathlib import Path

KEY = "1011001110001111"

# Reads a mark that sets the lowest bit of blue, column by column; prints a word of bits, or with --score their sum.
READER = """\
import sys
from pathlib import Path
import numpy as np
from PIL import Image
for path in sorted(Path(sys.argv[-1]).glob("*.png")):
    blue = np.asarray(Image.open(path))[..., 2] & 1
    bits = [int(blue[:, i::16].mean() > 0.5) for i in range(16)]
    print(path.name, sum(bits) / 16 if "--score" in sys.argv else "".join(map(str, bits)))
"""


class Case:
    """Two folders of three photographs, unmarked and marked."""

    def __init__(self, folder: Path, photographs: Images) -> None:
        self.folder = folder
        self.images = Images(
            photographs.pixels[:, :, 64:128, 64:128], tuple(Record(f"set/{name}.png") for name in photographs.ids)
        )
        marked = self.images.numpy().copy()
        marked[..., 2] = marked[..., 2] & 254 | np.resize([int(bit) for bit in KEY], 64)
        self.marked = self.images.with_pixels(marked)
        for name, images in (("unmarked", self.images), ("marked", self.marked)):
            (folder / name / "set").mkdir(parents=True)
            for record, array in images:
                Image.fromarray(array).save(folder / name / record.id)

    def csv(self, column: str, words: dict[str, str], name: str = "scores.csv", **options: Any) -> Path:
        """A CSV with one word for each arm, the same for all images."""
        with (self.folder / name).open("w", newline="", **options) as file:
            writer = csv.writer(file)
            writer.writerow(["image", "arm", column])
            writer.writerows([r.id, arm, word] for arm, word in words.items() for r in self.images.records)
        return self.folder / name

    def program(self, text: str = READER, *options: str) -> str:
        path = self.folder / "my reader.py"
        path.write_text(text)
        return shlex.join([sys.executable, str(path), *options])

    def method(self, **params: Any) -> FolderMarked:
        given = {"marked": self.folder / "marked", "unmarked": self.folder / "unmarked"}
        return build(FolderMarked, {**given, **params})


@pytest.fixture
def case(tmp_path: Path, photographs: Images) -> Case:
    return Case(tmp_path, photographs)


def bits_of(method: FolderMarked, images: Images) -> list[str]:
    logits = method.decode(images).logits
    assert logits is not None
    assert set(np.abs(logits.numpy()).ravel()) == {0.5}
    return ["".join("01"[int(bit)] for bit in row > 0) for row in logits.numpy()]


def scores_of(method: FolderMarked, images: Images) -> list[float]:
    score = method.decode(images).score
    assert score is not None
    return [float(value) for value in score]


def keys(n: int) -> torch.Tensor:
    return torch.zeros(n, 16, dtype=torch.bool)


# Marked images ------------------------------------------------------------------------------------------------------


def test_the_marked_image_is_the_file_under_the_same_path(case: Case) -> None:
    method = case.method(command="true", payload=16)
    for order in ([0, 1, 2], [2, 0]):
        marked = method.embed(case.images.take(order), keys(len(order)), Seed.root(0))
        np.testing.assert_array_equal(marked.numpy(), case.marked.take(order).numpy())
        assert marked.records == case.images.take(order).records


def test_the_marked_image_may_have_another_ending(case: Case) -> None:
    place = case.folder / "marked" / "set" / "astronaut"
    Image.open(place.with_suffix(".png")).save(place.with_suffix(".webp"), lossless=True)
    place.with_suffix(".png").unlink()
    marked = case.method(command="true").embed(case.images, keys(3), Seed.root(0))
    np.testing.assert_array_equal(marked.numpy(), case.marked.numpy())


def test_a_missing_marked_image_is_named(case: Case) -> None:
    (case.folder / "marked" / "set" / "chelsea.png").unlink()
    with pytest.raises(DatasetError, match=r"holds no marked version of set/chelsea\.png"):
        case.method(command="true").embed(case.images, keys(3), Seed.root(0))


def test_a_marked_image_of_another_size_is_refused_with_both_sizes(case: Case) -> None:
    Image.new("RGB", (200, 100)).save(case.folder / "marked" / "set" / "coffee.png")
    with pytest.raises(DatasetError, match=r"coffee\.png is 200x100, the unmarked image 64x64: use the dataset"):
        case.method(command="true").embed(case.images, keys(3), Seed.root(0))


def test_a_marked_file_that_is_no_image_is_named(case: Case) -> None:
    (case.folder / "marked" / "set" / "coffee.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(DatasetError, match=r"coffee\.png cannot be read as an image"):
        case.method(command="true").embed(case.images, keys(3), Seed.root(0))


# A CSV --------------------------------------------------------------------------------------------------------------


def test_a_csv_of_bits_gives_each_image_its_bits(case: Case) -> None:
    method = case.method(scores=case.csv("bits", {"marked": KEY, "unmarked": "0" * 16}), payload=16)
    assert bits_of(method, case.marked) == [KEY] * 3
    assert bits_of(method, case.images.take([2, 0])) == ["0" * 16] * 2


def test_a_csv_of_scores_gives_each_image_its_score(case: Case) -> None:
    path = case.folder / "scores.csv"
    rows = [f"set/{name}.png,{arm},{i + 10 * (arm == 'marked')}.25" for arm in ("marked", "unmarked")
            for i, name in enumerate(("astronaut", "chelsea", "coffee"))]  # fmt: skip
    path.write_text("\n".join(["arm_comment,image,arm,score", *(f"why,{row}" for row in reversed(rows))]))
    method = case.method(scores=path)
    assert scores_of(method, case.marked) == [10.25, 11.25, 12.25]
    assert scores_of(method, case.images.take([1])) == [1.25]


def test_a_csv_as_a_spreadsheet_writes_it_is_read(case: Case) -> None:
    path = case.csv("score", {"marked": " 2 ", "unmarked": "1e-3"}, encoding="utf-8-sig")
    assert scores_of(case.method(scores=path), case.marked) == [2.0] * 3
    assert scores_of(case.method(scores=path), case.images) == [0.001] * 3


def test_a_csv_knows_images_only_as_they_are(case: Case) -> None:
    method = case.method(scores=case.csv("score", {"marked": "1", "unmarked": "0"}))
    changed = case.marked.numpy().copy()
    changed[1, 5, 5, 0] ^= 1
    with pytest.raises(DatasetError, match=r"scores\.csv has no row for set/chelsea\.png with these pixels"):
        method.decode(case.images.with_pixels(changed))
    assert method.refuses("identity") is None
    assert method.refuses("jpeg") == "scores.csv holds no scores of attacked images: give 'command' instead"
    assert case.method(command="true").refuses("jpeg") is None


def test_an_edited_csv_is_read_anew(case: Case) -> None:
    before = case.method(scores=case.csv("score", {"marked": "1", "unmarked": "0"}))
    assert scores_of(before, case.marked) == [1.0] * 3
    spec = before.spec()
    after = case.method(scores=case.csv("score", {"marked": "5", "unmarked": "0"}))
    assert scores_of(after, case.marked) == [5.0] * 3
    assert after.spec().id != spec.id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,arm,value\nset/coffee.png,marked,1\n", "scores.csv lacks the column score"),
        ("", "scores.csv lacks the column arm, image, score"),
        ("image,arm,score\nset/coffee.png,watermarked,1\n", "line 2: arm is marked or unmarked, not 'watermarked'"),
        ("image,arm,score\nset/coffee.png,marked,1\nset/tea.png,marked,1\n", "no marked version of set/tea.png"),
        ("image,arm,score\nset/coffee.png,marked\n", "line 2: expected 3 columns"),
        ("image,arm,score\nset/coffee.png,marked,1,2\n", "line 2: expected 3 columns"),
        (
            "image,arm,score\nset/coffee.png,marked,1\nset/coffee.png,marked,2\n",
            "line 3: the same image has '1' and '2'",
        ),
        ("image,arm,score\n", "has no row for set/astronaut.png with these pixels"),
    ],
)
def test_a_csv_that_is_wrong_says_where_and_what(case: Case, text: str, says: str) -> None:
    (case.folder / "scores.csv").write_text(text)
    with pytest.raises(DatasetError) as caught:
        case.method(scores=case.folder / "scores.csv").decode(case.marked)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_csv_in_another_encoding_says_so(case: Case) -> None:
    (case.folder / "scores.csv").write_bytes("image,arm,score\ncafé.png,marked,1\n".encode("latin-1"))
    with pytest.raises(DatasetError, match=r"scores\.csv cannot be read as a CSV in UTF-8"):
        case.method(scores=case.folder / "scores.csv").decode(case.marked)


@pytest.mark.parametrize(
    ("payload", "word", "says"),
    [
        (0, "high", "expected a number as score, got 'high'"),
        (0, "", "expected a number as score, got ''"),
        (16, "0101", "expected 16 bits of 0 and 1, got '0101'"),
        (16, "0" * 15 + "2", "expected 16 bits of 0 and 1, got"),
    ],
)
def test_a_word_that_is_no_score_or_no_payload_is_quoted(case: Case, payload: int, word: str, says: str) -> None:
    column = "bits" if payload else "score"
    path = case.csv(column, {"marked": word, "unmarked": word})
    with pytest.raises(ContractError) as caught:
        case.method(scores=path, payload=payload).decode(case.marked)
    assert says in str(caught.value)


# A program ----------------------------------------------------------------------------------------------------------


def test_a_program_reads_bits_from_the_very_pixels(case: Case) -> None:
    method = case.method(command=case.program(), payload=16)
    assert bits_of(method, case.marked) == [KEY] * 3
    assert KEY not in bits_of(method, case.images)


def test_a_program_gives_scores(case: Case) -> None:
    method = case.method(command=case.program(READER, "--score"))
    assert scores_of(method, case.marked) == [10 / 16] * 3


@pytest.mark.parametrize("separator", [" ", ",", "\\t", ", ", "   "])
def test_a_program_may_separate_with_spaces_or_a_comma_and_say_more(case: Case, separator: str) -> None:
    text = f"print('loading the network')\nfor i in (2, 0, 1): print(f'{{i:05d}}.png{separator}{{i / 4}}')\nprint()"
    assert scores_of(case.method(command=case.program(text)), case.marked) == [0.0, 0.25, 0.5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise SystemExit('no weights found')", "the program ended with code 1: no weights found"),
        ("import os; os._exit(7)", "the program ended with code 7: no message"),
        ("1 / 0", "the program ended with code 1: ZeroDivisionError: division by zero"),
        ("import os; os.kill(os.getpid(), 9)", "the program ended with code -9: no message"),
        ("print('all done')", "the program printed nothing for 00000.png"),
        ("print('00000.png 0.5')\nprint('00002.png 0.5')", "the program printed nothing for 00001.png"),
        ("for i in range(3): print(f'{i:05d}.png good')", "expected a number as score, got 'good'"),
        ("for i in range(3): print(f'{i:05d}.png nan')", "expected a number as score, got 'nan'"),
        ("import sys; sys.stdout.buffer.write(bytes(range(256)) * 9)", "the program printed nothing for 00000.png"),
    ],
)
def test_a_program_that_fails_or_prints_garbage_is_quoted(case: Case, text: str, says: str) -> None:
    with pytest.raises(ContractError) as caught:
        case.method(command=case.program(text), title="my mark").decode(case.marked)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(case: Case) -> None:
    # The program waits for a child that holds its output open, as a wrapper script does.
    text = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    started = time.monotonic()
    with pytest.raises(ContractError, match="my mark: the program took more than 1 s"):
        case.method(command=case.program(text), title="my mark", seconds=1).decode(case.marked)
    assert time.monotonic() - started < 20


def test_a_program_gets_no_input_to_wait_for(case: Case) -> None:
    text = "import sys; sys.stdin.read()\nfor i in range(3): print(f'{i:05d}.png 1')"
    assert scores_of(case.method(command=case.program(text), seconds=60), case.marked) == [1.0] * 3


def test_a_program_that_is_not_there_is_named(case: Case) -> None:
    with pytest.raises(ContractError, match="there is no program 'no-such-program'"):
        case.method(command="no-such-program --fast").decode(case.marked)
    with pytest.raises(ContractError, match=r"cannot be started: .*Permission denied"):
        case.method(command=shlex.quote(str(case.folder))).decode(case.marked)


@pytest.mark.parametrize(("command", "says"), [("", "name a program"), ("read 'it", "no closing quotation")])
def test_a_command_that_is_no_command_is_refused_at_once(case: Case, command: str, says: str) -> None:
    with pytest.raises(SpecError, match=f"folder-marked: command: {says}"):
        case.method(command=command)


# What it needs, what it is called -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"marked": "absent", "command": "true"}, "there is no folder absent"),
        ({}, "give exactly one of 'scores' (a CSV) and 'command' (a program)"),
        ({"scores": "a.csv", "command": "true"}, "give exactly one of 'scores'"),
        ({"scores": "absent.csv"}, "there is no file absent.csv"),
        ({"scores": __file__, "unmarked": None}, "with 'scores', give 'unmarked', the folder of the unmarked images"),
        ({"scores": __file__, "unmarked": "absent"}, "with 'scores', give 'unmarked'"),
        ({"command": "true", "unmarked": None}, None),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(case: Case, params: dict[str, Any], says: str | None) -> None:
    reason = case.method(**params).unavailable()
    assert reason is None if says is None else says in str(reason)


def test_every_marked_file_is_part_of_the_identity_and_its_place_is_not(case: Case) -> None:
    method = case.method(command="read", payload=16)
    before = method.spec().id
    moved = case.folder / "moved"
    (case.folder / "marked").rename(moved)
    assert case.method(marked=moved, command="read", payload=16).spec().id == before
    assert case.method(marked=moved, command="other", payload=16).spec().id != before
    assert case.method(marked=moved, command="read", payload=16, program_version="2").spec().id != before
    Image.new("RGB", (64, 64)).save(moved / "set" / "coffee.png")
    assert case.method(marked=moved, command="read", payload=16).spec().id != before


def test_a_title_is_its_name_in_reports(case: Case) -> None:
    assert case.method(command="true").label == "folder-marked(marked)"
    assert case.method(command="true", title="StegaStamp v2").label == "StegaStamp v2"


def test_a_csv_skips_attacked_cells_in_the_plan(case: Case) -> None:
    params = {k: str(case.folder / v) for k, v in (("marked", "marked"), ("unmarked", "unmarked"))}
    params["scores"] = str(case.csv("score", {"marked": "1", "unmarked": "0"}))
    value = {"name": "b", "dataset": "deadleaves", "methods": [{"folder-marked": params}], "metrics": []}
    plan = make_plan(validate({**value, "attacks": ["identity", "flip"]}))
    reason = "scores.csv holds no scores of attacked images: give 'command' instead"
    assert [cell.skipped for cell in plan.cells] == [None, None, reason, reason]


def test_a_run_with_a_program_measures_attacked_images(case: Case) -> None:
    run = evaluate(
        [{"folder-marked": {"marked": str(case.folder / "marked"), "command": case.program(), "payload": 16}}],
        {"folder": {"root": str(case.folder / "unmarked"), "policy": "native"}},
        ["identity", {"brightness": {"factor": 0.5}}],
        out=case.folder / "run",
        key=KEY,
        metrics=["psnr"],
        runtime={"engine": "inline"},
    )
    assert run.ok
    scores = run.scores().groupby(["attack", "arm"])["bit_accuracy"].min()
    assert scores["identity", "marked"] == 1
    assert scores["brightness(factor=0.5)", "marked"] < 1
    values, _, _ = run.quality("folder-marked(marked)", "identity", "psnr")
    # Half of the lowest bits change: the mean squared error of a third of the values is about 1 / 2.
    np.testing.assert_allclose(values, 10 * np.log10(255**2 * 3 * 2), atol=0.5)
