"""Checks of a plan before anything is computed: tasks, defenses, bases and settings that could give no valid score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from immunebench.catalog.catalog import Catalog
from immunebench.catalog.entry import Entry
from immunebench.catalog.layers import Defense
from immunebench.core.errors import UsageError
from immunebench.declared.profile import Profile
from immunebench.declared.suite import Setting
from immunebench.declared.task import Task
from immunebench.plan.specs import on_base


def check_task(catalog: Catalog, task: Task) -> None:
    """Raise an error if a task's placeholder is a known word or its start model is not an erasure.

    Raises
    ------
    UsageError
        With the file, the field and the value.
    """
    _check_words(catalog, task)
    _check_start(catalog, task)


def check_defense(catalog: Catalog, entry: Defense, task: Task, file: Path | None, field: str = "defenses") -> None:
    """Raise an error if a defense has a hook that no stage runs, or does not apply to a task.

    Raises
    ------
    UsageError
        With the file, the field or the option that names the defense, and the value.
    """
    bases = catalog.models.bases
    for layer in entry.layers:
        # As for the surrogate of a setting: a base with another judge was trained on another domain of pictures.
        for name in layer.surrogates:
            if bases[name].judge != bases[task.base].judge:
                raise UsageError(
                    f"has another judge than {task.base!r}, the base of task {task.id!r}:",
                    file=layer.path, field="surrogates", value=name,
                )  # fmt: skip
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
    """Raise an error if a base cannot be run on a profile.

    Raises
    ------
    UsageError
        If its resolution differs from the profile's, or it is not embedded and `base_folder.check` rejects it.
    """
    catalog.check_base(base, profile)
    side = catalog.side(base)
    if side is not None and side != profile.resolution:
        raise UsageError(
            f"has pictures of {profile.resolution} pixels, the base {base} draws {side}:",
            field="profile", value=profile.id,
            choices=[name for name, other in catalog.profiles.items() if other.resolution == side],
        )  # fmt: skip


def check_predictions(catalog: Catalog, entries: Iterable[Entry], base: str) -> None:
    """Raise an error if the prediction type of a base's denoiser is not among those that an entry supports.

    Raises
    ------
    UsageError
        With the entry's file.
    """
    predicted = catalog.prediction(base)
    for entry in entries:
        known = entry.manifest.predictions
        if predicted not in known:
            raise UsageError(
                f"leaves out {predicted!r}, which the denoiser of the base {base} predicts:",
                file=entry.path, field="predictions", value=", ".join(known),
            )  # fmt: skip


def check_setting(catalog: Catalog, entry: Defense, task: Task, setting: Setting, file: Path | None) -> None:
    """Raise an error if a setting does not apply to a defense or to a task.

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
        if "freeze" in entry.hooks:
            why = f"{entry.id!r} makes its mask for the architecture of {task.base!r}, not of"
            raise UsageError(why, file=file, field=field, value=base)
        if "protect_model" in entry.hooks or task.start_from is not None:
            why = f"the attacker of {task.id!r} against {entry.id!r} begins from weights of {task.base!r}, not of"
            raise UsageError(why, file=file, field=field, value=base)
        if known.judge != catalog.models.bases[task.base].judge:
            raise UsageError(f"has another judge than {task.base!r}:", file=file, field=field, value=base)
        _check_words(catalog, on_base(task, base))


def _check_words(catalog: Catalog, task: Task) -> None:
    """Raise an error if a placeholder is a word that the base knows; concepts to relearn may have a known name."""
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
    """Return the words that are single tokens of a base's tokenizer, except its unused placeholders."""
    return catalog.words(base) - set(catalog.models.bases[base].placeholders)


def _check_start(catalog: Catalog, task: Task) -> None:
    """Raise an error if ``start_from`` is not an erasure: all other defenses begin from the start model itself."""
    if task.start_from is None:
        return
    path = catalog.paths["task", task.id]
    if not catalog.defense(task.start_from, file=path, field="start_from").erases:
        raise UsageError(
            "begins from the start model, so it cannot make it:", file=path, field="start_from",
            value=task.start_from,
            choices=[name for name, other in catalog.defenses.items() if other.erases],
        )  # fmt: skip
