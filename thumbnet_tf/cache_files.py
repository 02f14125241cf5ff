"""Files of a cache: how large they will be, records written beside their place, and locks between processes."""

import contextlib
import fcntl
import hashlib
import logging
import os
import pathlib
import resource
from collections.abc import Callable, Collection, Iterator

from array_record.python.array_record_module import ArrayRecordWriter

from thumbnet_tf.config import UserError
from thumbnet_tf.files import saving, take_lock

_OPTIONS = "group_size:1,uncompressed"  # every record can be read alone; T's maps hardly compress
_BLOCK_BYTES = 2**16  # an ArrayRecord file is a whole number of such blocks
_ROOM = "room.partial"  # says how large its cache will be
_RECORD_BYTES = 64  # what a record takes beside its content, at most
_OTHER_FILES = 512  # that a process may have open beside a cache's

_log = logging.getLogger(__name__)


def file_size(records: int, content: int) -> int:
    """Returns how many bytes a file takes at most, by ArrayRecord's layout: blocks of 64 KiB, two of them its index.

    Args:
        records: number of records.
        content: bytes of each.
    """
    return (-(-records * (content + _RECORD_BYTES) // _BLOCK_BYTES) + 2) * _BLOCK_BYTES


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Gives a function that adds a record to a file, which appears in its place when all is written.

    Raises:
        UserError: when it can't be written.
    """
    partial = path.with_name(f"{path.name}.partial")

    def write(record: bytes) -> None:
        with _saving(path):
            writer.write(record)

    try:
        with _saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            writer = ArrayRecordWriter(str(partial), _OPTIONS)
        yield write
        with _saving(path):
            writer.close()
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _saving(path: pathlib.Path) -> Iterator[None]:
    with saving(path):
        try:
            yield
        except RuntimeError as error:  # what the library raises for a full disk and the like
            raise OSError(str(error).partition(";")[0]) from error


def identity(path: pathlib.Path) -> list:
    """Returns a file's size and SHA-256."""
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def held(root: pathlib.Path, own: Collection[pathlib.Path] = ()) -> tuple[int, int]:
    """Returns the bytes of the caches below a folder, and how many more other processes are about to write there.

    Args:
        root: the folder of all caches.
        own: caches whose growth the caller counts itself, whoever fills them.
    """
    there = promised = 0
    for folder in (path for path in root.iterdir() if path.is_dir()):
        now = _size(folder)
        there += now
        with contextlib.suppress(OSError, ValueError):  # nothing is promised, it is being written, or not to be entered
            then = int((folder / _ROOM).read_text())
            promised += max(0, then - now) if folder not in own and _is_locked(folder) else 0
    return there, promised


@contextlib.contextmanager
def growing(folder: pathlib.Path, num_bytes: int) -> Iterator[None]:
    """Lets `held` know that a cache is to grow, for as long as this process lives and has it locked."""
    path = folder / _ROOM
    try:
        with saving(folder):
            path.write_text(str(_size(folder) + num_bytes))
        yield
    finally:
        path.unlink(missing_ok=True)


def _size(folder: pathlib.Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # deleted meanwhile, or another user's
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):  # renamed meanwhile
                total += path.stat().st_size if path.is_file() else 0
    return total


def _is_locked(folder: pathlib.Path) -> bool:
    with open(folder / "lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds a folder, which is made if need be, for one process; others wait.

    Raises:
        UserError: when it can't be written or locked.
    """
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115 - held open as long as the lock
    with file:
        if not take_lock(file):
            _log.info("another process is at work on %s; waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def size_text(num_bytes: float) -> str:
    """Returns a size as one reads it."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def allow_open_files(count: int) -> None:
    """Lets the process have so many more files open at a time: those of a cache stay open once they were read.

    Raises:
        UserError: when the system doesn't allow it.
    """
    (soft, hard), wanted = resource.getrlimit(resource.RLIMIT_NOFILE), count + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise UserError(
            f"all {count} files of T's cache must be open at a time; allow it (ulimit -Hn {wanted}), or take fewer "
            f"--cached_views in a new --run_dir. Received: a limit of {hard} open files"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
