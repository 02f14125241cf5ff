"""T's outputs, computed once for some views of each image and read back from disk while training.

<cache_dir>/<split>-<key>/       one folder for a teacher, a split and its preprocessing, whatever runs use it
    manifest.json                size and SHA-256 of every finished file
    logits/000-00000             the first examples in view 0: an ArrayRecord file with one record an example
    stage2/...
    lock, room.partial           held by the process that fills it, and how large it will be then

A view is a function of example and view number (`data/pipeline.py`), so it is made anew where it is needed and only T's
answer to it is stored. Methods and seeds that have T, the data and the views in common share a cache: what they need is
added, file by file, each written beside its place and renamed. A file that isn't as the manifest says is made anew.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from array_record.python.array_record_data_source import ArrayRecordDataSource

from thumbnet_tf.cache_files import allow_open_files, file_size, growing, held, identity, lock, size_text, writing
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline
from thumbnet_tf.data.sources import Split
from thumbnet_tf.files import saving, write_atomically
from thumbnet_tf.folding import fold
from thumbnet_tf.progress import track

BLOCK = 4096  # examples in a file; more in a large split, which has _FILES of them for each view and output
UNREADABLE = "T's cache can't be read any more"  # what a reader's error begins with
_FILES = 16  # all are held open while training
_FORMAT = 3  # part of the key: raise it when pixels, views or records change their meaning
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
        return [
            (name, view, block)
            for view in range(len(self.views))
            for block in range(self._num_blocks)
            for name in self.outputs
        ]

    def path(self, output: str, view: int, block: int) -> pathlib.Path:
        """Returns where a file lies."""
        return self.folder / output / f"{view:03d}-{block:05d}"

    def num_bytes(self, files: Sequence[tuple[str, int, int]]) -> int:
        """Returns how large some files are at most."""
        sizes = {name: _dtype(name).itemsize * int(np.prod(shape)) for name, shape in self.outputs.items()}
        return sum(file_size(len(self._examples(block)), sizes[name]) for name, _, block in files)

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

        @tf.function(reduce_retracing=True, autograph=False)
        def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
            found = lean(tf.cast(images, tf.float32), training=False)
            half = {name: tf.clip_by_value(found[name], -_LARGEST_HALF, _LARGEST_HALF) for name in self.outputs}
            return {name: tf.cast(value, _dtype(name)) for name, value in half.items()} | {"logits": found["logits"]}

        blocks = {view: [block for _, other, block in missing if other == view] for _, view, _ in missing}
        spans = {view: range(min(found), max(found) + 1) for view, found in sorted(blocks.items())}
        total = sum(len(self._examples(block)) for span in spans.values() for block in span)
        with track(None, total, f"T's outputs for {self.split.name}") as bar:
            for view, span in spans.items():
                # one pass over a view's images: a stream can't start in its middle without reading what is before
                answers = self._answers(run, cfg, view, self._examples(span.start).start)
                for block in span:
                    names = [name for name in self.outputs if (name, view, block) in missing]
                    with contextlib.ExitStack() as stack:
                        writers = {name: stack.enter_context(writing(self.path(name, view, block))) for name in names}
                        for answer in itertools.islice(answers, len(self._examples(block))):
                            for name, writer in writers.items():
                                writer(answer[name].tobytes())
                            bar.update()
                    self._note(self.path(name, view, block) for name in names)

    def _answers(self, run: Callable, cfg: Config, view: int, start: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields T's outputs for each example from `start` on."""
        images = pipeline.view_batches(self.split, cfg, self.views[view], start, cfg.batch_size)
        for batch in images:
            found = {name: value.numpy() for name, value in run(batch).items()}
            for index in range(len(batch)):
                yield {name: value[index] for name, value in found.items()}

    def _note(self, paths: Iterable[pathlib.Path]) -> None:
        """Adds finished files to the manifest."""
        known = self._manifest() | {f"{path.parent.name}/{path.name}": identity(path) for path in paths}
        write_atomically(self.folder / "manifest.json", json.dumps(known, indent=1) + "\n")

    def attach(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Adds T's outputs, by their names, to batches of `data/pipeline.py` whose `view` is a position in `views`.

        Raises:
            UserError: when a file has become unreadable since the cache was prepared, or so many can't be open.
        """
        names = list(self.outputs)
        files = [(view, block) for view in range(len(self.views)) for block in range(self._num_blocks)]
        paths = {name: [str(self.path(name, *file)) for file in files] for name in names}
        allow_open_files(len(files) * len(names))
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

    @property
    def _block(self) -> int:
        return max(BLOCK, -(-self.split.num_examples // _FILES))

    @property
    def _num_blocks(self) -> int:
        return -(-self.split.num_examples // self._block)

    def _examples(self, block: int) -> range:
        return range(block * self._block, min((block + 1) * self._block, self.split.num_examples))

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
            return noted is not None and noted[0] == path.stat().st_size and noted == identity(path)
        return False


def open_caches(
    cfg: Config, teacher: keras.Model, splits: Mapping[str, Split], fingerprint: str, outputs: Sequence[str]
) -> dict[str, TeacherCache]:
    """Returns the caches of a run's training and validation split, whether they exist or not.

    Args:
        cfg: the run's resolved configuration.
        teacher: T.
        splits: the splits by name, of `train` and `validation`.
        fingerprint: of the dataset.
        outputs: the outputs of T to store.
    """
    shapes = {name: tuple(teacher.output[name].shape[1:]) for name in outputs}
    weights = _digest_of(teacher)
    caches = {}
    for name, split in splits.items():
        views = tuple(range(number_of_views(cfg))) if name == _TRAIN else (None,)
        key = _key(cfg, weights, split, fingerprint)
        caches[name] = TeacherCache(folder_of(cfg) / f"{name}-{key}", split, views, shapes)
    return caches


def prepare(cfg: Config, teacher: keras.Model, caches: Mapping[str, TeacherCache]) -> None:
    """Checks caches and makes what is missing.

    Args:
        cfg: the run's resolved configuration.
        teacher: T.
        caches: what `open_caches` returned.

    Raises:
        UserError: when they would be larger than allowed or than the disk, or can't be written.
    """
    with contextlib.ExitStack() as stack:
        ours = {cache: stack.enter_context(contextlib.ExitStack()) for cache in caches.values()}
        for cache, holds in ours.items():
            holds.enter_context(lock(cache.folder))
            for path in cache.folder.rglob("*.partial"):  # of a process that was killed
                path.unlink()
        missing = {cache: cache.missing() for cache in ours}
        if not any(missing.values()):
            return
        with lock(folder_of(cfg)):  # what two processes add might exceed the limit together
            check_room(cfg, missing)
            for cache, holds in ours.items():
                holds.enter_context(growing(cache.folder, cache.num_bytes(missing[cache])))
        for cache in sorted(ours, key=lambda each: len(missing[each])):  # a small one may be all that others wait for
            if missing[cache]:
                cache.fill(teacher, cfg, missing[cache])
            ours[cache].close()


def check_room(cfg: Config, files: Mapping[TeacherCache, Sequence[tuple[str, int, int]]]) -> None:
    """Tells how large files will be and checks that they may.

    Args:
        cfg: the run's resolved configuration.
        files: some of the files of each cache.

    Raises:
        UserError: when they would be larger than allowed or than the disk, or the folder can't be written.
    """
    root = folder_of(cfg)
    with saving(root):
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    needed, whole = (sum(c.num_bytes(f) for c, f in each) for each in (files.items(), [(c, c.files()) for c in files]))
    _log.info("T's cache in %s: %s of %s are to be made", root, size_text(needed), size_text(whole))
    (there, promised), free = held(root, [cache.folder for cache in files]), shutil.disk_usage(root).free
    others = f", where other runs are to write {size_text(promised)}" if promised else ""
    if there + promised + needed > cfg.cache_limit_gb * 2**30:
        raise UserError(
            f"T's cache needs {size_text(needed)} more and {root} already holds {size_text(there)}{others}; raise "
            "--cache_limit_gb, delete caches there that no run needs, or begin a new --run_dir with fewer "
            "--cached_views or --teacher_cache=logits (a T that is trained already can be given as --teacher). "
            f"Received: --cache_limit_gb={cfg.cache_limit_gb:g}"
        )
    if promised + needed > free:
        raise UserError(
            f"T's cache needs {size_text(needed)} and the disk has {size_text(free)} left{others}; make room, or give "
            f"another --cache_dir. Received: {root}"
        )


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
    return 1 if cfg.augment == "none" and not cfg.mixup_alpha else min(cfg.cached_views, cfg.epochs)


def _key(cfg: Config, weights: str, split: Split, fingerprint: str) -> str:
    """Returns what tells caches apart whose records may differ."""
    seen = [cfg.image_size, cfg.crop_fraction]
    if split.name == _TRAIN:
        seen += [cfg.augment, *(() if cfg.augment == "none" else (cfg.random_crop_min_area, cfg.view_seed))]
        seen += [cfg.mixup_alpha, cfg.view_seed] if cfg.mixup_alpha else []
    parts = [_FORMAT, weights, fingerprint, split.name, split.num_examples, split.digest, len(split.bad), seen]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _digest_of(model: keras.Model) -> str:
    """Returns a digest of a model's architecture and weights; the state of a Dropout's seed, which is new in each
    process, is none of them.
    """
    digest = hashlib.sha256(model.to_json().encode())
    for variable in model.weights:
        digest.update(np.ascontiguousarray(variable.numpy()))
    return digest.hexdigest()


def _dtype(output: str) -> np.dtype:
    return np.dtype(np.float32 if output == "logits" else np.float16)
