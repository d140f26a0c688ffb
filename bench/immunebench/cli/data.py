"""The commands ``immunebench data ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.cli.common import AsJson, print_json, the_catalog

if TYPE_CHECKING:
    from immunebench.catalog.catalog import Catalog
    from immunebench.declared.task import Task

data_app = typer.Typer(
    no_args_is_help=True,
    help="Download the pictures of tasks with a public data set; runs never download them.\n\n"
    "Example: immunebench data fetch sd14-vase",
)

Accept = Annotated[
    bool, typer.Option("--accept-terms", help="Accept the terms of the data set; `data list` has the link.")
]


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the tasks with a public data set: whether it is downloaded, its size and its licence.

    Example: immunebench data list --json
    """
    from immunebench.pictures.dataset_source import home, state

    rows = [
        {
            "task": task.id,
            "state": state(task),
            "size_mb": task.dataset.size_mb,
            "licence": task.dataset.licence,
            "terms": task.dataset.terms,
            "repo": task.dataset.repo,
            "revision": task.dataset.revision,
            "folder": str(home(task.id)),
        }
        for task in the_catalog().tasks.values()
        if task.dataset is not None
    ]
    if as_json:
        print_json(rows)
        return
    from tabulate import tabulate

    head = ["task", "state", "size", "from", "licence", "terms"]
    table = [
        [row["task"], row["state"], f"{row['size_mb']:g} MB", row["repo"], row["licence"], row["terms"] or ""]
        for row in rows
    ]
    print(tabulate(table, headers=head, tablefmt="plain"))


@data_app.command("fetch")
def data_fetch(
    task: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks of `data list`.")],
    accept_terms: Accept = False,
) -> None:
    """Download the pictures of tasks at their pinned commits; existing files are verified against their lock file.

    Example: immunebench data fetch sd14-vase sd14-clock
    """
    from immunebench.pictures import dataset_fetch

    catalog = the_catalog()
    tasks = [_task(catalog, name) for name in dict.fromkeys(task)]
    # All are checked first, so that nothing is downloaded if one is refused.
    for found in tasks:
        dataset_fetch.check(found, catalog, accept_terms=accept_terms)
    for found in tasks:
        dataset_fetch.fetch(found, catalog, accept_terms=accept_terms)


@data_app.command("add")
def data_add(
    task: Annotated[str, typer.Argument(help="A task of `data list`.")],
    folder: Annotated[Path, typer.Argument(help="A checkout, a copy of the data set, or a folder of the pictures.")],
    accept_terms: Accept = False,
) -> None:
    """Copy the pictures of a task from a local folder.

    Example: immunebench data add sd14-vase dreambooth/dataset/vase
    """
    from immunebench.pictures import dataset_fetch

    catalog = the_catalog()
    dataset_fetch.add(_task(catalog, task), catalog, folder, accept_terms=accept_terms)


def _task(catalog: Catalog, name: str) -> Task:
    return catalog.task(name, field="TASK")
