"""Versions of exported models: `<root>/<name>/<integer>/`, the layout that TensorFlow Serving watches.

A version is written in a hidden folder beside its place and renamed when it is complete, so a server never sees
half of one. An export that is interrupted publishes nothing, and the next one removes what it may have left. Only one
that ends in the instant in which several models (`--also`) are renamed, one after the other, leaves some published.
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thumbnet_tf.config import UserError
from thumbnet_tf.files import saving, sync, take_lock, write_atomically

MANIFEST = "manifest.json"
LABELS = "labels.txt"

_PARTIAL = ".partial-"  # a server takes only folders named by an integer for versions


@contextlib.contextmanager
def staging(
    root: pathlib.Path, names: Sequence[str], version: int = 0
) -> Iterator[tuple[int, dict[str, pathlib.Path]]]:
    """Gives a folder to fill for each of several models, and publishes all of them under one version at the end.

    Args:
        root: holds the models' folders; made if need be.
        names: of the models; the last one is published last.
        version: the version's number; 0 for the next one that is free in all of them.

    Yields:
        The version's number, and the folder to fill by name. Nothing is published when the block raises.

    Raises:
        UserError: when the version exists, another export of such a model is running, or the place can't be written.
    """
    with contextlib.ExitStack() as stack:
        with saving(root):
            for name in sorted(names):
                (root / name).mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(root / name))
        existing = set().union(*(versions(root / name) for name in names))
        if version in existing:
            raise UserError(
                f"--version must be a new one, for a published version is never overwritten; leave it out to get "
                f"{max(existing) + 1}. Received: {version}, which exists in {root / names[-1]}"
            )
        number = version or max(existing, default=0) + 1
        folders = {name: root / name / f"{_PARTIAL}{number}" for name in names}
        for name in names:
            with saving(root / name):
                for left in (root / name).glob(f"{_PARTIAL}*"):  # by an export that was killed: we hold its lock
                    shutil.rmtree(left)
                folders[name].mkdir()
        try:
            yield number, folders
            with saving(root):
                for folder in folders.values():
                    for path in (*folder.rglob("*"), folder):
                        sync(path)
                for name, folder in folders.items():  # nothing slow between: a kill here would leave some published
                    os.rename(folder, root / name / str(number))
                for name in names:
                    sync(root / name)
        finally:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as file:
        if not take_lock(file):
            raise UserError(f"another export to {folder} is running; wait for it or choose another --name")
        yield


def versions(folder: pathlib.Path) -> list[int]:
    """Returns the numbers of the versions published in a model's folder, rising.

    Raises:
        UserError: when it can't be read.
    """
    if not os.path.isdir(folder):  # Path's own raises where a folder above can't be entered
        return []
    try:
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    except OSError as error:
        raise UserError(
            f"the folder of a model's versions must be readable; allow it or choose another. Received: {folder} "
            f"({error.strerror})"
        ) from None


def version_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of an export's version: the path itself, or the latest version in it.

    Raises:
        UserError: when the path is neither.
    """
    if os.path.isfile(path / MANIFEST):
        return path
    if numbers := versions(path):
        return path / str(numbers[-1])
    raise UserError(f"an export's folder, such as saved_models/thumbnet/1, is expected. Received: {path}")


def write_labels(folder: pathlib.Path, classes: Sequence[str]) -> None:
    """Writes the classes in the order of their labels, one a line."""
    write_atomically(folder / LABELS, "".join(f"{name}\n" for name in classes))


def read_labels(folder: pathlib.Path) -> list[str]:
    """Returns what `write_labels` wrote, or nothing where there is none.

    Raises:
        UserError: when it can't be read.
    """
    path = folder / LABELS
    try:
        return path.read_text(encoding="utf-8").splitlines() if os.path.isfile(path) else []
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must hold UTF-8 text; mend or remove it. Received: {type(error).__name__}") from None


def write_manifest(folder: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Writes facts about an export, and size and digest of each of its files."""
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "zipped_bytes": zipped_bytes(path.read_bytes()),
            "sha256": digest_of(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomically(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=2, ensure_ascii=False) + "\n")


def digest_of(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file's content in hexadecimal digits, empty where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the manifest of an export.

    Raises:
        UserError: when the folder holds none.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError
        return found
    except (OSError, ValueError) as error:
        raise UserError(
            f"an export's folder, such as saved_models/thumbnet/1, holds a {MANIFEST}; give one. "
            f"Received: {folder} ({type(error).__name__})"
        ) from None


def zipped_bytes(data: bytes) -> int:
    """Returns how large some content is in a ZIP archive, which an Android package is."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("file", data)
        return archive.getinfo("file").compress_size
