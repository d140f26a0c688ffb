"""`Outline`: a catalogue that plans without weights and pictures that are not here, from what is declared of them.

Such a plan has the cells, stages and costs of the real one. Its digests are those of no artifact wherever they would
hold the SHA-256 of something absent, so it says what a run takes and cannot be run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from immunebench.bases import base_folder
from immunebench.bases.skeleton import clip_words
from immunebench.catalog.catalog import Catalog
from immunebench.core.errors import UsageError
from immunebench.declared.architecture import SCHEDULE, SHAPES, Shape
from immunebench.declared.profile import Profile
from immunebench.declared.schema import Values
from immunebench.declared.task import Task

#: Takes the place of the SHA-256 of a file that is not here.
ABSENT = "absent"


@dataclass
class Outline(Catalog):
    """A catalogue in which absent weights and pictures are represented by their declaration.

    Attributes
    ----------
    absent
        What a plan of this catalogue was made without, one line each.
    """

    absent: list[str] = field(default_factory=list)
    _shapes: dict[str, Shape | None] = field(default_factory=dict)

    @classmethod
    def of(cls, catalog: Catalog) -> Outline:
        """Return the outline of a catalogue; the tables are shared."""
        return cls(**{item.name: getattr(catalog, item.name) for item in fields(Catalog)})

    @property
    def outlined(self) -> bool:
        """Whether absent files are no error: true."""
        return True

    def shape(self, base: str) -> Shape | None:
        """Return the declared architecture that stands in for a base; None where its weights are here.

        Raises
        ------
        UsageError
            The weights are absent, and ``models.toml`` names no architecture of the base.
        """
        if base not in self._shapes:
            self._shapes[base] = self._declared(base)
        return self._shapes[base]

    def _declared(self, base: str) -> Shape | None:
        spec = self.find("base", self.models.bases, base, field="base")
        if spec.embedded or base_folder.is_available(base, spec, self.models_path):
            return None
        if spec.shape not in SHAPES:
            why = base_folder.missing_weights(base, spec) + "; no architecture is declared of"
            raise UsageError(why, field="base", value=base)
        size = f", {spec.size_gb:g} GB" if spec.size_gb is not None else ""
        self._note(f"weights of the base {base}{size}")
        return SHAPES[spec.shape]

    def side(self, base: str) -> int | None:
        """Return the native resolution of a base in pixels."""
        shape = self.shape(base)
        return super().side(base) if shape is None else shape.resolution

    def prediction(self, base: str) -> str:
        """Return the prediction type of a base."""
        return super().prediction(base) if self.shape(base) is None else str(SCHEDULE["prediction_type"])

    def words(self, base: str) -> frozenset[str]:
        """Return the words that are single tokens of a base; every declared architecture has CLIP's."""
        return super().words(base) if self.shape(base) is None else clip_words()

    def check_base(self, base: str, profile: Profile) -> None:
        """Check an absent base by its declaration: the memory of its weights, and the precision of its autoencoder.

        Raises
        ------
        UsageError
            It cannot be run on the profile.
        """
        shape, size = self.shape(base), self.models.bases[base].size_gb
        if shape is None:
            super().check_base(base, profile)
            return
        # In half precision, which the sizes of `models.toml` are given in.
        least = (size or 0.0) * 1e9 / 2**30 * (2 if profile.frozen_dtype == "float32" else 1)
        if least >= profile.memory_gib:
            raise UsageError(
                f"has {profile.memory_gib:g} GiB, less than the {least:.1f} GiB of the weights of the base {base}:",
                field="profile", value=profile.id,
            )  # fmt: skip
        if shape.text_2 is not None and profile.vae_dtype == "float16":
            raise UsageError(
                f"of the profile {profile.id}: the autoencoder of the base {base} overflows in",
                field="vae_dtype", value=profile.vae_dtype, choices=["float32"],
            )  # fmt: skip

    def base_files(self, base: str) -> dict[str, str]:
        """Return SHA-256 by name of the files of a base; of an absent one, those that are declared."""
        spec = self.models.bases[base]
        return super().base_files(base) if self.shape(base) is None else {ABSENT: ABSENT, **spec.files}

    def fetched(self, name: str, *, asked_by: str) -> str:
        """Return the SHA-256 of downloaded weights, `ABSENT` where they are not here."""
        try:
            return super().fetched(name, asked_by=asked_by)
        except UsageError:
            if not self.is_fetchable(name):
                raise
            self._note(f"weights {name}")
            return ABSENT

    def split_files(self, source: str, task: Task, concept: str, split: str, count: int) -> dict[str, str] | None:
        """Return SHA-256 by name of the files of a split; of a data set that is not here, `ABSENT`."""
        try:
            return super().split_files(source, task, concept, split, count)
        except UsageError:
            if task.dataset is None or concept != task.concept.name:
                raise
            self._note(f"pictures of the task {task.id}, about {task.dataset.size_mb:g} MB")
            return {ABSENT: ABSENT}

    def upscaler(self, base: str, *, asked_by: Path) -> Values:
        """Return the upscaler of a base, as in a stage's key; its folder may be absent."""
        name = self.models.bases[base].upscaler
        try:
            return super().upscaler(base, asked_by=asked_by)
        except UsageError:
            if name is None or self.models.upscalers[name].folder is None:
                raise
            self._note(f"weights {self.models.upscalers[name].folder}")
            files: Mapping[str, str] = {ABSENT: ABSENT}
            return {"id": name, "version": self.models.upscalers[name].version, "files": dict(files)}

    def _note(self, line: str) -> None:
        if line not in self.absent:
            self.absent.append(line)
