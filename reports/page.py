"""What every page shares: figures inside the page and beside it, templates, rows for tables."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from . import words

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

_DPI = 170


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure in the page.

    Attributes:
        uri: the PNG as a data URI.
        width: the width at which type has its natural size, in CSS pixels.
    """

    uri: str
    width: int


def save_figure(figure: Figure, path: Path) -> Picture:
    """Saves PNG and PDF beside the page, and returns the PNG for the page.

    Args:
        figure: the figure.
        path: the file without its ending.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    # The layout is found; finding it again for the PDF would take as long as drawing.
    figure.set_layout_engine("none")
    path.with_name(path.name + ".png").write_bytes(buffer.getvalue())
    figure.savefig(path.with_name(path.name + ".pdf"), metadata={"CreationDate": None})
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(uri, round(115 * figure.get_figwidth()))


def render(template: str, **values: Any) -> str:
    """Fills a template of this package; everything is escaped, nothing may be undefined."""
    import jinja2

    templates = resources.files(__package__) / "templates"

    def source(name: str) -> str:
        return (templates / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=jinja2.FunctionLoader(source)
    )
    environment.filters |= {
        "rate": words.rate,
        "number": words.number,
        "small": words.small,
        "count": words.count,
        "sortable": words.sortable,
    }
    return environment.get_template(template).render(style=source("report.css"), script=source("report.js"), **values)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table; what is missing is None."""
    found = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in found]


def file_name(name: str) -> str:
    """A name that is safe as a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
