"""A progress line with count, rate and remaining time for work that may take a while."""

import sys
from collections.abc import Iterable

import tqdm

QUIET_SECONDS = 2.0  # shorter work shows nothing
LOG_SECONDS = 10.0  # between two lines where the output is a file, not a terminal


class _Lines:
    """Writes each state of the bar as a line of its own: a log file can't go back to the line's start."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def track(items: Iterable | None, total: int | None, what: str, done: int = 0) -> tqdm.tqdm:
    """Wraps `items` so that a loop over them shows its progress on stderr, once it has taken over two seconds.

    Args:
        items: anything to go through; None for a bar that is moved by its `update(count)`.
        total: how many there are; None if unknown.
        what: what is being done, the line's first words.
        done: how many were done before (a resumed work).
    """
    terminal = sys.stderr.isatty()
    return tqdm.tqdm(
        items,
        total=total,
        initial=done,
        desc=what,
        delay=QUIET_SECONDS,
        mininterval=0.2 if terminal else LOG_SECONDS,
        file=sys.stderr if terminal else _Lines(),
        dynamic_ncols=terminal,
        ncols=None if terminal else 0,
    )
