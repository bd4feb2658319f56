"""The benchmark file: what to run, on what, against what. Validated before anything is computed."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..attacks.base import Attack
from ..core.errors import SpecError, nearest
from ..core.registry import create, load_class
from .statistics.thresholds import Rule
from .yaml_lines import Place, line_of, parse

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..core.components import Component


class Ref(BaseModel):
    """A component by name, with parameters; in YAML ``name``, or ``name: {param: value}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    params: dict[str, Any] = Field(default_factory=dict)

    def create(self, kind: str) -> Component:
        """Builds the component."""
        return create(kind, self.name, self.params)


def _as_ref(value: object) -> object:
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1:
        ((name, params),) = value.items()
        if isinstance(name, str) and name != "name" and (params is None or isinstance(params, dict)):
            return {"name": name, "params": params or {}}
    if isinstance(value, Ref) or (isinstance(value, dict) and set(value) == {"name", "params"}):
        return value
    raise ValueError("a component is a name, or 'name: {parameter: value}'")


AnyRef = Annotated[Ref, BeforeValidator(_as_ref)]


def _as_attacks(value: object) -> object:
    """Attacks may also stand as ``name: all`` (every strength that the peers use) and with lists (a sweep)."""
    if not isinstance(value, list):
        raise ValueError("attacks is a list")
    return [
        {"name": next(iter(item)), "params": {"strengths": "all"}}
        if isinstance(item, dict) and len(item) == 1 and next(iter(item.values())) == "all"
        else item
        for item in value
    ]


class ScoreDecision(BaseModel):
    """How the score of a method without a payload becomes a decision: no theory gives its threshold.

    Attributes:
        fpr: the false-positive rate to hold, above 0 and below 1.
        rule: ``certified``, ``extrapolated`` or ``fixed``.
        threshold: for the rule ``fixed``: a score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fpr: float = Field(0.1, gt=0, lt=1)
    rule: Literal["certified", "extrapolated", "fixed"] = "certified"
    threshold: float | None = Field(None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _fixed_has_a_threshold(self) -> ScoreDecision:
        if (self.rule == "fixed") != (self.threshold is not None):
            raise ValueError("the rule 'fixed' and a threshold go together: give both or neither")
        return self


class Decision(BaseModel):
    """How a score becomes a decision.

    Attributes:
        fpr: the false-positive rate to hold, above 0 and below 1.
        rule: ``theory`` (binomial null), ``certified`` (upper confidence bound on the calibration images),
            ``extrapolated`` (tail law fitted to them) or ``fixed`` (the ``threshold`` that is given).
        threshold: for the rule ``fixed``: matching bits, or a score.
        sided: ``one`` or ``two``.
        calibration: share of the sources that go to calibration; 0 keeps every image for testing.
        level: confidence level of intervals.
        scores: another rule for methods whose score has no payload; None: the same for all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fpr: float = Field(0.01, gt=0, lt=1)
    rule: Rule = "theory"
    threshold: float | None = Field(None, allow_inf_nan=False)
    sided: Literal["one", "two"] = "one"
    calibration: float = Field(0.5, ge=0, lt=1)
    level: float = Field(0.95, gt=0.5, lt=1)
    scores: ScoreDecision | None = None

    @model_validator(mode="after")
    def _fixed_has_a_threshold(self) -> Decision:
        if (self.rule == "fixed") != (self.threshold is not None):
            raise ValueError("the rule 'fixed' and a threshold go together: give both or neither")
        return self


class Runtime(BaseModel):
    """Knobs that change time and memory, never a stored value.

    Attributes:
        engine: ``processes`` (one worker per core) or ``inline``.
        workers: number of worker processes; 0 means one per core.
        shard: images in a shard, the unit of work and of memory.
        cell_seconds: time limit of each stage of a cell (marking, attack, reading, metric) on the images of one size in
            one shard; the cell then fails there and the rest goes on. 0: none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["processes", "inline"] = "processes"
    workers: int = Field(0, ge=0, le=1024)
    shard: int = Field(16, ge=1, le=4096)
    cell_seconds: float = Field(600.0, ge=0)


class Editing(BaseModel):
    """How protections are judged: what editors make of protected images, beside what they make of the clean ones.

    Attributes:
        editors: what edits; see ``waterproof list editors``.
        prompts: what is asked for.
        seeds: draws for each prompt; below 2 there is no floor, and no recovery is reported.
        measures: how alike two edits are: ``ssim``, ``psnr``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    editors: list[AnyRef] = Field(default_factory=lambda: [Ref(name="image-to-image")], min_length=1)
    prompts: list[str] = Field(default_factory=lambda: [""], min_length=1)
    seeds: int = Field(3, ge=1, le=1000)
    measures: list[Literal["ssim", "psnr"]] = Field(default_factory=lambda: list(_MEASURES), min_length=1)


