"""Measures the split deployment: what a device that runs E sends to a server that runs S, in bytes and accuracy.

  python -m thumbnet_tf.wire --run_dir=runs/quickstart
  python -m thumbnet_tf.wire --run_dir=runs/quickstart --method=bicubic --split=validation --uplink_mbps=2

Every image of the split is reduced to its thumbnail, encoded, decoded as the server decodes it, and classified by S.
Beside them stands what is sent without E, the full image as JPEG of quality 85: `original_jpeg` is the photograph at
its own size, `full_jpeg` the evaluation crop of image_size, the strictest rival. E + S classify it. Top-1 and agreement
are compared with E + S without any file in between.

Thumbnails are JPEG files as `jpeg.py` writes them, full images the same with colours at half resolution, as cameras do.
TensorFlow reads WebP and can't write it: Pillow does. Times are of one call from Python. Transfer time is bytes over
--uplink_mbps: no latency, no protocol.
"""

import dataclasses
import io
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from thumbnet_tf import flags, jpeg, preprocess
from thumbnet_tf.config import Config, check_options, option
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.downscaler import ToThumbnail
from thumbnet_tf.evaluate import SPLITS, load_parts
from thumbnet_tf.predict import choose_method
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir

COLUMNS = (
    "method",
    "split",
    "encoding",
    "quality",
    "examples",
    "bytes_mean",
    "bytes_p95",
    "ratio_to_full_jpeg",
    "ratio_to_original_jpeg",
    "top1",
    "top1_lost_points",
    "agreement",
    "encode_ms",
    "decode_ms",
)
FULL_QUALITY = 85


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "run directory made by thumbnet_tf.train")
    method: str = option("", "finished method that makes thumbnails; default thumbnet, or a finished run's last")
    split: str = option("test", "images to measure on", choices=SPLITS)
    uplink_mbps: float = option(10.0, "speed of the device's uplink, Mbit/s", minimum=0.001)
    data_dir: str = option("", "where the data lie now, a folder of images or of TFDS; default as in training")

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A way to send an image.

    Attributes:
        name: as in the table.
        quality: 1 to 100; None for a lossless one.
        encode: maps uint8 (H, W, 3) to the bytes of a file.
    """

    name: str
    quality: int | None
    encode: Callable[[np.ndarray], bytes]


def _jpeg(name: str, quality: int, half_colour: bool = False) -> Encoding:
    return Encoding(name, quality, lambda image: jpeg.encode(image, quality, half_colour=half_colour).numpy())


def _webp(image: np.ndarray, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "WEBP", method=6, **options)
    return content.getvalue()


THUMBNAIL_ENCODINGS = (
    Encoding("png", None, lambda image: tf.io.encode_png(image, compression=9).numpy()),
    Encoding("webp_lossless", None, lambda image: _webp(image, lossless=True, quality=100)),
    Encoding("webp", 85, lambda image: _webp(image, quality=85)),
    _jpeg("jpeg", 95),
    _jpeg("jpeg", 85),
    _jpeg("jpeg", 70),
)
FULL = _jpeg("full_jpeg", FULL_QUALITY, half_colour=True)
ORIGINAL = _jpeg("original_jpeg", FULL_QUALITY, half_colour=True)

_decode = tf.function(preprocess.decode_image, input_signature=[tf.TensorSpec((), tf.string)])


class _Tally:
    """What was measured of one encoding so far."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.bytes: list[int] = []
        self.encode_seconds: list[float] = []
        self.decode_seconds: list[float] = []
        self.predicted: list[int] = []

    def round_trip(self, image: np.ndarray) -> np.ndarray:
        """Returns an image, uint8 (H, W, 3), as it comes out of its file."""
        start = time.perf_counter()
        data = self.encoding.encode(image)
        encoded = time.perf_counter()
        decoded = _decode(data).numpy()
        self.encode_seconds.append(encoded - start)
        self.decode_seconds.append(time.perf_counter() - encoded)
        self.bytes.append(len(data))
        return decoded


def measure(run: RunDir, split: sources.Split, method: str) -> list[dict]:
    """Sends every image of a split once by every encoding.

    Args:
        run: the run directory.
        split: a split of its data.
        method: a finished method that makes thumbnails.

    Returns:
        A row an encoding, by `COLUMNS`; the last two are the full images.
    """
    cfg = run.config()
    downscale, classify = _networks(*load_parts(run, method), cfg)
    tallies = [_Tally(encoding) for encoding in THUMBNAIL_ENCODINGS]
    full, original = _Tally(FULL), _Tally(ORIGINAL)
    photographs = iter(_photographs(split))
    lossless: list[int] = []
    with track(None, split.num_examples, f"sending {split.name} by {method}") as bar:
        for batch in pipeline.eval_batches(split, cfg):
            count = int(tf.reduce_sum(batch["mask"]))  # padding stands at the end
            images = batch["image"].numpy()
            seen = downscale(images)
            lossless += classify(seen).tolist()[:count]
            thumbnails = np.rint(seen).astype(np.uint8)
            for tally in tallies:
                decoded = _each(tally.round_trip, thumbnails, count)
                tally.predicted += classify(decoded).tolist()[:count]
            decoded = _each(full.round_trip, images, count)
            full.predicted += classify(downscale(decoded)).tolist()[:count]
            crops = _each(
                lambda _: preprocess.eval_crop(
                    original.round_trip(next(photographs).numpy()), cfg.image_size, cfg.crop_fraction
                ).numpy(),
                images,
                count,
            )
            original.predicted += classify(downscale(crops)).tolist()[:count]
            bar.update(count)
    return [
        _row(tally, method, split, np.array(lossless), np.mean(full.bytes), np.mean(original.bytes))
        for tally in (*tallies, full, original)
    ]


