"""Tables: rows as aligned text, as Markdown or as HTML."""
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def cell(value: Any) -> str:
    """A value as tables show it: floats to four digits, None as nothing."""
    if isinstance(value, float):
        return f'{value:.4g}' if abs(value) < 1000 else f'{value:.0f}'
    return '' if value is None else str(value)


def text_table(rows: Sequence[dict], columns: Sequence[str] | None = None) -> str:
    """Lay rows out as an aligned text table.

    Args:
        rows (Sequence[dict]): The rows.
        columns (Sequence[str], optional): Keys, in order; also the headings; default: the
            first row's.
    """
    columns = list(rows[0] if columns is None else columns) if rows or columns else []
    cells = [list(columns), *([cell(row.get(c)) for c in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return '\n'.join('  '.join(c.rjust(w) for c, w in zip(line, widths)) for line in cells)


def markdown_table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lay rows of values out as a Markdown table, without a last newline."""
    lines = ['| ' + ' | '.join(map(cell, row)) + ' |' for row in (heading, *rows)]
    return '\n'.join([lines[0], '|---' * len(heading) + '|', *lines[1:]])


def html_table(rows: Sequence[dict]) -> str:
    """Lay rows out as an HTML table, columns as in the first row."""
    lines = [list(rows[0]), *([row.get(c) for c in rows[0]] for row in rows)]
    tags = ['th', *['td'] * len(rows)]
    return '<table>' + ''.join(
        '<tr>' + ''.join(f'<{tag}>{escape(cell(value))}</{tag}>' for value in line) + '</tr>'
        for tag, line in zip(tags, lines)) + '</table>'
