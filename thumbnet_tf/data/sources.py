"""Loads a dataset by its name: `load(cfg)` gives splits of checked images, in memory where they fit.

Which images are train, validation and test:

* What the source calls `train`, `validation` and `test` is used as such.
* A source with `validation` but no `test` (Imagenette, ImageNet): its validation split is the test split, as is
  usual there, and a validation split is cut from train, so that nothing is ever chosen on the test images.
* What is missing then is cut from train, in each class by the SHA-1 of the examples' names: the first 20 % become
  test if there is none, the first 10 % of the others validation (rounded up, but one image stays in train). The cut
  depends on the names only: not on seeds, order or machine.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import listing
from thumbnet_tf.data.store import FileStore, MemoryStore, StreamStore, check_images, of_turned

_log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
CUT_RULE = "sha1 of name, a class at a time: 1/5 test, then 1/10 validation"
BAD_NAMED = 5  # bad images that an error names; the others are counted


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Some labelled images. An example's id is its index here.

    Attributes:
        name: `train`, `validation` or `test`.
        labels: int64 (n,).
        names: of the examples: paths relative to the folder, or TFDS ids.
        bad: name and reason of each image left out because it can't be decoded.
        digest: hexadecimal; another one if the bytes of an image are others.
        store: where the images are.
        checksums: uint64 (n,), equal for images of the same bytes; empty where they aren't known.
    """

    name: str
    labels: np.ndarray
    names: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]
    digest: str
    store: MemoryStore | FileStore | StreamStore
    checksums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.uint64))

    @property
    def num_examples(self) -> int:
        """Number of examples, bad ones not counted."""
        return len(self.names)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """What `load` returns.

    Attributes:
        name: the option `dataset`.
        class_names: one for each label.
        splits: those that were asked for.
        fingerprint: hexadecimal; another one if the source's examples (names, labels, sizes), its classes or the rule
            for cutting splits are others. It covers the whole source, whichever splits were asked for.
        cut: the splits that were cut from train by the rule in this module's docstring.
    """

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    fingerprint: str
    cut: tuple[str, ...] = ()

    def facts(self) -> dict:
        """Returns what identifies the data of a run, as JSON values; by split where it depends on those loaded."""
        streamed = {name: not split.store.random_access for name, split in self.splits.items() if name == "train"}
        return {
            "dataset": self.name,
            "fingerprint": self.fingerprint,
            "classes": list(self.class_names),
            "examples": {name: split.num_examples for name, split in self.splits.items()},
            "bad_images": {name: [list(item) for item in split.bad] for name, split in self.splits.items()},
            "contents": {name: split.digest for name, split in self.splits.items()},
            "streamed": streamed,  # a stream is shuffled in another order
        }


def check_class_names(names: Sequence[str]) -> None:
    """Sees to it that exports can hold the names of classes: as text, one a line.

    Raises:
        UserError: when they can't.
    """
    for name in names:
        if name.splitlines() not in ([name], []) or name != name.encode(errors="ignore").decode():
            raise UserError(
                "the name of a class must be one line of UTF-8 text; rename its folder, and train in a new --run_dir. "
                f"Received: {name!a}"
            )


def load(cfg: Config, splits: Sequence[str] = SPLITS) -> Dataset:
    """Lists a dataset, cuts missing splits, and decodes every image once to check it.

    Args:
        cfg: `dataset`, `data_dir`, `on_bad_image` and `memory_limit_gb` are used.
        splits: which of train, validation and test to load.

    Returns:
        The dataset. Images of all splits together stay in memory up to `memory_limit_gb`; splits beyond are read
        again each epoch: image files one by one, TFDS records as a stream.

    Raises:
        UserError: when there is no such dataset, it can't be used, or an image can't be decoded and
            `on_bad_image` is `error`.
    """
    if cfg.dataset == "folder:":  # as of a variable that isn't set; a Path of it would be the working directory
        raise UserError("--dataset=folder:PATH takes a path; write folder:. for the folder you are in. Received: none")
    if cfg.dataset.startswith("folder:"):
        found = listing.list_folder(Path(cfg.dataset.removeprefix("folder:")).expanduser())
    else:
        found = listing.list_tfds(cfg.dataset, cfg.data_dir)
    check_class_names(found.class_names)
    source_of = {"train": "train"}
    if "test" in found.splits:
        source_of |= {name: name for name in ("validation", "test") if name in found.splits}
    elif "validation" in found.splits:
        source_of["test"] = "validation"
        _log.info("there is no test split: the validation split is used as such, and another one is cut from train")

    raws: dict[str, listing.RawSplit] = {}
    parts: dict[str, np.ndarray] = {}
    budget, loaded = cfg.memory_limit_gb * 2**30, {}
    for name in [name for name in SPLITS if name in splits]:
        source = source_of.get(name, "train")
        if source not in raws:
            raws[source] = found.splits[source]()
        raw = raws[source]
        if source == "train" and not parts:
            parts = cut(raw.names, raw.labels, "test" not in source_of, "validation" not in source_of)
        positions = parts[name] if source == "train" else np.arange(len(raw.names))
        loaded[name] = _load_split(name, raw, positions, budget)
        budget -= getattr(loaded[name].store, "num_bytes", 0)
    _judge_bad(list(loaded.values()), cfg.on_bad_image)
    if "train" in loaded:
        counts = np.bincount(loaded["train"].labels, minlength=len(found.class_names))
        if cfg.dataset.startswith("folder:") and not counts.all():
            name = found.class_names[int(np.argmin(counts))]
            raise UserError(f"each class needs a readable training image; add some. Received: none in {name}")
    _warn_of_copies(loaded)
    identity = json.dumps([CUT_RULE, found.class_names, found.identity])
    fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return Dataset(cfg.dataset, found.class_names, loaded, fingerprint, tuple(sorted({*parts} - {"train"})))


