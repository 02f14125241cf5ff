"""What a source holds before any image is decoded: names, labels, and how to get at the bytes.

Two kinds of sources: folders of image files, and TFDS datasets (the embedded `fine_detail` is one).
"""

import dataclasses
import difflib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from thumbnet_tf.config import UserError
from thumbnet_tf.data.store import FileStore, StreamStore
from thumbnet_tf.progress import track

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("validation", "valid", "val"), "validation"),
}

LONGEST_CAUSE = 300  # characters of a TFDS error that are shown

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class RawSplit:
    """One split as its source has it.

    Attributes:
        labels: int64 (n,).
        names: the examples' names, each only once.
        items: maps rising positions to one item each, whatever `fetch` takes.
        fetch: maps an item to the encoded image's bytes; called in several threads.
        store: maps rising positions to a store of these images that decodes them anew each time.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    items: Callable[[np.ndarray], Iterable[Any]]
    fetch: Callable[[Any], bytes]
    store: Callable[[np.ndarray], FileStore | StreamStore]


@dataclasses.dataclass(frozen=True, eq=False)
class Listing:
    """All of a source.

    Attributes:
        class_names: one for each label.
        splits: those that the source has; calling one may read all its records.
        identity: strings that change when the source's content does.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Callable[[], RawSplit]]
    identity: list[str]


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts `a10` behind `a9`, and upper beside lower case."""
    parts = re.split(r"(\d+)", name)  # text and numbers in turn, so that like is compared with like
    return [(int(part) if i % 2 else part.lower()) for i, part in enumerate(parts)], name


# --- folders


def _entries(folder: Path) -> list[Path]:
    try:
        names = os.listdir(f"{folder}/.")  # refused, too, where names may be read and what they name may not
    except OSError as error:
        raise UserError(f"the data's folders must be readable. Received: {folder} ({error.strerror})") from None
    return [folder / name for name in sorted(names, key=natural_key) if not name.startswith(".")]


def list_folder(root: Path) -> Listing:
    """Lists `root/<class>/*` or `root/{train,test,validation}/<class>/*`; `SPLIT_FOLDERS` has the splits' other names.

    Classes are the sorted folder names, as Keras' `image_dataset_from_directory` and TFDS number them. Hidden files and
    files that aren't named like images are left out and counted in the log.

    Raises:
        UserError: when there is no such folder, no class, an empty class, or when splits differ in their classes.
    """
    if not os.path.isdir(root):  # Path's own raises where a folder above can't be entered
        raise UserError(
            "--dataset=folder:PATH takes an existing folder; correct the path (commands that take no --dataset have "
            f"--data_dir to say where it lies now). Received: {root}"
        )
    folders: dict[str, Path] = {}
    for path in _entries(root):
        split = SPLIT_FOLDERS.get(path.name.lower())
        if split and path.is_dir() and any(inside.is_dir() for inside in _entries(path)):  # else a class of this name
            if split in folders:
                raise UserError(
                    f"{root} has two {split} folders; keep one. Received: {folders[split].name}, {path.name}"
                )
            folders[split] = path
    beside = [path.name for path in _entries(root) if folders and path not in folders.values()]
    if beside:
        some = ", ".join(beside[:3])
        _log.info("%s: %d files or folders beside the splits are left out, such as %s", root, len(beside), some)
    if folders and "train" not in folders:
        raise UserError(f"{root} needs a folder train beside {', '.join(folders)}; add it. Received: none")
    listed = {split: _list_classes(folder, root) for split, folder in (folders or {"train": root}).items()}
    classes = listed["train"]
    for split, found in listed.items():
        if set(found) != set(classes):
            odd = ", ".join(sorted(set(found) ^ set(classes), key=natural_key)[:5])
            raise UserError(
                f"{root}: train and {split} must have the same class folders; rename or add. "
                f"Received: only in one: {odd}"
            )
    splits, identity = {}, []
    for split, found in listed.items():
        labels = [label for label, name in enumerate(classes) for _ in found[name]]
        paths = [path for name in classes for path in found[name]]
        names = [path.relative_to(root).as_posix() for path in paths]
        identity += [f"{n} {i} {p.stat().st_size}" for n, i, p in zip(names, labels, paths, strict=True)]
        raw = RawSplit(
            labels=np.array(labels, np.int64),
            names=tuple(names),
            items=lambda positions, paths=paths: (paths[i] for i in positions),
            fetch=Path.read_bytes,
            store=lambda positions, paths=paths: FileStore([str(paths[i]) for i in positions]),
        )
        splits[split] = lambda raw=raw: raw
    return Listing(tuple(classes), splits, identity)


def _list_classes(folder: Path, root: Path) -> dict[str, list[Path]]:
    classes, below = dict[str, list[Path]](), list[Path]()
    entries = sorted(_entries(folder), key=lambda path: path.name)
    ignored = [path for path in folder.iterdir() if path.name.startswith(".") or not path.is_dir()]
    for path in entries:
        if path.is_dir():
            images = [p for p in _entries(path) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
            ignored += sorted(set(path.iterdir()) - set(images))
            inside = (p for f in _entries(path) if f.is_dir() for p in sorted(f.rglob("*")))
            below += [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES]
            classes[path.name] = images
    if below:
        _log.warning(
            "%s: %d images in folders inside a class' folder are left out, such as %s; move them into the class' own",
            folder,
            len(below),
            below[0].relative_to(root).as_posix(),
        )
    if ignored:
        some = ", ".join(path.relative_to(root).as_posix() for path in ignored[:3])
        _log.info(
            "%s: %d files or folders ignored that are hidden or not named like images, such as %s",
            *(folder, len(ignored), some),
        )
    empty = [name for name, images in classes.items() if not images]
    if empty:
        inside = next((path.name for path in _entries(folder / empty[0]) if path.is_dir()), None)
        known = f" (folders of splits are called {', '.join(SPLIT_FOLDERS)})" if inside else ""
        raise UserError(
            f"{folder}: each class folder must hold images ({', '.join(IMAGE_SUFFIXES)}); fill or remove it{known}. "
            f"Received: empty {empty[0]}" + (f", which holds folders, such as {inside}" if inside else "")
        )
    if len(classes) < 2:
        raise UserError(f"{folder} must hold at least 2 class folders with images. Received: {len(classes)}")
    return classes


# --- TFDS


def list_tfds(dataset: str, data_dir: str) -> Listing:
    """Opens a TFDS dataset, prepares it if need be, and finds its image and label.

    Raises:
        UserError: when the name is unknown, the data can't be had, or it isn't for image classification.
    """
    builder = _prepared(dataset, data_dir)
    info = builder.info
    keys = info.supervised_keys
    if not keys or len(keys) != 2 or not all(isinstance(key, str) and key in info.features for key in keys):
        raise UserError(
            f"--dataset needs a TFDS set with supervised_keys (image, label); choose another. "
            f"Received: {dataset} with {keys}"
        )
    image, label = (info.features[key] for key in keys)
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        kinds = f"{type(image).__name__} and {type(label).__name__}"
        raise UserError(
            f"--dataset needs a TFDS set of an Image and a ClassLabel; choose another. Received: {dataset} with {kinds}"
        )
    if label.num_classes is None or label.num_classes < 2:
        raise UserError(
            f"--dataset needs at least 2 classes; choose another. Received: {dataset} with {label.num_classes}"
        )
    # Under `tfds.testing.mock_data` the splits are unknown; any name is accepted there.
    available = [name for name in ("train", "validation", "test") if name in info.splits] if info.splits else ["train"]
    if {"validation", "test"} <= {*available} and _is_unlabelled(builder, "test", keys[1]):
        available.remove("test")
        _log.info("the test split has no labels and is left out")
    if "train" not in available:
        raise UserError(
            f"--dataset needs a train split; choose another. Received: {dataset} with {', '.join(info.splits)}"
        )
    identity = [info.full_name]
    for name in available if info.splits else []:
        split = info.splits[name]
        identity.append(f"{name} {split.num_examples} {split.num_bytes} {list(split.shard_lengths or [])}")
    splits = {name: functools.partial(_read_split, builder, name, keys) for name in available}
    return Listing(tuple(label.names), splits, identity)


def _is_unlabelled(builder: tfds.core.DatasetBuilder, split: str, label_key: str) -> bool:
    """Returns whether the first example's label stands for none, as in the test splits of competitions."""
    decoders = tfds.decode.PartialDecoding({label_key: True})
    examples = builder.as_dataset(split=split, shuffle_files=False, decoders=decoders).take(1).as_numpy_iterator()
    return any(example[label_key] < 0 for example in examples)


