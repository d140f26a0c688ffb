"""What a plan refuses before anything is computed: tasks and places of defenses that could give no number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from immunebench.bases import base_folder
from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.layers import Defense
from immunebench.core.errors import UsageError
from immunebench.declared.profile import Profile
from immunebench.declared.suite import Setting
from immunebench.declared.task import Task
from immunebench.plan.specs import on_base


def check_task(catalog: Catalog, task: Task) -> None:
    """Refuse a task whose words or whose start model mean something else than it says.

    Raises
    ------
    UsageError
        With the file, the field and the value.
    """
    _check_words(catalog, task)
    _check_start(catalog, task)


def check_defense(catalog: Catalog, entry: Defense, task: Task, file: Path | None, field: str = "defenses") -> None:
    """Refuse a defense that no stage carries out, or that has nothing to do on a task.

    Raises
    ------
    UsageError
        With the suite's file, the field or the option that names the defense, and the defense.
    """
    bases = catalog.models.bases
    for layer in entry.layers:
        # As of the surrogate of a setting: a base of another world was never meant for these pictures.
        for name in layer.surrogates:
            if bases[name].judge != bases[task.base].judge:
                raise UsageError(
                    f"has another judge than {task.base!r}, the base of task {task.id!r}:",
                    file=layer.path, field="surrogates", value=name,
                )  # fmt: skip
    if "freeze" in entry.hooks:
        raise UsageError("no stage runs the hook", file=entry.path, field="hooks", value="freeze")
    if "protect_images" in entry.hooks and task.family == "relearn":
        raise UsageError(
            f"protects pictures before they are published; those of task {task.id!r} show what a base drew already:",
            file=file, field=field, value=entry.id,
        )  # fmt: skip
    if entry.erases and task.family != "relearn":
        raise UsageError(
            f"erases what a base knows; task {task.id!r} is of the family {task.family!r}, not 'relearn':",
            file=file, field=field, value=entry.id,
        )  # fmt: skip


def check_base(catalog: Catalog, base: str, profile: Profile) -> None:
    """Refuse a base that cannot be run on a profile.

    Raises
    ------
    UsageError
        It draws pictures of another size; or it comes from a hub and `base_folder.check` refuses it.
    """
    folder = catalog.base_folder(base)
    if catalog.models.bases[base].hub:
        base_folder.check(base, folder, profile)
    side = base_folder.side(folder)
    if side is not None and side != profile.resolution:
        raise UsageError(
            f"has pictures of {profile.resolution} pixels, the base {base} draws {side}:",
            field="profile", value=profile.id,
            choices=[name for name, other in catalog.profiles.items() if other.resolution == side],
        )  # fmt: skip


def check_predictions(catalog: Catalog, entries: Iterable[Entry], base: str) -> None:
    """Refuse an entry on a base whose denoiser predicts what the entry's manifest leaves out.

    Raises
    ------
    UsageError
        With the entry's file.
    """
    predicted = base_folder.prediction(catalog.base_folder(base))
    for entry in entries:
        known = entry.manifest.predictions
        if predicted not in known:
            raise UsageError(
                f"leaves out {predicted!r}, which the denoiser of the base {base} predicts:",
                file=entry.path, field="predictions", value=", ".join(known),
            )  # fmt: skip


def check_setting(catalog: Catalog, entry: Defense, task: Task, setting: Setting, file: Path | None) -> None:
    """Refuse a setting that has no meaning for a defense or on a task.

    Raises
    ------
    UsageError
        With the suite's file and the field of the block.
    """
    if setting.clean and entry.hooks and "protect_images" not in entry.hooks:
        raise UsageError(
            f"says which pictures stay unprotected, and {entry.id!r} protects none:",
            file=file, field="clean", value=setting.clean,
        )  # fmt: skip
    for field, base in (("surrogate", setting.surrogate), ("attacker_base", setting.attacker_base)):
        if base is None:
            continue
        known = catalog.find("base", catalog.models.bases, base, file=file, field=field)
        if "protect_model" in entry.hooks or task.start_from is not None:
            why = f"the attacker of {task.id!r} against {entry.id!r} begins from weights of {task.base!r}, not of"
            raise UsageError(why, file=file, field=field, value=base)
        if known.judge != catalog.models.bases[task.base].judge:
            raise UsageError(f"has another judge than {task.base!r}:", file=file, field=field, value=base)
        _check_words(catalog, on_base(task, base))


def _check_words(catalog: Catalog, task: Task) -> None:
    """Refuse placeholders that mean something to the base: only what is relearned has a name there."""
    words = _vocabulary(catalog, task.base)
    sides = {"owner": task.owner.token, "attacker": task.attacker.token} if task.family != "relearn" else {}
    for side, token in {**sides, "benign": task.benign.token}.items():
        if token in words:
            raise UsageError(
                f"is a word that the base {task.base!r} knows, so no placeholder:",
                file=catalog.paths["task", task.id], field=f"{side}.token", value=token,
                choices=catalog.models.bases[task.base].placeholders,
            )  # fmt: skip


def _vocabulary(catalog: Catalog, base: str) -> frozenset[str]:
    """Return the words that a base's tokenizer holds whole, without those that mean nothing to it."""
    file = catalog.base_folder(base) / "tokenizer" / "vocab.json"
    entries = base_folder.settings(file)
    if not entries and catalog.models.bases[base].hub:
        raise UsageError("is missing: it says which words the base knows", file=file)
    words = {word.removesuffix("</w>") for word in entries if word.endswith("</w>")}
    return frozenset(words) - set(catalog.models.bases[base].placeholders)


def _check_start(catalog: Catalog, task: Task) -> None:
    """Refuse a start model that would begin from itself: all but erasures begin from the start model."""
    if task.start_from is None:
        return
    path = catalog.paths["task", task.id]
    if not catalog.defense(task.start_from, file=path, field="start_from").erases:
        raise UsageError(
            "begins from the start model, so it cannot make it:", file=path, field="start_from",
            value=task.start_from,
            choices=[name for name, other in catalog.defenses.items() if other.erases],
        )  # fmt: skip
