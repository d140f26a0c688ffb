"""What attackers train: low-rank adapters, whole networks or token embeddings, each with its own file format."""

from __future__ import annotations

from immunebench.methods.adapters.base import DESCRIPTION, Adapter, saved_file
from immunebench.methods.adapters.dense import Dense
from immunebench.methods.adapters.install import FORMATS, install
from immunebench.methods.adapters.low_rank import TARGETS, LowRank
from immunebench.methods.adapters.words import Words

__all__ = ["DESCRIPTION", "FORMATS", "TARGETS", "Adapter", "Dense", "LowRank", "Words", "install", "saved_file"]
