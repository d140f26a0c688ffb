"""The template environment, and the filters that every text of a record passes before it is shown on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from immunebench.board.site.views import link
from immunebench.board.tables.columns import interval_text
from immunebench.board.text import LONG, number, shorten, slug, visible
from immunebench.declared import scoring

TEMPLATES = Path(__file__).parent / "templates"
_MOST = 20_000
_DASH = "\N{EN DASH}"


def environment() -> Environment:
    """Return the Jinja environment, with autoescaping and an error for every undefined name."""
    env = Environment(
        autoescape=True,
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {
        "text": text,
        "short": short,
        "plain": shorten,
        "num": num,
        "interval": interval_text,
        "seconds": seconds,
        "listed": listed,
        "sortable": sortable,
        "slug": lambda value: slug(str(value)),
        "link": link,
    }
    env.globals |= {"reported": False, "capacity": False}
    env.globals["rules"] = {name: value for name, value in vars(scoring).items() if name.isupper()}
    return env


def text(value: object, most: int = LONG) -> Markup:
    """Return a text of any length as HTML, with its writing direction isolated, and collapsed if it is long."""
    whole = visible(value)
    if len(whole) <= most:
        return Markup("<bdi>{}</bdi>").format(whole)
    rest = whole if len(whole) <= _MOST else f"{whole[:_MOST]} [cut after {_MOST} of {len(whole)} characters]"
    head = shorten(value, most)
    pattern = '<details class="long"><summary><bdi>{}</bdi> ({} characters)</summary><bdi>{}</bdi></details>'
    return Markup(pattern).format(head, f"{len(whole):,}", rest)


def short(value: object, most: int = 60) -> Markup:
    """Return a name on one line as HTML, shortened, with more of it in the tooltip."""
    whole = visible(value)
    if len(whole) <= most:
        return Markup("<bdi>{}</bdi>").format(whole)
    return Markup('<bdi title="{}">{}</bdi>').format(shorten(value, 1000), shorten(value, most))


def num(value: Any, digits: int = 2) -> str:
    """Return a number as text with a typographic minus sign; a dash for None."""
    return _DASH if value is None else number(float(value), digits).replace("-", "\N{MINUS SIGN}")


def seconds(value: float | None) -> Markup | str:
    """Return a duration as text in seconds, minutes or hours."""
    if value is None:
        return _DASH
    for limit, unit, size in ((100.0, "s", 1.0), (6000.0, "min", 60.0)):
        if value < limit:
            return escape(f"{number(value / size, 0 if value / size >= 10 else 1)} {unit}")
    return escape(f"{number(value / 3600, 1)} h")


def listed(value: object) -> object:
    """Return a list as comma-separated text; any other value unchanged."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def sortable(value: float | None) -> str:
    """Return the sort value of a number for the sorting script; missing values come last if the best come first."""
    return "-999" if value is None else f"{value:.6f}"
