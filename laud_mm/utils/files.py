"""Files that appear complete or not at all."""
import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write beside `path`, then take its place; what stood there stays if anything fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.{path.stem}.part{path.suffix}')
    try:
        yield part
        with open(part, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(content: Any, path: str | Path) -> None:
    """Write JSON, complete or not at all; see `to_json`."""
    text = json.dumps(to_json(content), indent=2, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + '\n')


def to_json(value: Any) -> Any:
    """A value as JSON knows it.

    Arrays and tensors become lists, or the number of a single one; NaN and infinities, which
    JSON has not, null; what else it does not know, its text.
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): to_json(v) for key, v in value.items()}
    if hasattr(value, 'tolist'):  # NumPy's and torch's
        value = value.tolist()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def write_csv(rows: Sequence[dict], path: str | Path) -> None:
    """Write rows as CSV with a heading, complete or not at all."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as part, open(part, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
