"""Percentiles and means of measured times."""

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value below which `percent` of the values lie, linear between neighbours (numpy's default); None for none."""
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low, high = math.floor(rank), math.ceil(rank)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def summary(seconds: Sequence[float]) -> dict[str, float | None]:
    """Mean, p50 and p99 in milliseconds."""
    mean = sum(seconds) / len(seconds) if seconds else None
    values = {"mean": mean, "p50": percentile(seconds, 50), "p99": percentile(seconds, 99)}
    return {name: None if value is None else round(value * 1000, 3) for name, value in values.items()}


def median(values: Sequence[float | None]) -> float | None:
    """The median of the values that are there, rounded for reports."""
    found = percentile([value for value in values if value is not None], 50)
    return None if found is None else round(found, 3)
