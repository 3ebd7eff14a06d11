# SPDX-License-Identifier: Apache-2.0
"""A table in Markdown whose columns also line up where it is read as it is."""


def table(rows):
    """Of cells, the first row the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
