"""The commands ``immunebench weights ...``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from immunebench.core.errors import UsageError

if TYPE_CHECKING:
    pass
from immunebench.cli.common import AsJson, print_columns, print_json, the_catalog

weights_app = typer.Typer()


@weights_app.callback(invoke_without_command=True)
def weights_list(context: typer.Context, as_json: AsJson = False) -> None:
    """List the weights that metrics and bases need, and download those that are not embedded.

    Example: immunebench weights fetch lpips-alex
    """
    if context.invoked_subcommand is not None:
        return
    from immunebench.bases import base_folder, weights

    rows = weights.available()
    catalog = the_catalog()
    for name, spec in catalog.models.bases.items():
        if not spec.embedded:
            state: weights.State = "fetched" if base_folder.is_available(name, spec, catalog.models_path) else "missing"
            purpose = (
                f"base of your own, like {spec.like}" if spec.own else f"base, {spec.size_gb:g} GB, {spec.licence}"
            )
            rows.append(weights.Listed(name, purpose, state, base_folder.added_path(name)))
    if as_json:
        print_json([{"name": r.name, "purpose": r.purpose, "state": r.state, "file": str(r.file)} for r in rows])
    else:
        print_columns([["weights", "state", "for"], *([r.name, r.state, r.purpose] for r in rows)])


@weights_app.command("fetch")
def weights_fetch(
    name: Annotated[str, typer.Argument(help="Weights of a metric or a base: lpips-alex, sd14.")],
) -> None:
    """Download weights, verified by SHA-256: of a metric into the cache, of a base into the model hub's cache.

    Example: immunebench weights fetch lpips-alex
    """
    from immunebench.bases import weights

    spec = the_catalog().models.bases.get(name)
    if spec is not None:
        from immunebench.bases import intake

        intake.fetch(name, spec)
    elif name not in weights.FETCHABLE:
        hubs = [base for base, spec in the_catalog().models.bases.items() if spec.hub]
        raise UsageError("unknown weights", field="NAME", value=name, choices=[*weights.FETCHABLE, *hubs])
    else:
        weights.fetch(name)


@weights_app.command("add")
def weights_add(
    name: Annotated[str, typer.Argument(help="A base that is not embedded: sd14, or one of your own.")],
    path: Annotated[Path, typer.Argument(help="Its diffusers folder, or its single-file checkpoint.")],
) -> None:
    """Use a local copy of a base, verified by SHA-256: a folder in place, or a checkpoint, which is converted once.

    Example: immunebench weights add sd14 models/stable-diffusion-v1-4
    """
    from immunebench.bases import intake, own

    catalog = the_catalog()
    spec = catalog.find("base", catalog.models.bases, name, field="NAME")
    if spec.own:
        own.add_again(name, spec, path)
    else:
        intake.add(name, spec, path)
