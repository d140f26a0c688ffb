"""A run whose engine ended: one line that says so, and no failed stage."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest

from immunebench import api
from immunebench.core.errors import UsageError
from immunebench.execution.executor import EngineLost, Event, Inline, Tell
from immunebench.execution.progress import Progress
from immunebench.execution.scheduler import Outcome
from immunebench.store.artifacts import Store
from immunebench.store.graph import Plan
from toy_stages import Toy, add, graph


class Ending(Inline):
    """An engine that ends after its first stage."""

    left = 1

    def finished(self, tell: Tell) -> list[Event]:
        self.left -= 1
        if self.left < 0:
            raise EngineLost("the cluster ended")
        return super().finished(tell)


def test_it_ends_with_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path)
    specs = graph(*(Toy("score", {"value": n}) for n in range(3)))
    plan = Plan(None, (), specs, {})  # type: ignore[arg-type]

    def carried_out(executor: Inline) -> Outcome:
        outcome = Outcome()
        progress = Progress({}, {}, {}, outcome, stream=StringIO())
        api.carry_out(plan, store, executor, progress, outcome, lambda _: None, retry_failed=False, folder=tmp_path)
        return outcome

    with pytest.raises(UsageError, match=r"^--on: the run stopped: the cluster ended; what was measured stays, the sa"):
        carried_out(Ending(store, add))
    assert not any(store.failure(digest) for digest in specs)
    after = carried_out(Inline(store, add))
    assert after.present == set(specs) and len(after.made) == 2
