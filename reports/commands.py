"""The commands that judge what is measured: nothing here runs a method, except where ``null`` is given one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

MOST_USERS = 10**9
"""More keys than that take hours to search."""

Fpr = Annotated[float | None, typer.Option(help="The false-positive rate to hold. [default: the run's]")]
Rule = Annotated[str | None, typer.Option(help="Threshold rule: theory, certified, extrapolated or fixed.")]
Fixed = Annotated[float | None, typer.Option("--threshold", help="The threshold of the rule fixed.")]
Sided = Annotated[str | None, typer.Option(help="one, or two: as many wrong bits are evidence too.")]
Share = Annotated[
    float | None, typer.Option("--calibration", help="Share of the sources that calibrate; 0: every image is tested.")
]


@app.command(name="report")
def report(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    fpr: Fpr = None,
    rule: Rule = None,
    threshold: Fixed = None,
    sided: Sided = None,
    calibration: Share = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write. [default: RUN/report]")] = None,
) -> None:
    """Write the report of a run: one HTML page that opens from disk, every figure as PNG and PDF, tables as CSV.

    Examples:
        waterproof report runs/quick

        waterproof report runs/distortions --fpr 1e-4 --rule theory
    """
    from ..bench.results import load_run
    from .write import write_report

    decision = {"fpr": fpr, "rule": rule, "threshold": threshold, "sided": sided, "calibration": calibration}
    typer.echo(f"report: {write_report(load_run(folder), out, **decision)}")


@app.command()
def null(
    target: Annotated[str, typer.Argument(help="A watermark (or a YAML list of them), or the folder of a run.")],
    dataset: Annotated[str | None, typer.Option(help="Dataset: a name, or YAML. [default: samples]")] = None,
    data: Annotated[Path | None, typer.Option(help="Short for a folder of images of your own.")] = None,
    attacks: Annotated[str | None, typer.Option(help="A YAML list. [default: those of `quick`]")] = None,
    limit: Annotated[int | None, typer.Option(help="Use this many images.")] = None,
    seed: Annotated[int | None, typer.Option(help="The run seed, which draws the key.")] = None,
    key: Annotated[str | None, typer.Option(help="The key in use: fixed (from the seed), or 0 and 1.")] = None,
    fpr: Fpr = None,
    sided: Sided = None,
    keys: Annotated[int, typer.Option(min=2, help="Random keys to try.")] = 1000,
    whiten: Annotated[bool, typer.Option("--whiten", help="Show the null before and after whitening.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. [default: runs/null-NAME]")] = None,
) -> None:
    """Do unmarked images give fair, independent bits? Test it, unattacked and after each attack, over many keys.

    Given a method, its decoder is run on unmarked images (resumable, as `run` is); given a run folder, nothing is run.
    Writes null/index.html into the run folder.

    Examples:
        waterproof null dwt-dct --data photos --fpr 1e-3

        waterproof null 'dwt-dct, rivagan' --attacks 'identity, jpeg: {quality: [90, 50]}' --whiten

        waterproof null runs/distortions
    """
    from ..bench.null_study import study_every
    from .null import print_null, write_null
    from .running import null_run
    from .terminal import print_citations

    asked = {"dataset": dataset, "attacks": attacks, "limit": limit, "seed": seed, "key": key}
    run = null_run(target, out, data, **asked).deciding(fpr=fpr, sided=sided)
    studies, refused = study_every(run, keys, whiten)
    page = write_null(run, studies, refused, run.folder / "null")
    print_null(studies, refused)
    typer.echo(f"null report: {page}")
    print_citations(run)


@app.command()
def attribute(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    users: Annotated[str, typer.Option(help="Numbers of users.")] = "1,10,100,1e3,1e4,1e5,1e6",
    fpr: Annotated[
        float | None,
        typer.Option(help="Chance that an unmarked image is attributed to anybody. [default: the run's FPR]"),
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Labels, separated by ';'. [default: all with a payload]")] = None,
    attacks: Annotated[str | None, typer.Option(help="Labels, separated by ';'. [default: all]")] = None,
    bank: Annotated[
        str | None, typer.Option(help="Other users' keys: a file of keys, or 'run' for those of the run's own images.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where to write. [default: RUN/attribution]")] = None,
) -> None:
    """Which of N users marked an image, and how often is somebody accused wrongly? Closed and open set.

    Examples:
        waterproof attribute runs/distortions --users 10,1e3,1e7 --fpr 1e-3

        waterproof attribute runs/distortions --bank users.txt --attacks 'identity; jpeg(quality=50)'
    """
    from ..bench.results import load_run
    from .attribution import print_attribution, write_attribution
    from .running import attribution_studies

    run = load_run(folder)
    counts = [_whole(word, "--users") for word in _words(users) or []]
    studies = attribution_studies(run, counts, fpr, _words(methods, ";"), _words(attacks, ";"), bank)
    page = write_attribution(run, studies, out or folder / "attribution")
    print_attribution(studies)
    typer.echo(f"attribution: {page}")


@app.command()
def baseline(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="The file to write, e.g. tests/baseline.parquet.")],
) -> None:
    """Freeze a run as the reference of regression checks: one file, small enough to commit, with its digest.

    Example:
        waterproof baseline runs/quick baseline.parquet
    """
    from ..bench.baseline import freeze
    from ..bench.results import load_run

    digest = freeze(load_run(folder), out)
    typer.echo(f"{out}: {out.stat().st_size / 1e3:,.0f} kB, {digest}")


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="The reference: a run folder or a baseline file.")],
    new: Annotated[Path, typer.Argument(help="The run under test.")],
    margin: Annotated[
        list[str] | None, typer.Option("--margin", metavar="QUANTITY=VALUE", help="What counts as large.")
    ] = None,
    on: Annotated[str | None, typer.Option(help="Judge only these, e.g. 'tpr,fpr'. [default: everything]")] = None,
    sided: Sided = None,
    match: Annotated[
        list[str] | None, typer.Option("--match", metavar="OLD=NEW", help="Methods whose labels differ.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Chance of any false regression in the whole comparison.")] = 0.05,
    fpr: Fpr = None,
    rule: Rule = None,
    threshold: Fixed = None,
    calibration: Share = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown, for a pull-request comment.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML, for a CI system.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of the changes (PNG or PDF).")] = None,
) -> None:
    """Is the new run worse than the base? Paired tests on the same images, one verdict.

    A regression is significant (Holm over all tests) and larger than its margin; a cell that newly fails counts as one.
    Exit codes: 0 no regression found, 1 a regression, 2 wrong input, 4 nothing was comparable.

    Examples:
        waterproof compare baseline.parquet runs/quick --markdown verdict.md --junit verdict.xml

        waterproof compare runs/old runs/new --on tpr,fpr --margin tpr=.05 --match 'dwt-dct=dwt-dct(step=40)'
    """
    from ..bench.baseline import load_results
    from ..bench.compare import compare as judge
    from . import verdict

    decision = {"fpr": fpr, "rule": rule, "threshold": threshold, "sided": sided, "calibration": calibration}
    result = judge(
        load_results(base),
        load_results(new),
        margins={name: _number(value, "--margin") for name, value in _pairs(margin, "--margin").items()},
        on=_words(on),
        match=_pairs(match, "--match"),
        alpha=alpha,
        **decision,
    )
    for path, text in ((markdown, verdict.markdown), (junit, verdict.junit), (json, verdict.as_json)):
        if path is not None:
            _write(path, text(result))
    if figure is not None:
        from .figures_compare import save_changes

        save_changes(result, figure)
    verdict.print_verdict(result)
    raise typer.Exit(result.exit_code)


@app.command()
def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or baseline files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("leaderboard"),
    fpr: Fpr = None,
    rule: Rule = None,
    threshold: Fixed = None,
    sided: Sided = None,
    calibration: Share = None,
) -> None:
    """Merge runs on the same data, attacks and metrics, and rank their methods with intervals: HTML, CSV, LaTeX.

    What does not agree with the first run in a version is shown in grey, without a rank, with the reason.
    Exit codes: 0 all well, 2 wrong input, 4 nothing could be ranked.

    Example:
        waterproof leaderboard runs/mine runs/theirs --fpr 1e-3 --out board
    """
    from ..bench.baseline import load_results
    from ..bench.leaderboard import merge
    from .leaderboard import print_board, write_board

    decision = {"fpr": fpr, "rule": rule, "threshold": threshold, "sided": sided, "calibration": calibration}
    board = merge([load_results(path) for path in runs], **decision)
    page = write_board(board, out)
    print_board(board)
    typer.echo(f"leaderboard: {page}")
    raise typer.Exit(0 if board.ranked else 4)


@app.command()
def plan(
    fpr: Annotated[float, typer.Option(help="The false-positive rate that is claimed.")] = 1e-2,
    tpr: Annotated[float, typer.Option(help="The true-positive rate that is expected.")] = 0.9,
    width: Annotated[float, typer.Option(help="Full width of the interval of the TPR.")] = 0.05,
    change: Annotated[float, typer.Option(help="The loss of TPR that a regression check must see.")] = 0.05,
    cells: Annotated[
        int | None,
        typer.Option(min=1, help="Tests that share the level of that check. [default: 1, or the run's attacks]"),
    ] = None,
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    power: Annotated[float, typer.Option(help="Chance that the claim succeeds if it is true.")] = 0.9,
    bits: Annotated[int | None, typer.Option(help="Payload length, to see what theory can reach.")] = None,
    images_per_source: Annotated[float, typer.Option(help="Images of each photograph or prompt.")] = 1,
    icc: Annotated[float, typer.Option(help="Correlation within a source, 0 to 1.")] = 0.0,
    run: Annotated[Path | None, typer.Option(help="A run: what can the images in hand support?")] = None,
) -> None:
    """How many images does a claim need, and what can a run in hand support?

    With --run only --tpr, --level, --power and --cells count: its images and payloads are what they are.

    Examples:
        waterproof plan --fpr 1e-4 --tpr .9 --width .02

        waterproof plan --run runs/quick
    """
    from .planning import print_claim, print_support

    if run is not None:
        from ..bench.baseline import load_results

        print_support(load_results(run), level, power, tpr, cells)
        return
    print_claim(
        fpr=fpr,
        tpr=tpr,
        width=width,
        change=change,
        cells=cells or 1,
        level=level,
        power=power,
        bits=bits,
        images_per_source=images_per_source,
        icc=icc,
    )


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    from ..core.errors import SpecError

    found = {}
    for pair in given or []:
        # A label may hold '=' itself; the split that a person means has balanced brackets on the left.
        cuts = [i for i, c in enumerate(pair) if c == "=" and pair[:i].count("(") == pair[:i].count(")")]
        if not cuts:
            raise SpecError(f"{option} takes NAME=VALUE, not '{pair}'")
        found[pair[: cuts[0]].strip()] = pair[cuts[0] + 1 :].strip()
    return found


def _number(text: str, option: str) -> float:
    from ..core.errors import SpecError

    try:
        return float(text)
    except ValueError:
        raise SpecError(f"{option} takes a number, not '{text}'") from None


def _whole(text: str, option: str) -> int:
    from ..core.errors import SpecError

    value = _number(text, option)
    if not 1 <= value <= MOST_USERS or value != int(value):
        raise SpecError(f"{option} takes whole numbers from 1 to {MOST_USERS:g}, not '{text}'")
    return int(value)


def _words(text: str | None, sign: str = ",") -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(sign) if word.strip()]


def _write(path: Path, text: str) -> None:
    from ..bench.store import write_text, writing

    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
