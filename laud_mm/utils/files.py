"""Files that appear complete or not at all."""
import csv
import json
import os
from collections.abc import Iterator, Sequence
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
    """Write JSON, complete or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=2) + '\n')


def write_csv(rows: Sequence[dict], path: str | Path) -> None:
    """Write rows as CSV with a heading, complete or not at all."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as part, open(part, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
