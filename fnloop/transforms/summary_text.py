"""The tables of `fl.summary`, as text that fits 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 80
_OUTPUT = 20
_LEAST = 16


def amount(count: float) -> str:
    """A number of things: as it is, or from a hundred thousand on with three digits and a unit.

    >>> amount(2044), amount(1_234_567), amount(3.6e9)
    ('2,044', '1.23 M', '3.60 G')
    """
    value, unit = float(count), ""
    if value < 100_000:
        return f"{value:,.0f}"
    for larger in ("k", "M", "G", "T", "P", "E"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows as aligned columns, of at most 80 characters.

    Where they are wider, first what is in the second column is cut, and then the first.

    Args:
        header: Names of the columns.
        rows: Their cells.
        left: How many of the columns are aligned on the left.

    >>> print(fitted(("module", "bytes"), [("Linear", "8 B"), ("  bias", "12 kB")], left=1))
    module  bytes
    Linear    8 B
      bias  12 kB
    """
    cells = [list(header), *map(list, rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    gaps = 2 * (len(widths) - 1)
    if left > 1:
        room = WIDTH - gaps - sum(widths) + widths[1]
        widths[1] = min(widths[1], max(room, _OUTPUT))
    room = WIDTH - gaps - sum(widths[1:])
    widths[0] = min(widths[0], max(room, _LEAST))
    lines: list[str] = []
    for row in cells:
        texts = [
            cut(cell, width).ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    return "\n".join(lines)


def cut(text: str, width: int) -> str:
    """`text`, of at most so many characters."""
    return text if len(text) <= width else f"{text[: width - 3]}..."
