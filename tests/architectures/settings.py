"""What tiny models of single architectures need beside sizes made small by name; keys are model types."""

from __future__ import annotations

from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {}
