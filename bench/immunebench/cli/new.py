"""The commands ``immunebench new ...``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

new_app = typer.Typer(
    help="Create a task, a defense, an attack or a base, or submit pictures of a closed-source tool.\n\n"
    "Example: immunebench new defense my-shield --track data",
    no_args_is_help=True,
)

Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder of defenses/, attacks/, ...; default $IMMUNEBENCH_ENTRIES, else the checkout."),
]


@new_app.command("task")
def new_task(
    images: Annotated[Path, typer.Option("--images", help="Folder of photos: PNG, JPEG, WebP, TIFF, BMP or GIF.")],
    family: Annotated[str, typer.Option("--family", help="style, object or identity.")],
    base: Annotated[str, typer.Option("--base", help="Base of `list bases`.")] = "mini",
    name: Annotated[str | None, typer.Option("--id", help="Default: my- and the folder's name.")] = None,
    noun: Annotated[str | None, typer.Option("--noun", help="Class noun of the concept; required for objects.")] = None,
    token: Annotated[str, typer.Option("--token", help="The attacker's placeholder.")] = "sks",
    owner_token: Annotated[
        str | None, typer.Option("--owner-token", help="The owner's placeholder; default: the base's next free one.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="One line for lists and boards.")] = None,
    captions: Annotated[Path | None, typer.Option("--captions", help="JSON or CSV: name,caption; or a folder.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Evaluation prompts with {token}, one per line.")
    ] = None,
    like: Annotated[str | None, typer.Option("--like", help="Task to copy prompts and benign concept from.")] = None,
    out: Out = None,
) -> None:
    """Create a task and a suite from a folder of photos; the pictures are converted and copied.

    Example: immunebench new task --images my-mug --family object --noun mug --base mini
    """
    from immunebench.authoring import new
    from immunebench.catalog.loading import default_catalog

    request = new.TaskRequest(images, family, base, name, noun, token, owner_token, title, captions, prompts, like, out)
    print("\n".join(new.new_task(request, default_catalog()).lines()))


@new_app.command("defense")
def new_defense(
    name: Annotated[str, typer.Argument(metavar="ID", help="Lower case with hyphens; the folder's name.")],
    track: Annotated[
        str, typer.Option("--track", help="model, data, erasure, api-enforced or layered: what it changes.")
    ] = "model",
    artefact: Annotated[
        bool, typer.Option("--artefact", help="Pictures of a closed tool instead of code: says which command it takes.")
    ] = False,
    out: Out = None,
) -> None:
    """Create a working defense: manifest, one short code file, citation, a test, and a suite of the dev tasks.

    Example: immunebench new defense my-shield --track data
    """
    from immunebench.authoring import templates
    from immunebench.catalog.loading import default_catalog
    from immunebench.core.errors import UsageError

    if artefact:
        how = (
            f"immunebench new artefact {name} --task TASK --images FOLDER --tool NAME --tool-version VERSION --budget 8"
        )
        raise UsageError(f"is made of the tool's pictures (docs/artefacts.md): {how}", field="--artefact")
    print("\n".join(templates.new_defense(name, track, default_catalog(), out).lines()))


@new_app.command("attack")
def new_attack(
    name: Annotated[str, typer.Argument(metavar="ID", help="Lower case with hyphens; the folder's name.")],
    hook: Annotated[str, typer.Option("--hook", help="adapt or purify.")] = "adapt",
    out: Out = None,
) -> None:
    """Create a working attack: manifest, one short code file, citation, and a suite of the dev tasks.

    Example: immunebench new attack my-tuning
    """
    from immunebench.authoring import templates
    from immunebench.catalog.loading import default_catalog

    print("\n".join(templates.new_attack(name, hook, default_catalog(), out).lines()))


@new_app.command("base")
def new_base(
    name: Annotated[str, typer.Argument(metavar="ID", help="Lower case with hyphens; its rows stand under it.")],
    path: Annotated[Path, typer.Argument(help="Checkpoint (.safetensors), or a diffusers folder.")],
    like: Annotated[str, typer.Option("--like", help="Base of the same architecture, such as --like sd14.")],
    suite: Annotated[
        str | None, typer.Option("--suite", help="Suite whose tasks are copied for it; default sd14-lite or the like.")
    ] = None,
    out: Out = None,
) -> None:
    """Create a base from your own checkpoint: fine-tuned, merged or pruned; with a suite whose rows are its own.

    Example: immunebench new base my-sd model.safetensors --like sd14
    """
    from immunebench.authoring import new_base as new
    from immunebench.catalog.loading import default_catalog

    request = new.BaseRequest(name, path, like, suite, out)
    print("\n".join(new.new_base(request, default_catalog()).lines()))


@new_app.command("artefact")
def new_artefact(
    name: Annotated[str, typer.Argument(metavar="ID", help="Lower case with hyphens; the folder's name.")],
    task: Annotated[list[str], typer.Option("--task", help="Task whose pictures were cloaked; repeatable.")],
    images: Annotated[list[Path], typer.Option("--images", help="Folder of its cloaked pictures, one per --task.")],
    tool: Annotated[str, typer.Option("--tool", help="The tool that cloaked them, such as Glaze.")],
    tool_version: Annotated[str, typer.Option("--tool-version", help="Its version, such as 2.1.")],
    budget: Annotated[int | None, typer.Option("--budget", help="Largest change of a value, 1 to 255.")] = None,
    perceptual: Annotated[
        float | None, typer.Option("--perceptual", help="Largest perceptual distance instead, up to 1.")
    ] = None,
    out: Out = None,
) -> None:
    """Create a defense from pictures cloaked by a closed-source tool; they are compared with the clean ones and copied.

    Example: immunebench new artefact my-glaze --task style-okafor --images cloaked --tool Glaze --tool-version 2
    """
    from immunebench.authoring import new_artefact as new
    from immunebench.catalog.loading import default_catalog

    request = new.ArtefactRequest(name, tuple(task), tuple(images), tool, tool_version, budget, perceptual, out)
    print("\n".join(new.new_artefact(request, default_catalog()).lines()))
