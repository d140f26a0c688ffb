"""The table of masks: what a publisher's fine-tuning interface freezes, and what that saves the fine-tuner."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from immunebench.board.scores import scale as scores
from immunebench.board.scores.data_side import Table
from immunebench.board.scores.measurement import Measurement
from immunebench.board.text import number

if TYPE_CHECKING:
    from immunebench.records.record import Enforcement, Training

HEADS = (
    "defense",
    "attack",
    "frozen tensors",
    "frozen parameters",
    "trained parameters",
    "optimiser MB",
    "seconds",
    "peak GiB",
    "A, interface passed by",
)
NOTE = (
    "What the interface keeps frozen, and what fine-tuning through it takes, which is the fine-tuner's incentive to "
    "use it: mean over tasks, in brackets as a share of the same attack without a mask. Who trains the released "
    "weights outside the interface is undefended: they are the start model's, so that cell is the one of `none`."
)


def enforced(cells: Iterable[Measurement]) -> Iterator[Table]:
    """Yield the table of masks, one row for each defense and chain; nothing where no record has a mask."""
    groups: dict[tuple[str, str], list[Enforcement]] = defaultdict(list)
    for cell in cells:
        if cell.enforcement is not None and cell.status not in ("skipped", "invalidated"):
            groups[cell.defense, cell.chain].append(cell.enforcement)
    rows = [(defense, chain, *_cells(found)) for (defense, chain), found in sorted(groups.items())]
    if rows:
        yield Table("Enforced by the fine-tuning interface", NOTE, HEADS, tuple(rows))


def unbound(cells: Iterable[Measurement]) -> tuple[str, ...]:
    """Return the chains whose attack trains nothing that a mask could freeze, or trains it outside the interface."""
    return tuple(sorted({cell.chain for cell in cells if cell.enforcement is not None and not cell.enforcement.binds}))


def _cells(found: Sequence[Enforcement]) -> tuple[str, ...]:
    first = found[0]
    tensors = scores.mean([mask.frozen_tensors / mask.tensors for mask in found])
    parameters = scores.mean([mask.frozen_parameters / mask.parameters for mask in found])
    mean = scores.mean([float(mask.frozen_tensors) for mask in found])
    share = (f"{number(mean, 0)} of {first.tensors} ({tensors:.0%})", f"{parameters:.0%}")
    if not first.binds:
        return (*share, "not bound", "-", "-", "-", "0.00, as `none`")
    return (
        *share,
        _saved(found, lambda training: training.parameters, 0),
        _saved(found, lambda training: training.optimiser_bytes / 1e6, 1),
        _saved(found, lambda training: training.seconds, 1),
        _saved(found, lambda training: training.peak_reserved_gib or training.peak_process_gib, 2),
        "0.00, as `none`",
    )


def _saved(found: Iterable[Enforcement], of: Callable[[Training], float], digits: int) -> str:
    """Return the mean with the mask, and as a share of that without; a dash where it was not recorded."""
    pairs = [(of(mask.enforced), of(mask.free)) for mask in found if mask.enforced and mask.free]
    if not pairs:
        return number(None)
    with_mask, without = (scores.mean(list(side)) for side in zip(*pairs, strict=True))
    return f"{number(with_mask, digits)} ({with_mask / without:.0%})" if without else number(with_mask, digits)
