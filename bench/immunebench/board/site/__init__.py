"""The static site: every suite, defense, attack, task and cell, without a server and without a network."""

from __future__ import annotations

from immunebench.board.site.build import build_site, write_site
from immunebench.board.site.suite import Suite, load_suite, suite_folders

__all__ = ["Suite", "build_site", "load_suite", "suite_folders", "write_site"]
