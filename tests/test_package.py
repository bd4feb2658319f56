"""The package as a whole: what it imports, what it ships, what it calls public, and which sources are which version."""

from __future__ import annotations

import ast
import csv
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest

import waterproof
from waterproof.core.components import field_roles
from waterproof.core.registry import entries, load_class

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).resolve().parent / "golden"
REGENERATE = "python -m pytest tests/test_package.py --update-golden"
FOLDERS = ("core", "datasets", "attacks", "bench", "reports")
MAY_IMPORT = {
    "core": {"core"},
    "attacks": {"attacks", "core"},
    "datasets": {"datasets", "core"},
    "bench": {"bench", "attacks", "datasets", "core"},
    "reports": {"reports", "bench", "attacks", "datasets", "core"},
}
SHIPPED = {".py", ".yaml", ".csv", ".html", ".css", ".js"}


def sources() -> list[Path]:
    """The package's Python files."""
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return sorted([*ROOT.glob("*.py"), *below])


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


each_source = pytest.mark.parametrize("path", sources(), ids=name)


# Imports ------------------------------------------------------------------------------------------------------------


def imported_folders(path: Path) -> set[str]:
    """The package folders that a file imports, also lazily and for type checking only."""
    place = ("waterproof", *path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            full = (*place[: -node.level], *(node.module or "").split("."))
            found |= {full[1]} if len(full) > 1 and full[1] else {alias.name for alias in node.names}
    return found & {*FOLDERS, "__main__"}


@pytest.mark.parametrize("path", [p for p in sources() if p.parent != ROOT], ids=name)
def test_imports_point_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    assert imported_folders(path) <= MAY_IMPORT[folder], f"{folder} may import only {sorted(MAY_IMPORT[folder])}"


def test_the_import_check_sees_imports() -> None:
    seen = {folder: set[str]().union(*map(imported_folders, (ROOT / folder).rglob("*.py"))) for folder in FOLDERS}
    assert seen == {
        "core": {"core"},
        "attacks": {"core", "attacks"},
        "datasets": {"core", "datasets"},
        "bench": {"core", "datasets", "attacks", "bench"},
        "reports": {"core", "attacks", "bench", "reports"},
    }
    assert imported_folders(ROOT / "__main__.py") >= {"core", "bench", "reports"}


@each_source
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            assert (node.module or "").split(".")[0] not in ("waterproof", *FOLDERS)
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & {"waterproof", *FOLDERS}


def test_only_the_root_has_an_init_file() -> None:
    # An __init__ below the root would make ./datasets shadow Hugging Face's package of that name.
    assert [name(path) for path in sources() if path.name == "__init__.py"] == ["__init__.py"]


def fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("arguments", [None, ["list"], ["--help"], ["run", "--help"], ["--version"]], ids=str)
def test_importing_listing_and_helping_load_no_heavy_package_and_are_quick(arguments: list[str] | None) -> None:
    use = f"sys.argv[1:] = {arguments}; import waterproof.__main__ as m\ntry: m.main()\nexcept SystemExit: pass\n"
    code = "import sys, waterproof\n" + (use if arguments else "")
    heavy = "{'torch', 'numpy', 'cv2', 'pandas', 'scipy', 'pyarrow', 'PIL', 'matplotlib'}"
    end = f"import time\nprint(time.process_time())\nprint('LOADED', sorted({heavy} & set(sys.modules)))"
    *_, seconds, loaded = fresh_python(code + end).splitlines()
    assert loaded == "LOADED []"
    # Processor time, with room for slow machines; half a second of it is what a person waits on a common one.
    assert float(seconds) < 3


# The wheel ----------------------------------------------------------------------------------------------------------


def should_ship() -> set[str]:
    below = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
    # Trained weights travel with all that lies beside them.
    data = [path for path in below if ROOT / "core" / "shipped" in path.parents]
    files = [*ROOT.glob("*.py"), *(path for path in below if path.suffix in SHIPPED), *data, ROOT / "py.typed"]
    return {f"waterproof/{name(path)}" for path in files if "__pycache__" not in path.parts}


def installed_wheel() -> set[str] | None:
    """The files of the installed distribution; None where it is an editable install."""
    files = importlib.metadata.files("waterproof") or []
    shipped = {file.as_posix() for file in files if file.as_posix().startswith("waterproof/")}
    return {file for file in shipped if not file.endswith(".pyc")} or None


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that is built from a copy of the checkout."""
    for needed in ("pip", "setuptools"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"building a wheel needs {needed}")
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "tests")
    shutil.copytree(ROOT, folder / "source", ignore=ignore)
    # What must not ship although it lies there.
    (folder / "source" / "tests").mkdir()
    (folder / "source" / "tests" / "conftest.py").write_text("")
    (folder / "source" / "bench" / "methods" / "notes.txt").write_text("")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", str(folder / "source")]
    options = ["--no-deps", "--no-build-isolation", "-q", "-w", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (record,) = [n for n in archive.namelist() if n.endswith(".dist-info/RECORD")]
        rows = csv.reader(io.StringIO(archive.read(record).decode()))
        return {row[0] for row in rows if ".dist-info/" not in row[0]}


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(request: pytest.FixtureRequest) -> None:
    files = installed_wheel() or request.getfixturevalue("built_wheel")
    assert sorted(files) == sorted(should_ship())


# The public API -----------------------------------------------------------------------------------------------------


PUBLIC_MODULES = (
    "core/components.py",
    "core/errors.py",
    "core/identity.py",
    "core/images.py",
    "core/registry.py",
    "core/seeds.py",
    "attacks/base.py",
    "datasets/base.py",
    "bench/methods/base.py",
    "bench/metrics.py:Metric",
    "bench/results.py:Run",
    "bench/results.py:load_run",
    "bench/run.py:evaluate",
)


def describe_api() -> list[str]:
    """A line for every public name: functions and methods with their parameters and defaults."""
    lines = [f"waterproof: {', '.join(sorted(waterproof.__all__))}"]
    for place in PUBLIC_MODULES:
        file, _, only = place.partition(":")
        for node in parsed(ROOT / file).body:
            lines += [f"{file[:-3].replace('/', '.')}.{n}" for n in public_names(node) if not only or _is_in(n, only)]
    return lines


def _is_in(line: str, owner: str) -> bool:
    return re.match(rf"{owner}\b", line) is not None


def public_names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        (target,) = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not isinstance(target, ast.Name) or target.id.startswith("_") or target.id == "model_config":
            return []
        default = f" = {ast.unparse(node.value)}" if isinstance(node, ast.AnnAssign) and node.value else ""
        return [target.id + default]
    if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
        return []
    if isinstance(node, ast.FunctionDef):
        decorators = {ast.unparse(d) for d in node.decorator_list}
        if decorators & {"property", "cached_property"}:
            return [node.name]
        bound = {"self", "cls"} if "classmethod" in decorators else {"self"}
        return [f"{node.name}({', '.join(p for p in parameters(node.args) if p not in bound)})"]
    inside = [f"{node.name}.{line}" for item in node.body for line in public_names(item)]
    return [f"{node.name}({', '.join(map(ast.unparse, node.bases))})", *inside]


def parameters(given: ast.arguments) -> list[str]:
    ordered = [*given.posonlyargs, *given.args]
    defaults = [*[None] * (len(ordered) - len(given.defaults)), *given.defaults]
    names = [(a.arg, d) for a, d in zip(ordered, defaults, strict=True)]
    if given.vararg or given.kwonlyargs:
        names.append((f"*{given.vararg.arg if given.vararg else ''}", None))
    names += [(a.arg, d) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)]
    names += [(f"**{given.kwarg.arg}", None)] if given.kwarg else []
    return [n if d is None else f"{n}={ast.unparse(d)}" for n, d in names]


def test_every_promised_name_can_be_imported() -> None:
    assert set(dir(waterproof)) == set(waterproof.__all__)
    assert all(getattr(waterproof, n) is not None for n in waterproof.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        _ = waterproof.evaluat


def test_the_version_is_the_distribution_s_version() -> None:
    assert waterproof.__version__ == importlib.metadata.version("waterproof")


def test_the_public_api_is_the_golden_list(update_golden: bool) -> None:
    file = GOLDEN / "public_api.txt"
    text = f"# The public API. After a deliberate change: {REGENERATE}\n" + "\n".join(describe_api()) + "\n"
    if update_golden:
        file.write_text(text, encoding="utf-8")
    old, new = (t.splitlines()[1:] for t in (file.read_text(encoding="utf-8"), text))
    change = [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]
    assert old == new, "\n".join(["the public API changed; if that is meant:", REGENERATE, *change])


# Components ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "component"), list(entries()), ids=" ".join)
def test_every_field_of_a_component_is_classified_and_explained(kind: str, component: str) -> None:
    cls = load_class(kind, component)
    roles = field_roles(cls)
    assert "unclassified" not in roles.values(), roles
    assert all(info.description for info in cls.model_fields.values())


def plain(node: object) -> object:
    """A syntax tree as lists, without docstrings, positions and whatever differs between versions of Python."""
    if isinstance(node, list):
        return [plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {key: value for key, value in ast.iter_fields(node) if value not in (None, []) and key not in _UNSTABLE}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = [item for item in node.body if not _is_text(item)]
    if isinstance(node, ast.Call):
        fields["keywords"] = [keyword for keyword in node.keywords if keyword.arg != "doc"]
    return [type(node).__name__, *([key, plain(fields[key])] for key in sorted(fields))]


_UNSTABLE = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def module_file(kind: str, component: str) -> Path:
    """The file in this checkout, also where the tests run against an installed wheel."""
    return ROOT.joinpath(*load_class(kind, component).__module__.split(".")[1:]).with_suffix(".py")


OWN = [key for key, entry in entries().items() if entry.origin == "waterproof"]
REGISTERED = {module_file(*key) for key in OWN}


def with_support(path: Path, seen: frozenset[Path] = frozenset()) -> frozenset[Path]:
    """A component's module and those beside it that it imports and that hold neither components nor contracts."""
    seen |= {path}
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            beside = path.with_name(f"{node.module}.py")
            if beside.is_file() and beside.name != "base.py" and beside not in REGISTERED | seen:
                seen |= with_support(beside, seen)
    return seen


def component_sources() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for key in OWN:
        tree = json.dumps([[p.name, plain(parsed(p))] for p in sorted(with_support(module_file(*key)))])
        digest = hashlib.sha256(tree.encode()).hexdigest()
        found[" ".join(key)] = {"version": load_class(*key).version, "source": digest}
    return found


def test_a_component_whose_source_changes_raises_its_version(update_golden: bool) -> None:
    file = GOLDEN / "component_sources.json"
    new = component_sources()
    if update_golden:
        file.write_text(json.dumps(new, indent=1) + "\n", encoding="utf-8")
    old = json.loads(file.read_text(encoding="utf-8"))
    silent = [n for n in new if n in old and new[n] != old[n] and new[n]["version"] == old[n]["version"]]
    assert not silent, (
        f"the source of {', '.join(silent)} changed and the version did not. Stored results are found by version: "
        f"raise the version if any result can differ; then, or if none can, regenerate with: {REGENERATE}"
    )
    assert new == old, f"components were added, removed or raised; regenerate with: {REGENERATE}"


def test_docstrings_comments_and_layout_do_not_count_as_source() -> None:
    one = 'def f(x):\n    """Doc."""\n    # why\n    return g(x, "a")\n'
    other = "def f( x ):\n    return g(x,\n        'a')"
    assert plain(ast.parse(one)) == plain(ast.parse(other))
    assert plain(ast.parse(one)) != plain(ast.parse(one.replace("a", "b")))
    assert plain(ast.parse("param(1, doc='a')")) == plain(ast.parse("param(1, doc='b')"))
    assert plain(ast.parse("x = 1")) != plain(ast.parse("x = 1.0"))
    assert plain(ast.parse("x = True")) != plain(ast.parse("x = 1"))


def test_support_modules_count_as_source_of_the_components_that_use_them() -> None:
    assert {p.name for p in with_support(ROOT / "datasets" / "folder.py")} == {"folder.py", "decoding.py"}
    assert {p.name for p in with_support(ROOT / "attacks" / "chain.py")} == {"chain.py"}


# Style --------------------------------------------------------------------------------------------------------------


@each_source
def test_package_code_neither_asserts_nor_prints(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert vanishes under -O"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "breakpoint"), f"line {node.lineno}: {node.func.id}()"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"


def texts() -> list[Path]:
    """Every text file of the project."""
    endings = {*SHIPPED, ".md", ".toml", ".ini", ".txt", ".json", ".cfg", ".csv"}
    own = [path for path in ROOT.iterdir() if path.is_file()]
    below = [path for folder in (*FOLDERS, "tests", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    files = (path for path in own + below if path.suffix in endings and "__pycache__" not in path.parts)
    return sorted(path for path in files if not path.name.startswith("."))


@pytest.mark.parametrize("path", texts(), ids=name)
def test_text_files_hold_no_leftovers(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # Put together here, so that this file does not find itself.
    places, words = ("work", "tmp", "home", "root", "Users", "mnt"), ("TO" + "DO", "FIX" + "ME", "XX" + "X")
    machine = re.compile(rf"(?<![\w.:/}}])/(?:{'|'.join(places)})/\w")
    leftovers = re.compile(rf"\b(?:{'|'.join(words)})\b")
    for pattern in (machine, leftovers):
        found = pattern.search(text)
        assert found is None, f"line {text[: found.start()].count(chr(10)) + 1}: {found.group()}" if found else ""
