"""T's outputs, computed once for some views of each image and read back from disk while training.

<cache_dir>/<split>-<key>/       one folder for a teacher, a split and its preprocessing, whatever runs use it
    manifest.json                size and SHA-256 of every finished file
    logits/000-00000             the first examples in view 0: an ArrayRecord file with one record an example
    stage2/...

A view is a function of example and view number (`data/pipeline.py`), so it is made anew where it is needed and only T's
answer to it is stored. Methods and seeds that have T, the data and the views in common share a cache: what they need is
added, file by file, each written beside its place and renamed. A file that isn't as the manifest says is made anew.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline
from thumbnet_tf.data.sources import Split
from thumbnet_tf.folding import fold
from thumbnet_tf.progress import track
from thumbnet_tf.runs import saving, write_atomically

BLOCK = 4096  # examples in a file
UNREADABLE = "T's cache can't be read any more"  # what a reader's error begins with
_FORMAT = 1  # part of the key: raise it when views or records change their meaning
_OPTIONS = "group_size:1,uncompressed"  # every record can be read alone; T's maps hardly compress
_TRAIN = "train"
_LARGEST_HALF = 65504.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherCache:
    """What of T is stored for one split.

    Attributes:
        folder: where it lies.
        split: the examples.
        views: view numbers; None stands for what evaluation shows.
        outputs: shape of one example's record by output of T: `logits` (float32) and maps (float16).
    """

    folder: pathlib.Path
    split: Split
    views: tuple[int | None, ...]
    outputs: Mapping[str, tuple[int, ...]]

    def files(self) -> list[tuple[str, int, int]]:
        """Returns (output, position in `views`, block) of every file there must be."""
        blocks = range(-(-self.split.num_examples // BLOCK))
        return [(name, view, block) for view in range(len(self.views)) for block in blocks for name in self.outputs]

    def path(self, output: str, view: int, block: int) -> pathlib.Path:
        """Returns where a file lies."""
        return self.folder / output / f"{view:03d}-{block:05d}"

    def num_bytes(self, files: Sequence[tuple[str, int, int]]) -> int:
        """Returns the size of the records of some files."""
        sizes = {name: _dtype(name).itemsize * int(np.prod(shape)) for name, shape in self.outputs.items()}
        return sum(sizes[name] * len(self._examples(block)) for name, _, block in files)

    def missing(self) -> list[tuple[str, int, int]]:
        """Returns the files that aren't there as the manifest says; reads all that are."""
        known = self._manifest()
        files = [file for file in self.files() if self.path(*file).is_file()]
        good = {file for file in track(files, len(files), "checking T's cache") if self._is_good(file, known)}
        for file in files:
            if file not in good:
                _log.warning("%s is damaged or unfinished and is made anew", self.path(*file))
                self.path(*file).unlink(missing_ok=True)  # so that it doesn't count towards the limit
        return [file for file in self.files() if file not in good]

    def fill(self, teacher: keras.Model, cfg: Config, missing: Sequence[tuple[str, int, int]]) -> None:
        """Runs T and writes the files that are missing.

        Args:
            teacher: T.
            cfg: the run's resolved configuration.
            missing: some of `files()`.

        Raises:
            UserError: when a file can't be written.
        """
        lean = fold(teacher)

        @tf.function(reduce_retracing=True)
        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            found = lean(tf.cast(images, tf.float32), training=False)
            half = {name: tf.clip_by_value(found[name], -_LARGEST_HALF, _LARGEST_HALF) for name in self.outputs}
            return {name: tf.cast(value, _dtype(name)) for name, value in half.items()} | {"logits": found["logits"]}

        known = self._manifest()
        parts = sorted({(view, block) for _, view, block in missing})
        total = sum(len(self._examples(block)) for _, block in parts)
        with track(None, total, f"T's outputs for {self.split.name}") as bar:
            for view, block in parts:
                wanted = [name for name in self.outputs if (name, view, block) in missing]
                examples = self._examples(block)
                batches = pipeline.view_batches(
                    self.split, cfg, self.views[view], examples.start, examples.stop, cfg.batch_size
                )
                with contextlib.ExitStack() as stack:
                    writers = {name: stack.enter_context(_writing(self.path(name, view, block))) for name in wanted}
                    for images in batches:
                        found = run(images)
                        for name, writer in writers.items():
                            for record in found[name].numpy():
                                writer.write(record.tobytes())
                        bar.update(len(images))
                for name in wanted:
                    path = self.path(name, view, block)
                    known[f"{name}/{path.name}"] = _identity(path)
                write_atomically(self.folder / "manifest.json", json.dumps(known, indent=1) + "\n")

    def attach(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Adds T's outputs, by their names, to batches of `data/pipeline.py` whose `view` is a position in `views`.

        Raises:
            UserError: when a file has become unreadable since the cache was prepared.
        """
        names = list(self.outputs)
        blocks = range(-(-self.split.num_examples // BLOCK))
        paths = {
            name: [str(self.path(name, view, block)) for view in range(len(self.views)) for block in blocks]
            for name in names
        }
        try:
            sources = [ArrayRecordDataSource(paths[name]) for name in names]  # reads the end of each file
        except Exception as error:  # the library raises RuntimeError, IndexError and others
            raise UserError(f"{UNREADABLE}; give the same command again. Received: {self.folder} ({error})") from None

        def read(index: np.ndarray, view: np.ndarray) -> list[np.ndarray]:
            places = (view * self.split.num_examples + np.maximum(index, 0)).tolist()  # padding has the index -1
            try:
                found = [b"".join(source.__getitems__(places)) for source in sources]
            except Exception as error:
                raise OSError(f"{UNREADABLE}: {self.folder} ({error})") from None
            return [np.frombuffer(data, _dtype(name)) for name, data in zip(names, found, strict=True)]

        def add(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            found = tf.numpy_function(read, [batch["id"], batch["view"]], [_dtype(name) for name in names])
            count = batch["id"].shape[0]
            shaped = {n: tf.reshape(v, (count, *self.outputs[n])) for n, v in zip(names, found, strict=True)}
            return {**batch, **shaped}

        return batches.map(add, num_parallel_calls=1, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def _examples(self, block: int) -> range:
        return range(block * BLOCK, min((block + 1) * BLOCK, self.split.num_examples))

    def _manifest(self) -> dict[str, list]:
        try:
            found = json.loads((self.folder / "manifest.json").read_text())
        except (OSError, ValueError):
            return {}  # nothing is finished
        return found if isinstance(found, dict) else {}

    def _is_good(self, file: tuple[str, int, int], known: Mapping[str, list]) -> bool:
        path = self.path(*file)
        noted = known.get(f"{file[0]}/{path.name}")
        with contextlib.suppress(OSError):
            return noted is not None and noted[0] == path.stat().st_size and noted == _identity(path)
        return False


def prepare(
    cfg: Config, teacher: keras.Model, splits: Mapping[str, Split], fingerprint: str, outputs: Sequence[str]
) -> dict[str, TeacherCache]:
    """Opens the caches of a run's training and validation split, checks them and makes what is missing.

    Args:
        cfg: the run's resolved configuration.
        teacher: T.
        splits: `train` and `validation`.
        fingerprint: of the dataset.
        outputs: the outputs of T to store.

    Returns:
        The caches by split.

    Raises:
        UserError: when they would be larger than allowed or than the disk, or can't be written.
    """
    root = folder_of(cfg)
    with saving(root):
        root.mkdir(parents=True, exist_ok=True)
    shapes = {name: tuple(teacher.output[name].shape[1:]) for name in outputs}
    weights = _digest_of(teacher)
    caches = {}
    for name, split in splits.items():
        views = tuple(range(number_of_views(cfg))) if name == _TRAIN else (None,)
        key = _key(cfg, weights, split, fingerprint)
        caches[name] = TeacherCache(root / f"{name}-{key}", split, views, shapes)
    with contextlib.ExitStack() as stack:
        for cache in caches.values():
            stack.enter_context(_lock(cache.folder))
        missing = {name: cache.missing() for name, cache in caches.items()}
        needed = sum(cache.num_bytes(missing[name]) for name, cache in caches.items())
        _log.info(
            "T's cache: %s of %s in %s are missing",
            _size(needed),
            _size(sum(cache.num_bytes(cache.files()) for cache in caches.values())),
            ", ".join(str(cache.folder) for cache in caches.values()),
        )
        _check_room(cfg, root, needed)
        for name, cache in caches.items():
            if missing[name]:
                cache.fill(teacher, cfg, missing[name])
    return caches


def folder_of(cfg: Config) -> pathlib.Path:
    """Returns the folder that holds the caches."""
    return pathlib.Path(cfg.cache_dir) if cfg.cache_dir else pathlib.Path(cfg.run_dir).parent / "teacher_cache"


def number_of_views(cfg: Config) -> int:
    """Returns how many views of an image there are: 0 (a new one each epoch) where T isn't cached.

    Args:
        cfg: a resolved configuration.
    """
    if cfg.teacher_cache == "off":
        return 0
    return 1 if cfg.augment == "none" else min(cfg.cached_views, cfg.epochs)


def _check_room(cfg: Config, root: pathlib.Path, needed: int) -> None:
    if not needed:
        return
    held = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    limit, free = cfg.cache_limit_gb * 2**30, shutil.disk_usage(root).free
    if held + needed > limit:
        raise UserError(
            f"T's cache needs {_size(needed)} more and {root} already holds {_size(held)}; raise --cache_limit_gb, "
            "lower --cached_views, use --teacher_cache=logits, or delete caches there that no run needs. "
            f"Received: --cache_limit_gb={cfg.cache_limit_gb:g}"
        )
    if needed > free:
        raise UserError(
            f"T's cache needs {_size(needed)} and the disk has {_size(free)} left; make room, or give another "
            f"--cache_dir. Received: {root}"
        )


def _key(cfg: Config, weights: str, split: Split, fingerprint: str) -> str:
    """Returns what tells caches apart whose records may differ."""
    seen = [cfg.image_size, cfg.crop_fraction]
    if split.name == _TRAIN:
        seen += [cfg.augment, *(() if cfg.augment == "none" else (cfg.random_crop_min_area, cfg.view_seed))]
    parts = [_FORMAT, weights, fingerprint, split.name, split.num_examples, split.digest, len(split.bad), seen]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest_of(model: keras.Model) -> str:
    """Returns a digest of a model's architecture and weights."""
    digest = hashlib.sha256(model.to_json().encode())
    for variable in model.variables:
        digest.update(np.ascontiguousarray(variable.numpy()))
    return digest.hexdigest()


def _dtype(output: str) -> np.dtype:
    return np.dtype(np.float32 if output == "logits" else np.float16)


def _identity(path: pathlib.Path) -> list:
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    """Gives a writer of a file that appears in its place when all is written."""
    partial = path.with_name(f"{path.name}.partial")
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = ArrayRecordWriter(str(partial), _OPTIONS)
            yield writer
            writer.close()
            os.replace(partial, path)
        except RuntimeError as error:  # what the library raises for a full disk and the like
            raise OSError(str(error).partition(";")[0]) from error
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    """Holds a cache for one process; others wait."""
    with saving(folder):
        folder.mkdir(exist_ok=True)
        file = open(folder / "lock", "w")  # noqa: SIM115 - held open as long as the lock
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is at work on %s; waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
