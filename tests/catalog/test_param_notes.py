"""Comments of parameters are read as their authors wrote them."""

from __future__ import annotations

from pathlib import Path

from immunebench.catalog.loading import load_catalog
from immunebench.catalog.param_notes import param_notes

TEXT = """\
title = "x"  # no parameter
[params]
lr = 0.0        # 0: the attack's own rate
name = "a # b"  # "c" # d
plain = 3
# of what follows
list = [1, 2]   # two
[presets.mini]
lr = 1.0  # another table
"""


def test_a_comment_belongs_to_the_parameter_on_its_line(tmp_path: Path) -> None:
    file = tmp_path / "defense.toml"
    file.write_text(TEXT)
    assert param_notes(file) == {"lr": "0: the attack's own rate", "name": '"c" # d', "list": "two"}
    assert param_notes(tmp_path / "gone.toml") == {}


def test_the_rate_that_is_not_set_says_whose_it_is() -> None:
    entry = load_catalog().defenses["imma-lora"]
    assert entry.params("none")["lr_in"] == 0.0 and "the attack's own rate" in param_notes(entry.path)["lr_in"]
