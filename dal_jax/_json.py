"""Standard JSON of results, on one line."""

import enum
import json
import math
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """Convert a value to JSON's types; NaN becomes null, infinities "Infinity" strings."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    item = np.asarray(value)
    if item.ndim:
        return [plain(entry) for entry in item.tolist()]
    number = item.item()
    if isinstance(number, float) and not math.isfinite(number):
        return None if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    return number


def dumps(fields: dict[str, Any]) -> str:
    """Write fields as one line of standard JSON."""
    return json.dumps(plain(fields), allow_nan=False)
