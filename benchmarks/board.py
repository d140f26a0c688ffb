"""Time and memory of building one large board from synthetic measurements.

    python benchmarks/board.py --entries 100 --tasks 16 --chains 7 --seeds 3 --metrics 3 --pictures 24

The board must be built within 60 s and 3 GB on two cores.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Iterator

import numpy as np

from immunebench.board.assembly.aggregate import aggregate
from immunebench.board.scores.measurement import Further, Measurement

FAMILIES = ("style", "object", "identity", "relearn")


def synthetic(
    entries: int, tasks: int, chains: int, seeds: int, metrics: int, pictures: int, seed: int = 0
) -> Iterator[Measurement]:
    """Measurements of `none` and `entries` model-side defenses of rising strength."""
    rng = np.random.default_rng(seed)
    for t in range(tasks):
        family = FAMILIES[t % len(FAMILIES)]
        for s in range(seeds):
            floor = 0.1 + 0.2 * rng.standard_normal((metrics, pictures))
            for c in range(chains):
                ceiling = 0.8 + 0.2 * rng.standard_normal((metrics, pictures))
                for e in range(entries + 1):
                    strength = 0.8 * e / entries * rng.uniform(0.6, 1.2)
                    defended = ceiling if e == 0 else ceiling - 0.7 * strength + 0.1 * rng.standard_normal(pictures)
                    values = [Further(tuple(defended[m]), tuple(ceiling[m]), tuple(floor[m])) for m in range(metrics)]
                    yield Measurement(
                        task=f"{family}-{t}",
                        family=family,
                        defense="none" if e == 0 else f"entry-{e:03d}",
                        chain=f"attack-{c}",
                        seed=s,
                        kind="control" if e == 0 else "model",
                        m_def=values[0].m_def,
                        m_none=values[0].m_none,
                        m_floor=values[0].m_floor,
                        metric="metric-0@1",
                        further={f"metric-{m}@1": values[m] for m in range(1, metrics)},
                        g=0.9,
                        g_base=0.95,
                        benign=0.8,
                        benign_floor=0.1,
                        benign_ceiling=0.9,
                    )


def main() -> None:
    """Print seconds and peak memory; exit 1 above the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"entries": 100, "tasks": 16, "chains": 7, "seeds": 3, "metrics": 3, "pictures": 24}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--most-seconds", type=float, default=60.0)
    parser.add_argument("--most-gib", type=float, default=3.0)
    arguments = parser.parse_args()
    cells = list(synthetic(**{name: getattr(arguments, name) for name in sizes}))
    before = _peak_gib()
    start, start_cpu = time.perf_counter(), time.process_time()
    board = aggregate(cells)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    ranked = sum(row.rank is not None for row in board.rows)
    groups = max((row.rank or 0 for row in board.rows), default=0)
    print(f"{len(cells)} cells, {len(board.rows)} rows, {ranked} ranked in {groups} tie groups")
    print(f"{seconds:.1f} s ({cpu:.1f} s of processor time)")
    print(f"peak {_peak_gib():.2f} GiB ({before:.2f} GiB before, the measurements themselves)")
    sys.exit(seconds > arguments.most_seconds or _peak_gib() > arguments.most_gib)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