def _each(change: Callable[[np.ndarray], np.ndarray], images: np.ndarray, count: int) -> np.ndarray:
    """Returns a batch with its first `count` images changed and the padding behind them as it is."""
    return np.stack([change(image) if row < count else image for row, image in enumerate(images)])


def _networks(small: keras.Model, network: keras.Model, cfg: Config) -> tuple[Callable, Callable]:
    """Returns what maps images (B, S, S, 3) to thumbnails float32, and thumbnails (B, s, s, 3) to classes (B,)."""
    to_thumbnail = ToThumbnail(cfg.thumbnail_bits)  # restores the levels that a run of fewer than 8 bits has

    @tf.function(autograph=False)
    def downscale(images: tf.Tensor) -> tf.Tensor:
        return small(tf.cast(images, tf.float32), training=False)

    @tf.function(autograph=False)
    def classify(thumbnails: tf.Tensor) -> tf.Tensor:
        logits = network(to_thumbnail(tf.cast(thumbnails, tf.float32)), training=False)["logits"]
        return tf.argmax(logits, axis=-1)

    return lambda images: downscale(images).numpy(), lambda thumbnails: classify(thumbnails).numpy()


def _photographs(split: sources.Split) -> tf.data.Dataset:
    """Returns the images of a split at their own size, in order."""
    if split.store.random_access:
        return tf.data.Dataset.range(split.num_examples).map(split.store.get)
    return split.store.encoded().map(lambda _, data: preprocess.decode_image(data))


def _row(
    tally: _Tally, method: str, split: sources.Split, lossless: np.ndarray, full_bytes: float, original_bytes: float
) -> dict:
    predicted, labels, mean = np.array(tally.predicted), np.asarray(split.labels), np.mean(tally.bytes)
    if not len(predicted) == len(lossless) == len(tally.bytes) == split.num_examples:
        raise RuntimeError(f"{method}: {len(tally.bytes)} of {split.num_examples} {split.name} images were sent")
    top1 = np.mean(predicted == labels)
    return {
        "method": method,
        "split": split.name,
        "encoding": tally.encoding.name,
        "quality": tally.encoding.quality or "",
        "examples": split.num_examples,
        "bytes_mean": f"{mean:.1f}",
        "bytes_p95": f"{np.percentile(tally.bytes, 95):.1f}",
        "ratio_to_full_jpeg": f"{full_bytes / mean:.3f}",
        "ratio_to_original_jpeg": f"{original_bytes / mean:.3f}",
        "top1": f"{top1:.6f}",
        "top1_lost_points": f"{100 * (np.mean(lossless == labels) - top1):.4f}",
        "agreement": f"{np.mean(predicted == lossless):.6f}",
        "encode_ms": f"{1e3 * np.median(tally.encode_seconds):.3f}",
        "decode_ms": f"{1e3 * np.median(tally.decode_seconds):.3f}",
    }


def table(rows: list[dict], uplink_mbps: float) -> str:
    """Returns rows of `measure` as a text table, with the time a transfer takes."""
    titles = ("bytes", "p95", "x full", "x original", "top-1", "lost", "agrees", "encode ms", "decode ms", "send ms")
    lines = [f"{'encoding':<20}" + "".join(f"{title:>{max(len(title) + 2, 9)}}" for title in titles)]
    for row in rows:
        values = (
            f"{float(row['bytes_mean']):.0f}",
            f"{float(row['bytes_p95']):.0f}",
            f"{float(row['ratio_to_full_jpeg']):.2f}",
            f"{float(row['ratio_to_original_jpeg']):.2f}",
            f"{100 * float(row['top1']):.2f}%",
            f"{float(row['top1_lost_points']):.2f}",
            f"{100 * float(row['agreement']):.1f}%",
            row["encode_ms"],
            row["decode_ms"],
            f"{float(row['bytes_mean']) * 8 / (uplink_mbps * 1e3):.3f}",
        )
        cells = (f"{value:>{max(len(title) + 2, 9)}}" for title, value in zip(titles, values, strict=True))
        lines.append(f"{row['encoding'] + ' ' + str(row['quality']):<20}" + "".join(cells))
    first = rows[0]
    return "\n".join(
        [*lines, f"{first['method']}, {first['split']} split, {first['examples']} images, {uplink_mbps:g} Mbit/s"]
    )


def main(options: Options) -> None:
    """Measures one method on one split, notes it in the method's `wire.csv` and prints it."""
    run = RunDir.existing(options.run_dir)
    with run.lock():
        method = choose_method(run, options.method, of_thumbnails=True)
        dataset = sources.load(sources.moved(run.config(), options.data_dir), (options.split,))
        run.check_data(dataset.facts())
        rows = measure(run, dataset.splits[options.split], method)
        path = run.method(method) / "wire.csv"
        others = [row for row in read_rows(path, ("split",), words=("split",)) if row["split"] != options.split]
        write_rows(path, COLUMNS, [*others, *rows])
    print(table(rows, options.uplink_mbps))


if __name__ == "__main__":
    flags.run(main, Options)
