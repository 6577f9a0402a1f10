"""What the members' configs ask of their fields."""

from __future__ import annotations

import math
from typing import Any

from ..errors import FinloraError


def check_whole(field: str, value: Any, low: int, usual: str) -> None:
    """Raises: FinloraError where the field is no whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise FinloraError(f"{field} must be a whole number of at least {low}, got {value!r}", f"{usual} is usual")


def check_above(field: str, value: Any, usual: str) -> None:
    """Raises: FinloraError where the field is no finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise FinloraError(f"{field} must be a finite number above 0, got {value!r}", f"{usual} is usual")


def check_truth(field: str, value: Any) -> None:
    """Raises: FinloraError where the field is neither true nor false."""
    if not isinstance(value, bool):
        raise FinloraError(f"{field} must be true or false, got {value!r}")
