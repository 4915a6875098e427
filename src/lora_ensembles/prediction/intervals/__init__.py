"""Intervals of a metric over examples."""

from __future__ import annotations

from .bootstrap import Interval, bootstrap_interval, paired_difference

__all__ = ["Interval", "bootstrap_interval", "paired_difference"]
