"""Schema of suites: blocks of cells (task x defense x attack chain) and their threat-model settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from immunebench.declared.schema import Count, Id, Model, Text

Track = Literal["model", "data", "erasure", "api-enforced", "layered"]


class Setting(Model):
    """How a cell departs from the usual threat model: all pictures protected, on the task's base, which is attacked.

    Attributes
    ----------
    clean
        Percent of the attacker's pictures that are unprotected ones from the split ``extra``.
    surrogate
        Base on which pictures are protected, if not the task's.
    attacker_base
        Base that the attacker fine-tunes, if not the task's.
    """

    clean: Annotated[int, Field(ge=0, le=100)] = 0
    surrogate: Id | None = None
    attacker_base: Id | None = None

    @property
    def usual(self) -> bool:
        """Whether this is the usual threat model: only such cells enter a board's headline."""
        return self == USUAL

    @property
    def name(self) -> str:
        """Return a name for keys and tables, such as ``clean-25`` or ``on-mini-b``; empty for the usual setting."""
        parts = {"clean": self.clean, "by": self.surrogate, "on": self.attacker_base}
        return "+".join(f"{word}-{value}" for word, value in parts.items() if value)


USUAL = Setting()


class Block(Model):
    """The product of tasks, defenses, attack chains and shares of clean pictures, on one pair of bases."""

    tasks: tuple[Id, ...] = Field(min_length=1)
    defenses: tuple[Text, ...] = Field(min_length=1)
    chains: tuple[Text, ...] = Field(min_length=1)
    clean: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(default=(0,), min_length=1)
    surrogate: Id | None = None
    attacker_base: Id | None = None

    @model_validator(mode="after")
    def _no_duplicates(self) -> Block:
        for name in ("tasks", "defenses", "chains", "clean"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice")
        return self

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Return one setting for each share of clean pictures."""
        return tuple(
            Setting(clean=share, surrogate=self.surrogate, attacker_base=self.attacker_base) for share in self.clean
        )


class Suite(Model):
    """``suites/<id>.toml``: a named, versioned set of cells: one product, or several under ``[[cells]]``.

    Attributes
    ----------
    seeds
        Of every cell.
    none_seeds
        Further seeds of the defense ``none``: the undefended attack is the mean over all of its seeds, and their
        spread is the noise of every row.
    """

    id: Id
    version: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    title: Text
    profile: Id
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    none_seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    track: Track | None = None
    tasks: tuple[Id, ...] = ()
    defenses: tuple[Text, ...] = ()
    chains: tuple[Text, ...] = ()
    cells: tuple[Block, ...] = ()
    prompts: Count
    pictures: Count
    curve_pictures: Annotated[int, Field(ge=0)]
    unrelated_pictures: Count = 1
    published: Literal["real", "generated"] = "real"
    benign_attack: Id = "lora"
    metrics: tuple[Text, ...] = ("collapse", "prompt_accuracy", "nearest_training")
    integrity: tuple[Text, ...] = ("perceptual",)
    fidelity: tuple[Text, ...] = ("perceptual", "linf", "psnr", "ssim")
    purified: tuple[Text, ...] = ("perceptual", "psnr")
    beside: tuple[Text, ...] = ("genre_shift", "poor_match", "fdfr", "ism")

    @model_validator(mode="after")
    def _consistent(self) -> Suite:
        if self.curve_pictures > self.prompts:
            raise ValueError("curve_pictures must not exceed prompts: early steps sample one picture per prompt")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds holds a value twice")
        if len({*self.seeds, *self.none_seeds}) != len(self.seeds) + len(self.none_seeds):
            raise ValueError("none_seeds holds a value twice, or one of seeds")
        own = (self.tasks, self.defenses, self.chains)
        if self.cells and any(own):
            raise ValueError("holds either tasks, defenses and chains or [[cells]], not both")
        if not self.cells:
            for name, values in zip(("tasks", "defenses", "chains"), own, strict=True):
                if not values:
                    raise ValueError(f"{name} is missing: at least one, or [[cells]]")
            Block(tasks=self.tasks, defenses=self.defenses, chains=self.chains)
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks whose cells make up the suite."""
        return self.cells or (Block(tasks=self.tasks, defenses=self.defenses, chains=self.chains),)

    def names(self, of: Literal["tasks", "defenses", "chains"]) -> tuple[str, ...]:
        """Return every task, defense or chain of the suite once, in order."""
        return tuple(dict.fromkeys(name for block in self.blocks for name in getattr(block, of)))
