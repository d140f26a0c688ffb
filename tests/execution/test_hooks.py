"""What an entry's own code raises is told with its place, as its author looks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

import house
from immunebench.catalog.loading import load_catalog
from immunebench.core.types import StageError
from immunebench.execution.hooks import call_hook

CODE = """\
import json


def helper(text):
    return json.loads(text)


def protect_model(*arguments):
    return helper("{")
"""


def test_an_exception_names_the_entry_s_innermost_line_not_the_library_s(tmp_path: Path) -> None:
    models = house.house(tmp_path)
    (house.defense(tmp_path, "mine", "protect_model") / "defense.py").write_text(CODE)
    entry = load_catalog(tmp_path, models=models).defense("mine").layers[0]
    with pytest.raises(StageError) as error:
        call_hook(entry, "protect_model")
    assert str(error.value).startswith("mine: JSONDecodeError: Expecting property name")
    assert str(error.value).endswith("(mine/defense.py, line 5)")


def test_an_error_of_the_engine_that_the_entry_called_wrongly_names_the_call(tmp_path: Path) -> None:
    models = house.house(tmp_path)
    code = "from immunebench import StageError\n\n\ndef protect_model(*arguments):\n    raise StageError('oom', 'no')\n"
    (house.defense(tmp_path, "mine", "protect_model") / "defense.py").write_text(code)
    with pytest.raises(StageError, match=r"^mine: no \(mine/defense.py, line 5\)$") as error:
        call_hook(load_catalog(tmp_path, models=models).defense("mine").layers[0], "protect_model")
    assert error.value.kind == "oom"