def moved(cfg: Config, data_dir: str) -> Config:
    """Returns a run's configuration with its data where they lie now.

    Args:
        cfg: what the run was trained with.
        data_dir: the folder of images, or where TFDS keeps the set; empty for where training found them.
    """
    if data_dir and cfg.dataset.startswith("folder:"):
        return dataclasses.replace(cfg, dataset=f"folder:{data_dir}")
    return dataclasses.replace(cfg, data_dir=data_dir or cfg.data_dir)


def prepare(cfg: Config) -> None:
    """Makes a TFDS dataset where that is still to be done, without reading it; a folder needs nothing.

    Args:
        cfg: `dataset` and `data_dir` are used.

    Raises:
        UserError: as `load`.
    """
    if not cfg.dataset.startswith("folder:"):
        listing.list_tfds(cfg.dataset, cfg.data_dir)


def cut(names: Sequence[str], labels: np.ndarray, cut_test: bool, cut_validation: bool) -> dict[str, np.ndarray]:
    """Cuts splits from train by the rule in this module's docstring.

    Args:
        names: n unique names.
        labels: int64 (n,).
        cut_test: whether to cut a test split.
        cut_validation: whether to cut a validation split.

    Returns:
        Rising positions, int64, of `train` and each split cut.
    """
    parts: dict[str, list[int]] = {"train": []}
    parts |= {name: [] for name, wanted in (("validation", cut_validation), ("test", cut_test)) if wanted}
    digest = [hashlib.sha1(os.fsencode(name), usedforsecurity=False).digest() for name in names]
    for label in np.unique(labels):
        rest = sorted(np.flatnonzero(labels == label).tolist(), key=lambda i: digest[i])
        for name, divisor in (("test", 5), ("validation", 10)):
            if name in parts:
                count = min(-(-len(rest) // divisor), len(rest) - 1)
                parts[name] += rest[:count]
                rest = rest[count:]
        parts["train"] += rest
    return {name: np.array(sorted(positions), np.int64) for name, positions in parts.items()}


def _load_split(name: str, raw: listing.RawSplit, positions: np.ndarray, budget: float) -> Split:
    bad, turned, checksums, store = check_images(
        raw.items(positions), raw.fetch, len(positions), f"checking {name} images", budget
    )
    good = np.array([i for i in range(len(positions)) if i not in bad], np.int64)
    kept = positions[good]
    if not len(kept) and not bad:
        raise UserError(f"the {name} split needs images; add some. Received: none")
    place = f"{store.num_bytes / 2**20:.1f} MiB in memory" if store else "decoded anew each epoch (--memory_limit_gb)"
    _log.info("%s: %d images, %s", name, len(kept), place)
    if turned:
        _log.info("%s: %s", name, of_turned(turned, len(kept)))
    return Split(
        name=name,
        labels=raw.labels[kept],
        names=tuple(raw.names[i] for i in kept),
        bad=tuple((raw.names[positions[i]], reason) for i, reason in bad.items()),
        digest=hashlib.sha256(checksums.astype("<u4").tobytes()).hexdigest()[:16],  # of the CRC-32s
        store=store or raw.store(kept),
        checksums=checksums[good],
    )


def _warn_of_copies(splits: dict[str, Split]) -> None:
    """Warns when an image to validate or test on is, byte for byte, one to train on."""
    for name, split in splits.items():
        if name == "train" or "train" not in splits:
            continue
        copies = np.flatnonzero(np.isin(split.checksums, splits["train"].checksums))
        if len(copies):
            some = ", ".join(split.names[i] for i in copies[:3])
            _log.warning(
                "%s: %d of %d images are copies of training images, so accuracies on it flatter; remove them, such as "
                "%s",
                *(name, len(copies), split.num_examples, some),
            )


def _judge_bad(splits: list[Split], on_bad_image: str) -> None:
    bad = [f"{name} ({reason})" for split in splits for name, reason in split.bad]
    if not bad:
        return
    some = "; ".join(bad[:BAD_NAMED]) + (f"; and {len(bad) - BAD_NAMED} more" if len(bad) > BAD_NAMED else "")
    if on_bad_image == "error":
        raise UserError(
            f"{len(bad)} images can't be decoded; mend or remove them, or set --on_bad_image=skip. Received: {some}"
        )
    _log.info("%d images left out that can't be decoded:", len(bad))
    for text in bad:
        _log.info("  %s", text)
    for split in splits:
        if not split.num_examples:
            raise UserError(f"the {split.name} split needs readable images; mend them. Received: {some}")
