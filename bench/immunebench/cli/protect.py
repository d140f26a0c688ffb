"""The command ``protect``: protected copies of somebody's own pictures, and what is known of how long that lasts."""

from __future__ import annotations

import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from immunebench.cli.common import AsJson, StoreDir, print_columns, print_json, published, the_catalog
from immunebench.cli.planning import say_absent
from immunebench.cli.releases import BoardDir, ResultsDir
from immunebench.cli.running import INTERRUPTED
from immunebench.core.errors import UsageError, printable

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.protecting.copies import Copy, Done
    from immunebench.protecting.lasting import Known
    from immunebench.protecting.planning import Planned
    from immunebench.store.artifacts import Store

_WIDTH = 110


def protect(
    folder: Annotated[
        Path | None, typer.Argument(metavar="FOLDER", help="Folder of pictures: PNG, JPEG, WebP, TIFF, BMP or GIF.")
    ] = None,
    defense: Annotated[
        str | None, typer.Option("--defense", help="A defense of pictures, such as --defense mist-16.")
    ] = None,
    base: Annotated[str, typer.Option("--base", help="Full-size base of `list bases` that it computes on.")] = "sd14",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the protected copies.")] = None,
    family: Annotated[str, typer.Option("--family", help="style, object or identity: what they share.")] = "style",
    noun: Annotated[str | None, typer.Option("--noun", help="Class noun; required for an object: --noun mug.")] = None,
    caption: Annotated[
        str | None,
        typer.Option("--caption", help="Caption of all pictures, with {token}, {noun}, {content}; default: a task's."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option("--captions", help="{content} of each: JSON or CSV (name,caption), or a folder."),
    ] = None,
    size: Annotated[
        str,
        typer.Option("--size", help="square: the middle square at the base's resolution. own: the picture's own size."),
    ] = "square",
    profile: Annotated[
        str | None, typer.Option("--profile", help="Default: the largest that this machine's GPU can run.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of all random draws.")] = 0,
    at_once: Annotated[int, typer.Option("--at-once", help="Most pictures that are protected together.")] = 16,
    store: StoreDir = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace files that are in --out already.")] = False,
    timeout: Annotated[
        float | None, typer.Option("--timeout", help="Seconds that a set may take; default 24 hours on a GPU.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run a stranger's defense where this machine has no box (see doctor).")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and the time.")] = False,
    known: Annotated[
        bool,
        typer.Option("--known", help="Print what is known of how long protection lasts, by defense."),
    ] = False,
    page: Annotated[
        Path | None, typer.Option("--page", help="With --known: write its tables into this page, between its marks.")
    ] = None,
    results: ResultsDir = Path("results"),
    leaderboard: BoardDir = Path("leaderboard"),
    as_json: AsJson = False,
) -> None:
    """Write protected copies of your own pictures, with a report, and say how long such protection is known to last.

    A run that was stopped goes on; nothing is written before every copy is made. Exits with 1 if a set failed or a copy
    is over its budget.

    Example: immunebench protect my-paintings --defense mist-16 --base sd14 --out my-paintings-protected
    """
    from immunebench import api
    from immunebench.catalog.outline import Outline
    from immunebench.protecting import lasting
    from immunebench.protecting.planning import planned
    from immunebench.protecting.request import Request, picture_side
    from immunebench.protecting.running import Unprotected
    from immunebench.protecting.running import protect as carry_out

    catalog = the_catalog()
    places = published(results, "results"), published(leaderboard, "leaderboard")
    if known:
        _known(catalog, defense, *places, page, as_json)
        return
    if page is not None:
        raise UsageError("needs --known", field="--page")
    if folder is None:
        raise UsageError("is required: the folder of pictures", field="FOLDER")
    if defense is None:
        raise UsageError("is required, such as --defense mist-16", field="--defense")
    request = Request(
        folder, defense, base, out, family, noun, caption, captions, size, profile, seed, at_once, replace
    )  # fmt: skip
    entry, _ = picture_side(catalog, defense)
    artifacts = api.open_store(store)
    if dry_run:
        outline = Outline.of(catalog)
        with planned(request, outline, writes=False) as plan:
            say_absent(outline.absent)
            _dry_run(plan, artifacts, lasting.known(entry, catalog, *places), as_json)
        return
    with planned(request, catalog) as plan:
        _say(plan)
        found = lasting.known(entry, catalog, *places)
        try:
            done = carry_out(
                plan, catalog, artifacts, known=_told(found), trust=trust, timeout=timeout
            )  # fmt: skip
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except Unprotected as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            raise typer.Exit(1) from None
        _show(plan, catalog, done, found, as_json)
    if not done.within_budget:
        raise typer.Exit(1)


def _known(
    catalog: Catalog, defense: str | None, results: Path, leaderboard: Path, page: Path | None, as_json: bool
) -> None:
    from immunebench.protecting import lasting, pages, wording
    from immunebench.protecting.request import picture_defenses, picture_side

    entries = picture_defenses(catalog) if defense is None else [picture_side(catalog, defense)[0]]
    found = [lasting.known(entry, catalog, results, leaderboard) for entry in entries]
    if page is not None:
        pages.write(page, wording.markdown(found))
    if as_json:
        print_json([known.as_dict() for known in found])
        return
    print(wording.markdown(found), end="")
    if defense is not None:
        _print_paragraphs(wording.paragraphs(found[0]))


def _told(found: Known) -> dict[str, Any]:
    """Return what the report says of how long the protection lasts: figures, and the same in words."""
    from immunebench.protecting import wording

    return {**found.as_dict(), "text": wording.paragraphs(found)}


def _say(plan: Planned) -> None:
    """Say on standard error what is going to be done that the user might not expect."""
    for line in _expected(plan):
        print(line, file=sys.stderr)


def _expected(plan: Planned) -> list[str]:
    side, count = plan.side, plan.photos
    lines = [f"skipped: {printable(note)}" for note in plan.notes]
    if plan.left_out:
        lines.append(f"{', '.join(plan.left_out)} changes models, not pictures; only {plan.entry.id} is used")
    square = f"the middle square of each picture, scaled to {side} x {side} pixels, as a task's pictures are"
    if plan.request.size == "square":
        lines.append(f"{plan.entry.id} changes {square}; the copies are these squares")
    else:
        lines.append(f"{plan.entry.id} computes on {square}; its change is enlarged to the picture's own middle square")
        lines.append("what lies outside of the middle square is not protected; no board measures enlarged changes")
    sets = f"{len(plan.sets)} sets of at most {plan.request.at_once}" if len(plan.sets) > 1 else "one set"
    lines.append(f"{count} pictures in {sets}, on {plan.request.base} by the profile {plan.profile.id}")
    caption = plan.task.owner.caption.replace("{token}", plan.task.owner.token)
    lines.append(f"told of them: {plan.task.family}, {plan.task.concept.noun!r}, captioned {printable(caption)!r}")
    return lines


def _dry_run(plan: Planned, store: Store, found: Known, as_json: bool) -> None:
    from immunebench.execution.progress import duration
    from immunebench.protecting.running import priced

    prices = priced(plan, store)
    seconds = sum(price.seconds for price in prices.values())
    sources = sorted({price.source for price in prices.values()})
    stages = plan.plan.stages
    if as_json:
        print_json(
            {
                "defense": plan.entry.id, "base": plan.request.base, "profile": plan.profile.id,
                "resolution": plan.side, "pictures": dict(plan.names), "sets": len(plan.sets),
                "stages": len(stages), "reused": len(stages) - len(prices), "seconds": round(seconds, 1),
                "seconds_from": sources, "known": found.as_dict(),
            }
        )  # fmt: skip
        return
    print("\n".join(_expected(plan)))
    rows: dict[str, tuple[int, float]] = {}
    for digest, price in prices.items():
        count, sum_of = rows.get(stages[digest].stage, (0, 0.0))
        rows[stages[digest].stage] = count + 1, sum_of + price.seconds
    print_columns([["stage", "to make", "time"], *([n, str(c), duration(s)] for n, (c, s) in rows.items())])
    how = f"; from {', '.join(sources)}, so not measured here" if sources and sources != ["store"] else ""
    print(f"{len(stages)} stages, {len(stages) - len(prices)} of them made before: about {duration(seconds)}{how}")
    print(f"nothing was written; {plan.out or 'DIR'} would hold {plan.photos} copies and report.json")


def _show(plan: Planned, catalog: Catalog, done: Done, found: Known, as_json: bool) -> None:
    from immunebench.protecting import wording
    from immunebench.protecting.copies import report
    from immunebench.protecting.measuring import missing_distance

    if as_json:
        print_json(report(plan, catalog, done, _told(found)))
        return
    own = plan.request.size == "own"
    heads = ["picture", "copy", "pixels", "Linf", "PSNR", "SSIM", "perceptual", "seconds", "in budget"]
    print_columns([[*heads, *(["covered", "survives"] if own else [])], *(_row(copy, own) for copy in done.copies)])
    entry = plan.entry
    bound = f"Linf {entry.budget} of 255" if entry.budget is not None else f"perceptual {entry.perceptual_budget:g}"
    kept = "kept by every copy" if done.within_budget else "NOT kept by every copy"
    print(f"declared budget: {bound}; {kept}, measured on the saved files")
    why = missing_distance(catalog, plan.request.base)
    if why is not None:
        print(f"no perceptual distance: {why}")
    if own:
        print("covered: share of the picture that is changed. survives: share of the change that is left where the")
        print("copy is cut and scaled to the base's resolution, as whoever trains on it does")
    _print_paragraphs(wording.paragraphs(found))
    print(f"copies and report.json: {shlex.quote(str(done.out))}")


def _row(copy: Copy, own: bool) -> list[str]:
    from immunebench.board.text import number

    return [
        copy.file, copy.output, f"{copy.width} x {copy.height}", str(copy.linf), number(copy.psnr, 1),
        number(copy.ssim, 3), number(copy.perceptual, 3), number(copy.seconds, 1),
        "yes" if copy.within_budget else "NO", *([number(copy.covered), number(copy.survives)] if own else []),
    ]  # fmt: skip


def _print_paragraphs(texts: Sequence[str]) -> None:
    for text in texts:
        print()
        print(textwrap.fill(printable(text), _WIDTH))


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(protect)
