"""Saves the thumbnails of a run's images as PNG files, a data set for any other classifier.

  python -m experiments.thumbnails --run_dir=runs/flowers_32_thumbnet_seed0 --kind=thumbnet --out=runs/thumbs/thumbnet
  python -m experiments.thumbnails --run_dir=runs/flowers_32_thumbnet_seed0 --kind=area --out=runs/thumbs/area
  python -m experiments.thumbnails --run_dir=runs/flowers_32_thumbnet_seed0 --kind=thumbnet --dataset=folder:other ...

Writes `<out>/<split>/<class>/<number>.png` for train, validation and test, from the evaluation crops, so that all kinds
of thumbnails show the same pixels. With `--dataset` E is used on data that it has never seen.
"""

import dataclasses
import pathlib
import shutil

import keras
import tensorflow as tf

from thumbnet_tf import downscaler, flags
from thumbnet_tf.config import Config, UserError, check_options, option
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.files import saving, write_atomically
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS

FIXED = ("bicubic", "area")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "finished run directory; gives data, sizes and E")
    kind: str = option("thumbnet", f"a finished method whose E is used, or {' or '.join(FIXED)}")
    dataset: str = option("", "another data set than the run's, as in thumbnet_tf.train")
    out: str = option("", "folder to write; must be new or empty")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.out:
            raise UserError("--out must name the folder to write. Received: nothing")


def save_thumbnails(small: keras.Model, dataset: sources.Dataset, cfg: Config, out: pathlib.Path) -> int:
    """Writes the thumbnails of all splits and returns their number.

    Args:
        small: a downscaler from images `(B, size, size, 3)` to thumbnails `(B, s, s, 3)`, both in [0, 255].
        dataset: whose splits are gone through.
        cfg: gives size, crop and batch.
        out: the folder.

    Raises:
        UserError: when a file can't be written.
    """
    function = tf.function(lambda images: tf.cast(tf.round(small(tf.cast(images, tf.float32))), tf.uint8))
    count = 0
    for name in sources.SPLITS:
        split = dataset.splits[name]
        for class_name in dataset.class_names:
            with saving(out):
                (out / name / class_name).mkdir(parents=True, exist_ok=True)
        batches = pipeline.eval_batches(split, cfg)
        for batch in track(batches, int(batches.cardinality()), f"thumbnails of {name}"):
            for thumbnail, label, index in zip(function(batch["image"]), batch["label"], batch["id"], strict=True):
                if index >= 0:  # else it is padding
                    path = out / name / dataset.class_names[int(label)] / f"{int(index):06d}.png"
                    write_atomically(path, tf.io.encode_png(thumbnail).numpy())
                    count += 1
    return count


def main(options: Options) -> None:
    """Writes the thumbnails and says how many."""
    run = RunDir.existing(options.run_dir)
    cfg = run.config()
    if options.dataset:
        cfg = dataclasses.replace(cfg, dataset=options.dataset)
    cfg = cfg.resolved()
    out = pathlib.Path(options.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(
            f"--out must be new or empty; thumbnails that it holds already needn't be made again. Received: {out}"
        )
    if options.kind in FIXED:
        small = downscaler.build(options.kind, cfg.image_size, cfg.ratio)
    else:
        learned = [name for name in run.finished_methods() if METHODS[name].downscaler == "learned"]
        if options.kind not in learned:
            raise UserError(f"--kind must be one of {', '.join([*FIXED, *learned])}. Received: {options.kind!r}")
        small = run.load_model(options.kind, "downscaler")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    count = save_thumbnails(small, sources.load(cfg), cfg, partial)
    with saving(out):
        partial.replace(out)
    print(count, "thumbnails in", out)


if __name__ == "__main__":
    flags.run(main, Options)