_MEASURES: tuple[Literal["ssim", "psnr"], ...] = ("ssim", "psnr")


def _as_key(value: object) -> object:
    if isinstance(value, str) and (value in ("fixed", "per-image") or re.fullmatch("[01]+", value)):
        return value
    raise ValueError("key is 'fixed' (one key, from the seed), 'per-image', or a string of 0 and 1 in quotes")


class Benchmark(BaseModel):
    """A whole benchmark.

    Attributes:
        name: what to call it.
        version: raised whenever the list of cells of a preset changes.
        dataset: where images come from.
        limit: use only this many images, chosen by a hash of their ids; None uses all.
        methods: what is judged.
        attacks: what happens to the images.
        metrics: image quality.
        adversary: a dataset of the images that adversaries hold, of other sources than ``dataset``: what they saw
            marked, and what they fine-tune with. None: attacks that need such images are skipped.
        seed: the run seed; every random draw derives from it.
        key: ``fixed``, ``per-image`` or a bit string.
        arms: ``marked`` and ``unmarked`` images, or only ``unmarked`` ones, where nothing but the null is asked for.
        decision: threshold rule.
        fprs: further false-positive rates at which the report gives the TPR, by theory.
        editing: for protections: editors, prompts and seeds; None judges fidelity alone.
        users: numbers of users to attribute images among; the run then ends with an attribution page.
        runtime: knobs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=80)
    version: int = Field(1, ge=1)
    summary: str = ""
    dataset: AnyRef
    limit: int | None = Field(None, ge=1)
    methods: list[AnyRef] = Field(min_length=1)
    attacks: Annotated[list[AnyRef], BeforeValidator(_as_attacks)] = Field(min_length=1)
    metrics: list[AnyRef] = Field(default_factory=lambda: [Ref(name="psnr"), Ref(name="ssim")])
    adversary: AnyRef | None = None
    seed: int = 0
    key: Annotated[str, BeforeValidator(_as_key)] = "fixed"
    arms: tuple[Literal["marked", "unmarked"], ...] = ("marked", "unmarked")
    decision: Decision = Decision()
    fprs: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    users: tuple[Annotated[int, Field(ge=1)], ...] = ()
    editing: Editing | None = None
    runtime: Runtime = Runtime()

    @field_validator("arms")
    @classmethod
    def _with_unmarked(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value not in (("marked", "unmarked"), ("unmarked",)):
            raise ValueError("arms are [marked, unmarked] or [unmarked]: no rate stands without unmarked images")
        return value

    def expanded_attacks(self) -> list[Attack]:
        """Every attack at every strength: sweeps (a list, or ``all``) opened, order kept."""
        return [attack for ref in self.attacks for attack in expand(ref)]


def expand(ref: Ref) -> list[Attack]:
    """Opens a sweep: ``jpeg: {quality: [90, 50]}`` and ``jpeg: all`` give one attack for each strength."""
    cls = load_class("attack", ref.name)
    if not issubclass(cls, Attack):
        raise SpecError(f"{ref.name} is no attack")
    strength, params = cls.strength, dict(ref.params)
    if params.get("strengths") == "all" and "strengths" not in cls.model_fields:
        del params["strengths"]
        if strength is None or not cls.strengths:
            raise SpecError(f"{ref.name} has one setting only: write '{ref.name}' without 'all'")
        params[strength] = list(cls.strengths)
    swept = [key for key, value in params.items() if isinstance(value, list) and key == strength]
    if not swept:
        return [_attack(ref.name, params)]
    values = params[swept[0]]
    if not values:
        raise SpecError(f"{ref.name}: {swept[0]} is an empty list")
    return [_attack(ref.name, {**params, swept[0]: value}) for value in values]


def _attack(name: str, params: dict[str, Any]) -> Attack:
    attack = create("attack", name, params)
    if not isinstance(attack, Attack):
        raise SpecError(f"{name} is no attack")
    return attack


def presets() -> list[str]:
    """Names of the benchmark files that ship with the package."""
    folder = resources.files(__package__) / "presets"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_benchmark(source: str | Path, overrides: dict[str, Any] | None = None) -> Benchmark:
    """Reads a benchmark file, or a preset by its name, and validates it to the last parameter.

    Args:
        source: a path to a YAML file, or the name of a preset.
        overrides: top-level fields that replace the file's; nested ``decision`` and ``runtime`` are merged.

    Raises:
        SpecError: no such file or preset; a bad line (with its number and the nearest valid word).
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise SpecError(f"no such benchmark file: {path}")
        name = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(f"{name} cannot be read as UTF-8 text: {error}") from None
    elif str(source) in presets():
        name = str(source)
        text = (resources.files(__package__) / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        raise SpecError(f"'{source}' is neither a benchmark file nor a preset.{nearest(str(source), presets())}")
    value, lines = parse(text, name)
    if not isinstance(value, dict):
        raise SpecError(f"{name}: a benchmark file is a mapping with at least: dataset, methods, attacks")
    value.setdefault("name", path.stem)
    for key, given in (overrides or {}).items():
        nested = key in ("decision", "runtime") and isinstance(given, dict)
        old = value.get(key) or {}
        value[key] = {**old, **given} if nested and isinstance(old, dict) else given
        # What did not come from the file has no line in it.
        lines = {place: line for place, line in lines.items() if place[:1] != (key,)} | {(key,): 0}
    return validate(value, name, lines)


def validate(value: dict[str, Any], name: str = "benchmark", lines: dict[Place, int] | None = None) -> Benchmark:
    """Validates a benchmark given as a dictionary; every component is built once to check its parameters."""
    lines = lines or {}

    def fail(place: Place, message: str) -> SpecError:
        line = line_of(place, lines)
        return SpecError(f"{name}{f', line {line}' if line else ''}: {message}")

    try:
        benchmark = Benchmark.model_validate(value)
    except ValidationError as error:
        raise fail(*_first_problem(error)) from None
    for field, kind in (("methods", "method"), ("attacks", "attack"), ("metrics", "metric")):
        seen: set[str] = set()
        for i, ref in enumerate(getattr(benchmark, field)):
            try:
                parts = expand(ref) if kind == "attack" else [ref.create(kind)]
            except SpecError as error:
                raise fail((field, i), str(error)) from None
            for part in parts:
                if (
                    getattr(part, "key_is_given", False)
                    and getattr(part, "bits", 0)
                    and not set(benchmark.key) <= {"0", "1"}
                ):
                    raise fail(
                        (field, i), f"{part.label} carries a payload of its own: give it as 'key', a string of 0 and 1"
                    )
                # Results are read back by label: two equal ones would be one.
                if part.label in seen:
                    raise fail((field, i), f"the {kind} {part.label} stands twice, or two would share this name")
                seen.add(part.label)
    _check_roles(benchmark, fail)
    try:
        benchmark.dataset.create("dataset")
    except SpecError as error:
        raise fail(("dataset",), str(error)) from None
    if benchmark.adversary is not None:
        try:
            benchmark.adversary.create("dataset")
        except SpecError as error:
            raise fail(("adversary",), str(error)) from None
    return benchmark


def _check_roles(benchmark: Benchmark, fail: Callable[[Place, str], SpecError]) -> None:
    """Protections are judged by other rules than marks, and only they are edited."""
    roles = {getattr(ref.create("method"), "role", "") for ref in benchmark.methods}
    if "protection" in roles and len(roles) > 1:
        raise fail(
            ("methods",), "protections and marks are judged by different rules: give each a benchmark of its own"
        )
    if benchmark.editing is None:
        return
    if "protection" not in roles:
        raise fail(("editing",), "editing judges protections, and none of the methods is one")
    for i, ref in enumerate(benchmark.editing.editors):
        try:
            ref.create("editor")
        except SpecError as error:
            raise fail(("editing", "editors", i), str(error)) from None


def _first_problem(error: ValidationError) -> tuple[Place, str]:
    item = error.errors(include_url=False)[0]
    place = tuple(part for part in item["loc"] if isinstance(part, str | int))
    where = ".".join(str(part) for part in place)
    if item["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {"decision": Decision, "runtime": Runtime, "editing": Editing}
        valid = models.get(str(place[0]), Benchmark).model_fields
        return place, f"unknown key '{place[-1]}'.{nearest(str(place[-1]), valid)}"
    if item["type"] == "missing":
        return place, f"'{where}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = f", not {given!r}" if not isinstance(given, dict | list) else ""
    return place, f"{where}: {message[0].lower()}{message[1:]}{shown}" if where else message
