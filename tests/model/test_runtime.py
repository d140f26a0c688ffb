"""Seeds, memory guard and environment probe."""

from __future__ import annotations

import subprocess
import sys

import pytest

from immunebench.core import machine
from immunebench.core.types import Numerics, StageError
from immunebench.model import runtime


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    seeds = {runtime.derive_seed(*parts) for parts in [(0, "adapt"), (0, "sample"), (1, "adapt"), (0, "adap", "t")]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert runtime.derive_seed(0, "adapt", "style-solano") == 6205679065392208978


def test_runtime_and_types_load_no_torch() -> None:
    code = "import sys, immunebench.model.runtime, immunebench.core.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_guard_measures_the_process() -> None:
    with runtime.memory_guard(Numerics()) as report:
        block = bytearray(64 << 20)
        block[:: 1 << 12] = b"x" * len(block[:: 1 << 12])
    assert 0.06 < report.process < 8
    assert report.as_dict()["memory_cap_gib"] == 8


def test_a_peak_above_the_cap_is_over_memory() -> None:
    with (
        pytest.raises(StageError, match=r"cap of 0\.001 GiB") as caught,
        runtime.memory_guard(Numerics(memory_gib=0.001)),
    ):
        pass
    assert caught.value.kind == "over_memory"


def test_a_failed_allocation_is_oom_with_both_figures() -> None:
    with (
        pytest.raises(StageError, match=r"reserved peak .* process peak") as caught,
        runtime.memory_guard(Numerics()),
    ):
        raise MemoryError
    assert caught.value.kind == "oom"


def test_other_errors_pass_the_guard() -> None:
    with pytest.raises(KeyError), runtime.memory_guard(Numerics()):
        raise KeyError("x")


def test_the_environment_names_the_libraries() -> None:
    probe = machine.environment()
    assert {"torch", "diffusers", "peft"} <= probe["libraries"].keys()
    assert probe["cpus"] >= 1


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(StageError, match="unknown dtype 'int4'"):
        runtime.dtype("int4")


def test_training_alone_is_held_to_deterministic_kernels() -> None:
    """On a GPU a process only warns of the others, and then attention takes one that adds in any order."""
    import torch

    from immunebench.model.runtime import training

    softened = torch.is_deterministic_algorithms_warn_only_enabled
    with training({}):
        assert not torch.are_deterministic_algorithms_enabled()  # nobody asked for them
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with training({}):
            assert torch.are_deterministic_algorithms_enabled() and not softened()
            with training({}):
                assert not softened()
            assert not softened()
        assert softened()
        with pytest.raises(ValueError), training({}):
            raise ValueError
        assert softened()
    finally:
        torch.use_deterministic_algorithms(False)
