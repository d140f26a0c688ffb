"""What attackers train: low-rank adapters, whole networks, new words. One module a kind, one format a kind."""

from __future__ import annotations

from immunebench.adapters.base import DESCRIPTION, Adapter, saved_file
from immunebench.adapters.dense import Dense
from immunebench.adapters.install import FORMATS, install
from immunebench.adapters.low_rank import TARGETS, LowRank
from immunebench.adapters.words import Words

__all__ = ["DESCRIPTION", "FORMATS", "TARGETS", "Adapter", "Dense", "LowRank", "Words", "install", "saved_file"]
