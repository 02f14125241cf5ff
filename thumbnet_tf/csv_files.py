"""CSV files: read as text, checked where they may have been damaged; written whole or not at all."""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from thumbnet_tf.config import UserError
from thumbnet_tf.files import write_atomically


def read_rows(path: pathlib.Path, columns: Sequence[str] = (), words: Sequence[str] = ()) -> list[dict[str, str]]:
    """Reads a CSV file as dicts of strings; a missing file has no rows.

    Args:
        path: where it is.
        columns: that each row must have.
        words: those of them that hold words; the others hold numbers.

    Raises:
        UserError: when it can't be read, a cell is missing, or one holds no number where it should.
    """
    if not path.exists():
        return []
    try:
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"a CSV file can't be read ({type(error).__name__}); restore it. Received: {path}") from None
    try:
        for row in rows:
            [len(row[column]) if column in words else float(row[column]) for column in columns]  # None has neither
    except (KeyError, TypeError, ValueError):
        raise UserError(f"a CSV file must be as it was written; restore it. Received: {path}") from None
    return rows


def write_rows(path: pathlib.Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV file atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
