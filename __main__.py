"""The command line: a thin layer over Python functions of the same names."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ._version import __version__
from .core.errors import UserError
from .reports.commands import app as judging
from .reports.training import app as training

app = typer.Typer(
    name="waterproof",
    help="Does an image's origin mark survive, and how sure are you?",
    epilog="Start with:  waterproof run quick",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


Benchmarks = Annotated[str, typer.Argument(help="A preset (see `waterproof list presets`) or a YAML file.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. [default: runs/NAME]")]
Params = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="PARAM=VALUE", help="A parameter; may be given again.")
]


@app.command()
def run(
    benchmark: Benchmarks,
    out: Out = None,
    dataset: Annotated[
        str | None, typer.Option(help="Use this dataset: a name, or YAML such as '{folder: {root: photos}}'.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Short for a folder of images of your own.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Use these methods: a YAML list, e.g. 'dwt-dct, rivagan'.")
    ] = None,
    attacks: Annotated[str | None, typer.Option(help="Use these attacks: a YAML list.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Use these quality metrics: a YAML list.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many images, chosen by a hash of their ids.")] = None,
    seed: Annotated[int | None, typer.Option(help="The run seed.")] = None,
    key: Annotated[str | None, typer.Option(help="fixed, per-image, or a string of 0 and 1.")] = None,
    fpr: Annotated[float | None, typer.Option(help="The false-positive rate to hold.")] = None,
    rule: Annotated[str | None, typer.Option(help="Threshold rule: theory, certified, extrapolated or fixed.")] = None,
    threshold: Annotated[float | None, typer.Option(help="The threshold of the rule fixed.")] = None,
    calibration: Annotated[
        float | None, typer.Option(help="Share of the sources that calibrate; 0: every image is tested.")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="processes or inline.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; 0: one per core.")] = None,
    shard: Annotated[int | None, typer.Option(help="Images in a shard, the unit of work.")] = None,
    cell_seconds: Annotated[float | None, typer.Option(help="Time limit of each stage of a cell on one shard.")] = None,
    extend: Annotated[
        bool, typer.Option("--extend", help="Add to the smaller benchmark that is in the folder.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, how long and how big.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write the report at the end.")] = True,
) -> None:
    """Run a benchmark, or finish an interrupted one: the same command again does only what is missing.

    Exit codes: 0 all well, 2 wrong input, 3 some cells failed, 4 nothing was measured, 130 interrupted.

    Examples:
        waterproof run quick

        waterproof run distortions --data photos --methods 'dwt-dct, dwt-dct-svd' --limit 200

        waterproof run my-benchmark.yaml --out runs/mine --dry-run
    """
    from .bench.benchmark import load_benchmark
    from .bench.dry import estimate
    from .bench.run import make_listed_plan, run_benchmark

    overrides: dict[str, Any] = {"limit": limit, "seed": seed, "key": key}
    overrides |= {"dataset": _yaml(dataset), "methods": _yaml_list(methods), "attacks": _yaml_list(attacks)}
    overrides["metrics"] = _yaml_list(metrics)
    if data is not None:
        overrides["dataset"] = {"folder": {"root": str(data)}}
    overrides["decision"] = _given(fpr=fpr, rule=rule, threshold=threshold, calibration=calibration)
    overrides["runtime"] = _given(engine=engine, workers=workers, shard=shard, cell_seconds=cell_seconds)
    wanted = load_benchmark(benchmark, {k: v for k, v in overrides.items() if v not in (None, {})})
    folder = out or Path("runs") / wanted.name
    plan = make_listed_plan(wanted)
    if dry_run:
        typer.echo(estimate(plan))
        raise typer.Exit
    _say_plan(plan, folder)
    finished = run_benchmark(wanted, folder, plan, extend)
    _finish(finished, report)


def _say_plan(plan: Any, folder: Path) -> None:
    skipped = {c.skipped for c in plan.cells if c.skipped and "pixel by pixel" not in c.skipped}
    rejected = f", {len(plan.index.rejected)} unusable (see unreadable.csv)" if plan.index.rejected else ""
    _note(
        f"{plan.benchmark.name}: {len(plan.records)} images{rejected}, {len(plan.methods)} methods x "
        f"{len(plan.attacks)} attacks = {len(plan.cells)} cells -> {folder}"
    )
    for reason in sorted(skipped):
        _note(f"  skipped: {reason}")


def _finish(finished: Any, report: bool) -> None:
    from .reports.terminal import print_citations, print_summary
    from .reports.write import write_report

    print_summary(finished)
    if report and finished.measured:
        page = write_report(finished)
        typer.echo(f"report: {page}")
        _attribute(finished)
    print_citations(finished)
    if not finished.measured:
        _note("nothing was measured: see cells.parquet for the reasons")
        raise typer.Exit(4)
    if not finished.ok:
        bad = finished.cells[~finished.cells["status"].isin(["ok", "skipped"])]
        _note(f"{len(bad)} of {len(finished.cells)} cells failed or are incomplete; the first reasons:")
        for reason in bad["reason"].dropna().unique()[:5]:
            _note(f"  {reason}")
        raise typer.Exit(3)


def _attribute(finished: Any) -> None:
    """The attribution page of a benchmark that names numbers of users."""
    users = finished.config["benchmark"].get("users")
    if users:
        from .reports.attribution import print_attribution, write_attribution
        from .reports.running import attribution_studies

        studies = attribution_studies(finished, users, None, None, None, None)
        page = write_attribution(finished, studies, finished.folder / "attribution")
        print_attribution(studies)
        typer.echo(f"attribution: {page}")


@app.command(name="list")
def list_command(
    kind: Annotated[str | None, typer.Argument(help="methods, attacks, datasets, metrics, editors or presets.")] = None,
) -> None:
    """List everything that has a name. Imports no component.

    Example:
        waterproof list attacks
    """
    from .core.errors import SpecError, nearest
    from .core.registry import KINDS, entries

    kinds = [f"{k}s" for k in KINDS]
    if kind is not None and kind not in [*kinds, "presets", *KINDS, "preset"]:
        raise SpecError(f"cannot list '{kind}'.{nearest(kind, [*kinds, 'presets'])}")
    for one in KINDS:
        if kind in (None, one, f"{one}s"):
            typer.secho(f"{one}s", bold=True)
            for entry in (e for (k, _), e in entries().items() if k == one):
                typer.echo(f"  {entry.name:<24}{entry.family:<25}{entry.summary}")
    if kind in (None, "preset", "presets"):
        from importlib import resources

        typer.secho("presets", bold=True)
        folder = resources.files(__package__) / "bench" / "presets"
        for item in sorted(folder.iterdir(), key=lambda p: p.name.removesuffix(".yaml")):
            if item.name.endswith(".yaml"):
                lines = item.read_text(encoding="utf-8").splitlines()
                text = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("summary:")), "")
                typer.echo(f"  {item.name.removesuffix('.yaml'):<38}{text}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="A component or preset.")]) -> None:
    """Show what a component does, its parameters with ranges and defaults, and its strengths; or a preset's text.

    Examples:
        waterproof show jpeg

        waterproof show distortions
    """
    from .reports.describe import describe

    typer.echo(describe(name))


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="A registered name, or file.py:Class.")],
    params: Params = None,
) -> None:
    """Run the contract suite on one component: does it keep what its contract promises?

    Exit codes: 0 all kept, 3 something broken.

    Examples:
        waterproof check dwt-dct

        waterproof check my_mark.py:MyMark --set strength=2
    """
    from .bench.check import check_component

    broken = 0
    for result in check_component(target, _params(params)):
        typer.echo(f"{'ok  ' if result.ok else 'FAIL'}  {result.promise}{'' if result.ok else ': ' + result.detail}")
        broken += not result.ok
    if broken:
        raise typer.Exit(3)


@app.command()
def embed(
    method: Annotated[str, typer.Argument(help="A watermark, or file.py:Class.")],
    image: Annotated[Path, typer.Argument(help="The image to mark.")],
    out: Annotated[Path, typer.Argument(help="Where to write the marked image (PNG keeps every bit).")],
    key: Annotated[str | None, typer.Option(help="Payload of 0 and 1. [default: drawn from the seed]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the payload.")] = 0,
    params: Params = None,
) -> None:
    """Mark one image.

    Example:
        waterproof embed dwt-dct-svd photo.jpg marked.png --seed 7
    """
    from .bench.single import embed_file

    typer.echo(embed_file(method, image, out, key, seed, _params(params)))


@app.command()
def detect(
    method: Annotated[str, typer.Argument(help="A watermark or detector, or file.py:Class.")],
    image: Annotated[Path, typer.Argument(help="The image to look at.")],
    key: Annotated[str | None, typer.Option(help="Payload to test for. [default: drawn from the seed]")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the payload.")] = 0,
    fpr: Annotated[float, typer.Option(help="False-positive rate of the decision.")] = 1e-6,
    params: Params = None,
) -> None:
    """Look for a mark in one image: matching bits, p-value, decision.

    Example:
        waterproof detect dwt-dct-svd marked.png --seed 7
    """
    from .bench.single import detect_file

    typer.echo(detect_file(method, image, key, seed, fpr, _params(params)))


@app.command()
def attack(
    name: Annotated[str, typer.Argument(help="An attack, or file.py:Class.")],
    image: Annotated[Path, typer.Argument(help="The image to attack.")],
    out: Annotated[Path, typer.Argument(help="Where to write the attacked image (PNG keeps every bit).")],
    seed: Annotated[int, typer.Option(help="Seed of the attack's draws.")] = 0,
    params: Params = None,
) -> None:
    """Attack one image.

    Example:
        waterproof attack jpeg marked.png attacked.png --set quality=50
    """
    from .bench.single import attack_file

    typer.echo(attack_file(name, image, out, seed, _params(params)))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The set of weights: stable-signature.")] = "stable-signature",
) -> None:
    """Download weights that others published, check them, and keep them in the weights folder.

    The folder is $WATERPROOF_WEIGHTS, or waterproof in the user's cache. Without a network it says what to put where.

    Example:
        waterproof fetch stable-signature
    """
    from .bench.methods.stable_signature.released import fetch as fetch_weights
    from .core.progress import progress_bar

    with progress_bar(f"fetching {name}", None, "bytes") as tick:
        paths = fetch_weights(name, tick)
    for path in paths:
        typer.echo(path)


app.add_typer(judging)
app.add_typer(training, name="train")


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _yaml(text: str | None) -> Any:
    from .bench.yaml_lines import parse

    return None if text is None else parse(text, "the command line")[0]


def _yaml_list(text: str | None) -> Any:
    if text is None:
        return None
    return _yaml(text if text.lstrip().startswith("[") else f"[{text}]")


def _params(pairs: list[str] | None) -> dict[str, Any]:
    from .core.errors import SpecError

    found = {}
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not sign:
            raise SpecError(f"--set takes PARAM=VALUE, not '{pair}'")
        found[name] = _yaml(value)
    return found


def _note(text: str) -> None:
    typer.echo(text, err=True)


def main() -> None:
    """Runs the command line; a person's mistake becomes one line, never a traceback."""
    try:
        code = app(standalone_mode=False, prog_name="waterproof")
    except UserError as error:
        _note(f"waterproof: {error}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        code = _unexpected(error)
    # Some versions of typer turn Ctrl-C into this exit code themselves.
    if code == 130:
        _note("interrupted; what is finished is stored, the same command goes on from there")
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception) -> int:
    # The option parser's own exceptions, wherever typer keeps them, know how to show themselves.
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return 2
    import traceback

    _note("".join(traceback.format_exception(error)))
    _note("waterproof: an internal error; the lines above belong in a bug report")
    return 70


if __name__ == "__main__":
    main()
