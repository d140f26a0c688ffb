"""How long a graph of stages takes on any number of GPUs: list scheduling over the real graph, as the run does it."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from immunebench.plan.prices import Price
from immunebench.store.graph import Plan


@dataclass(frozen=True)
class Job:
    """A stage to be simulated: seconds, whether it holds a GPU (else a core), and the places of its inputs."""

    seconds: float
    on_card: bool
    inputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Simulated:
    """The outcome of a simulation: seconds until all is done, and the share of the GPUs' time that they work."""

    seconds: float
    busy: float


def jobs_of(plan: Plan, prices: Mapping[str, Price]) -> list[Job]:
    """Return the stages of a plan as jobs, inputs before their users."""
    place = {digest: number for number, digest in enumerate(plan.stages)}
    return [
        Job(prices[digest].seconds, prices[digest].on_card, tuple(place[of] for of in spec.inputs.values()))
        for digest, spec in plan.stages.items()
    ]


def widened(plan: Plan, prices: Mapping[str, Price], entries: Sequence[str], count: int) -> tuple[list[Job], int]:
    """Return the jobs and the number of cells of a board of `count` defenses in the place of the plan's own.

    The controls are as planned. Of each further defense the stages are those of one of `entries`, in turn, that no
    control shares: the same attacks, from weights or pictures of its own.

    Parameters
    ----------
    plan, prices
        What is planned, and what each stage takes.
    entries
        The plan's defenses that are no controls, at least one.
    count
        Number of defenses, at least 1.
    """
    users = {name: [plan.roots[cell.key] for cell in plan.cells if cell.defense == name] for name in entries}
    controls = [plan.roots[cell.key] for cell in plan.cells if cell.defense not in entries]
    shared = {digest for graph in controls for digest in graph.stages}
    place: dict[str, int] = {}
    jobs: list[Job] = []

    def add(digests: Iterable[str], own: dict[str, int]) -> None:
        for digest in digests:
            inputs = tuple(own.get(of, place.get(of, 0)) for of in plan.stages[digest].inputs.values())
            own[digest] = len(jobs)
            jobs.append(Job(prices[digest].seconds, prices[digest].on_card, inputs))

    add((digest for digest in plan.stages if digest in shared), place)
    for number in range(count):
        graphs = users[entries[number % len(entries)]]
        needed = {digest for graph in graphs for digest in graph.stages} - shared
        add((digest for digest in plan.stages if digest in needed), {})
    cells = len(controls) + sum(len(users[entries[number % len(entries)]]) for number in range(count))
    return jobs, cells


def critical_path(jobs: Sequence[Job]) -> float:
    """Return the seconds of the longest chain of stages: no number of GPUs is faster."""
    ends: list[float] = []
    for job in jobs:
        ends.append(job.seconds + max((ends[place] for place in job.inputs), default=0.0))
    return max(ends, default=0.0)


def simulate(jobs: Sequence[Job], cards: int, cores: int) -> Simulated:
    """Simulate a run: whenever a GPU or a core is free, it takes the first ready stage in the order of the plan.

    Parameters
    ----------
    jobs
        Inputs before their users.
    cards, cores
        GPUs, and cores for the stages that need none, at least 1 each.

    Returns
    -------
    Seconds of the whole, and the share of the GPUs' time in which they work.
    """
    missing = [len(set(job.inputs)) for job in jobs]
    users: list[list[int]] = [[] for _ in jobs]
    for number, job in enumerate(jobs):
        for place in set(job.inputs):
            users[place].append(number)
    free = {True: cards, False: cores}
    ready: dict[bool, list[int]] = {True: [], False: []}
    running: list[tuple[float, int]] = []
    now = 0.0
    for number, job in enumerate(jobs):
        if not missing[number]:
            heapq.heappush(ready[job.on_card], number)
    while True:
        for kind, waiting in ready.items():
            while waiting and free[kind]:
                number = heapq.heappop(waiting)
                free[kind] -= 1
                heapq.heappush(running, (now + jobs[number].seconds, number))
        if not running:
            break
        now, number = heapq.heappop(running)
        free[jobs[number].on_card] += 1
        for user in users[number]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready[jobs[user].on_card], user)
    work = sum(job.seconds for job in jobs if job.on_card)
    return Simulated(now, work / (now * cards) if now else 0.0)
