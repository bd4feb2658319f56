"""What the README shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from waterproof.bench.benchmark import load_benchmark
from waterproof.bench.check import check_component

README = Path(__file__).resolve().parents[1] / "README.md"


def block(first_line: str) -> str:
    found = re.search(rf"```[a-z]*\n({re.escape(first_line)}\n.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_method_in_one_file_keeps_its_contract(tmp_path: Path) -> None:
    file = tmp_path / "my_mark.py"
    file.write_text(block("# my_mark.py"), encoding="utf-8")
    results = list(check_component(f"{file}:MyMark"))
    assert len(results) > 5
    assert [result for result in results if not result.ok] == []


def test_the_benchmark_file_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_mark.py").write_text(block("# my_mark.py"), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(block("# mine.yaml"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    benchmark = load_benchmark("mine.yaml")
    assert len(benchmark.expanded_attacks()) > 10


@pytest.mark.parametrize("marker", ["run command", "test command"])
def test_each_command_is_one_line(marker: str) -> None:
    found = re.search(rf"<!-- {marker} -->\n```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[1].count("\n") == 1
