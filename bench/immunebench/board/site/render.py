"""Templates and the filters through which every text of a record reaches a page."""

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
    """Jinja with escaping always on, and a complaint about every name that does not exist."""
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
    """A text of any length: isolated from its neighbours' direction, and folded up where it is long."""
    whole = visible(value)
    if len(whole) <= most:
        return Markup("<bdi>{}</bdi>").format(whole)
    rest = whole if len(whole) <= _MOST else f"{whole[:_MOST]} [cut after {_MOST} of {len(whole)} characters]"
    head = shorten(value, most)
    pattern = '<details class="long"><summary><bdi>{}</bdi> ({} characters)</summary><bdi>{}</bdi></details>'
    return Markup(pattern).format(head, f"{len(whole):,}", rest)


def short(value: object, most: int = 60) -> Markup:
    """A name on one line: cut, with more of it in its tooltip."""
    whole = visible(value)
    if len(whole) <= most:
        return Markup("<bdi>{}</bdi>").format(whole)
    return Markup('<bdi title="{}">{}</bdi>').format(shorten(value, 1000), shorten(value, most))


def num(value: Any, digits: int = 2) -> str:
    """A number with a true minus; a dash where there is none."""
    return _DASH if value is None else number(float(value), digits).replace("-", "\N{MINUS SIGN}")


def seconds(value: float | None) -> Markup | str:
    """A duration for a person: seconds, minutes or hours."""
    if value is None:
        return _DASH
    for limit, unit, size in ((100.0, "s", 1.0), (6000.0, "min", 60.0)):
        if value < limit:
            return escape(f"{number(value / size, 0 if value / size >= 10 else 1)} {unit}")
    return escape(f"{number(value / 3600, 1)} h")


def listed(value: object) -> object:
    """A list as a person writes it; anything else as it is."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def sortable(value: float | None) -> str:
    """What the sorting script reads; what is missing comes last where the best come first."""
    return "-999" if value is None else f"{value:.6f}"
