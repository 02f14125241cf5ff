"""Files that are old or new and never half, errors of writing in one line, locks between processes."""

import contextlib
import errno
import fcntl
import io
import logging
import os
import pathlib
import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import tensorflow as tf

from thumbnet_tf.config import UserError

# what TensorFlow raises on the other machines when one is gone, and not for a file
MACHINE_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file beside its place and renames it, so that it is old or new and never half.

    Raises:
        UserError: when it can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    with saving(path):
        partial.write_bytes(content.encode(errors="surrogateescape") if isinstance(content, str) else content)
        os.replace(partial, path)


def check_archive(path: str | os.PathLike) -> None:
    """Reads a zip archive, such as a `.keras` file, once; who reads parts of it only may take damaged ones for whole.

    Raises:
        zipfile.BadZipFile: when it is none, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} in it is damaged")


@contextlib.contextmanager
def logging_to(path: pathlib.Path) -> Iterator[None]:
    """Appends the package's log to a file for a while.

    Raises:
        UserError: when it can't be opened.
    """
    with saving(path):
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    package = logging.getLogger("thumbnet_tf")
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log that never gets in the way: where the disk is full, lines are lost, and no error hides another."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Passes over a line that can't be written."""

    def close(self) -> None:
        """Closes the file, whether or not its last lines can be written."""
        with contextlib.suppress(OSError):
            super().close()


def write_figure(path: pathlib.Path, figure: Any, **how: Any) -> None:
    """Writes a figure of matplotlib as a PNG file, old or new and never half.

    Args:
        path: the file.
        figure: a `matplotlib.figure.Figure`.
        how: more that its `savefig` takes.

    Raises:
        UserError: when it can't be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", **how)
    write_atomically(path, content.getvalue())


def sync(path: pathlib.Path) -> None:
    """Writes a file or a folder's names through to the disk, so that a loss of power leaves nothing half written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: OSError | tf.errors.OpError) -> str:
    """Returns in one line what the system or TensorFlow says went wrong."""
    text = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
    return " ".join(without_nodes(text).split())


def without_nodes(text: str) -> str:
    """Returns a message of TensorFlow's without the places in the graph that it names."""
    return re.sub(r"\[\[.*?\]\]|\{\{.*?\}\}|\[Op:\w*\]", "", text)


@contextlib.contextmanager
def saving(path: pathlib.Path) -> Iterator[None]:
    """Turns a failure to write (full disk, read-only folder) into one line."""
    try:
        yield
    except MACHINE_LOST:  # while all save
        raise
    except (OSError, tf.errors.OpError) as error:
        full = getattr(error, "errno", None) in (None, errno.ENOSPC, errno.EDQUOT)  # libraries' errors have none
        mend = "Make room, then" if full else "Make it writable or choose another place, then"
        raise UserError(
            f"{path} can't be written ({reason(error)[-150:]}); what was saved before is intact. "
            f"{mend} give the same command again"
        ) from error


def take_lock(file: IO) -> bool:
    """Locks an open file for this process until it is closed, and returns True, or False where another one has it.

    Raises:
        UserError: where files can't be locked, as on some network file systems.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        folder = pathlib.Path(file.name).parent
        raise UserError(
            f"{folder} must lie where files can be locked ({error.strerror}); choose another place. Received: {folder}"
        ) from None
    return True