def _builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    name, _, config = dataset.partition("/")
    where = {"data_dir": data_dir} if data_dir else {}
    if name == "fine_detail":
        from thumbnet_tf.data.fine_detail import FineDetail  # registers itself with TFDS: not before it is wanted

        configs = [c.name for c in FineDetail.BUILDER_CONFIGS]
        if config and config not in configs:
            raise UserError(f"--dataset=fine_detail/NAME takes one of {', '.join(configs)}. Received: {dataset}")
        return FineDetail(config=config or None, **where)
    try:
        return tfds.builder(dataset, **where)
    except Exception as error:
        if not isinstance(error, tfds.core.DatasetNotFoundError) and not os.path.isdir(dataset):
            raise UserError(
                f"--dataset can't be opened by TFDS ({_line(error)}); correct the name. Received: {dataset}"
            ) from None
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
        near = [f"folder:{dataset}"] if os.path.isdir(dataset) else near
        hint = f"did you mean {', '.join(near)}?" if near else "see tensorflow.org/datasets/catalog."
        raise UserError(
            f"--dataset must be fine_detail, folder:PATH or a TFDS name; {hint} Received: {dataset}"
        ) from None


def _line(error: Exception) -> str:
    """Returns what an exception of TFDS says, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_CAUSE]


def _prepared(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    builder = _builder(dataset, data_dir)
    if builder.is_prepared():
        return builder
    _log.info("preparing %s in %s", dataset, builder.data_dir)
    try:
        builder.download_and_prepare()
        return builder
    except Exception as error:
        again = _builder(dataset, data_dir)
        if again.is_prepared():  # by another process, which was faster
            return again
        if builder.name == "fine_detail":
            raise UserError(
                f"{dataset} can't be rendered here ({_line(error)}); give a writable --data_dir with room. "
                f"Received: {builder.data_dir}"
            ) from None
        raise UserError(
            f"{dataset} isn't prepared and can't be prepared here ({_line(error)}); prepare it elsewhere with "
            f"`python -c \"import tensorflow_datasets as t; t.builder('{dataset}').download_and_prepare()\"` "
            f"and copy its folder to {builder.data_dir}, or set --data_dir. Received: --dataset={dataset}"
        ) from None


def _read_split(builder: tfds.core.DatasetBuilder, name: str, keys: tuple[str, str]) -> RawSplit:
    """Reads names and labels of all examples of a TFDS split."""
    image_key, label_key = keys
    config = tfds.ReadConfig(add_tfds_id=True, try_autocache=False)
    # Encoded images: decoding is ours, so that training and serving decode alike, and features unused cost nothing.
    decoders = tfds.decode.PartialDecoding(
        {image_key: True, label_key: True}, decoders={image_key: tfds.decode.SkipDecoding()}
    )

    def examples() -> tf.data.Dataset:
        return builder.as_dataset(split=name, shuffle_files=False, decoders=decoders, read_config=config)

    def encoded() -> tf.data.Dataset:
        return examples().map(lambda example: example[image_key])

    names, labels = [], []
    listed = examples().map(lambda e: (e["tfds_id"], e[label_key])).as_numpy_iterator()
    known = builder.info.splits  # empty where the set is mocked
    for example in track(listed, known[name].num_examples if name in known else None, f"listing {name}"):
        names.append(example[0].decode())
        labels.append(example[1])
    if labels and min(labels) < 0:
        raise UserError(
            f"--dataset: the {name} split has examples without a label; choose another. Received: {builder.name}"
        )

    def items(positions: np.ndarray) -> Iterable[bytes]:
        wanted = set(positions.tolist())
        return (data for i, data in enumerate(encoded().as_numpy_iterator()) if i in wanted)

    return RawSplit(
        labels=np.array(labels, np.int64),
        names=tuple(names),
        items=items,
        fetch=bytes,
        store=lambda positions: StreamStore(encoded, positions, len(labels)),
    )
