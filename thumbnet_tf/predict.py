"""Classifies image files by a finished method of a run, and saves the thumbnails that it saw.

  python -m thumbnet_tf.predict --run_dir=runs/quickstart cat.jpg photos/
  python -m thumbnet_tf.predict --run_dir=runs/quickstart --save_thumbnails=thumbs photos/
  python -m thumbnet_tf.predict --run_dir=runs/quickstart --from_thumbnails thumbs/

Standard output holds one line a file: its path and `label score` pairs, best first, separated by tabs.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import flags, preprocess
from thumbnet_tf.config import Config, UserError, check_options, option
from thumbnet_tf.data.listing import IMAGE_SUFFIXES, natural_key
from thumbnet_tf.data.store import is_turned, of_turned, try_decode
from thumbnet_tf.downscaler import ToThumbnail
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.files import saving, write_atomically
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS, students

DEFAULT_METHOD = "thumbnet"
BATCH_SIZE = 32

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "run directory made by thumbnet_tf.train")
    method: str = option("", f"finished method to classify by; default {DEFAULT_METHOD}, or a finished run's last")
    top: int = option(3, "labels shown for a file, best first; all of them if there are fewer", minimum=1)
    json: bool = option(False, "write one JSON object a line")
    save_thumbnails: str = option("", "folder to save the thumbnails in as PNG files; made if need be")
    from_thumbnails: bool = option(False, "the files are saved thumbnails, which the network reads as they are")
    on_bad_image: str = option("error", "what to do with an image that can't be decoded", choices=("error", "skip"))
    files: tuple[str, ...] = option((), "image files and folders of such")

    def __post_init__(self) -> None:
        check_options(self)
        if not self.files:
            raise UserError("give image files or folders behind the flags. Received: none")
        if self.save_thumbnails and self.from_thumbnails:
            raise UserError(
                f"--from_thumbnails makes no new ones; drop a flag. Received: --save_thumbnails={self.save_thumbnails}"
            )


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a method says about one image.

    Attributes:
        file: its path, as given or found.
        top: labels and their scores (softmax, in [0, 1]), best first.
        thumbnail: what the network saw, uint8 (s, s, 3) in [0, 255]; None where it saw the full image.
    """

    file: str
    top: tuple[tuple[str, float], ...]
    thumbnail: np.ndarray | None


def predict_files(
    run: RunDir,
    files: Sequence[str],
    *,
    method: str = "",
    top: int = 3,
    from_thumbnails: bool = False,
    on_bad_image: str = "error",
    batch_size: int = BATCH_SIZE,
) -> Iterator[Prediction]:
    """Classifies image files, prepared as evaluation prepares them.

    Args:
        run: the run directory.
        files: paths of image files, see `list_images`.
        method: a finished method; empty for the default one.
        top: how many labels to give.
        from_thumbnails: whether the files are thumbnails already.
        on_bad_image: `error`, or `skip` to log and leave out what can't be decoded.
        batch_size: images a step.

    Yields:
        One prediction a file, in order.

    Raises:
        UserError: when the method can't be used, an image can't be decoded, or is no thumbnail where it must be.
    """
    cfg, method = run.config(), choose_method(run, method)
    classes = run.data_facts()["classes"]
    if from_thumbnails and METHODS[method].downscaler == "none":
        raise UserError(f"--from_thumbnails needs a --method that reads thumbnails; choose another. Received: {method}")
    small, network = load_parts(run, method)
    classify = _classifier(ToThumbnail(cfg.thumbnail_bits) if from_thumbnails else small, network)
    size = cfg.thumbnail_size if from_thumbnails else cfg.image_size
    batch_size = min(batch_size, len(files))
    read = _reader(cfg, from_thumbnails)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), batch_size):
            block = files[start : start + batch_size]
            good = _without_bad(list(zip(block, pool.map(read, block), strict=True)), on_bad_image)
            batch = np.zeros((batch_size, size, size, 3), np.uint8)  # padded: one shape, one graph
            for row, (_, image) in enumerate(good):
                batch[row] = image
            inputs, scores = classify(batch)
            thumbnails = np.rint(inputs).astype(np.uint8)
            for row, (file, _) in enumerate(good):
                best = np.argsort(-scores[row], kind="stable")[:top]
                labels = tuple((classes[index], float(scores[row, index])) for index in best)
                yield Prediction(file, labels, None if small is None else thumbnails[row])


def choose_method(run: RunDir, method: str, *, of_thumbnails: bool = False) -> str:
    """Returns the method to use: the one named, else `thumbnet`, else the last of the run, if it can be of thumbnails.

    Args:
        run: the run directory.
        method: the one named; empty for none.
        of_thumbnails: whether it must be one that reads thumbnails.

    Raises:
        UserError: when it is not finished, or none is, or it reads no thumbnails and must; without a name, also when
            the run goes on and `thumbnet` isn't finished: another method's answers would pass for those meant.
    """
    finished = run.finished_methods()
    if not finished:
        raise UserError(f"--run_dir must hold a finished method; finish thumbnet_tf.train first. Received: {run.path}")
    if method and method not in finished:
        raise UserError(f"--method must be one finished in this run: {', '.join(finished)}. Received: {method!r}")
    unfinished = [name for name in students(run.config()) if name not in finished]
    if not method and unfinished and DEFAULT_METHOD not in finished:
        raise UserError(
            f"--run_dir must hold a finished run, or --method name one of {', '.join(finished)}; the command that "
            f"began the run goes on with {', '.join(unfinished)}. Received: {run.path}"
        )
    small = [name for name in finished if METHODS[name].downscaler != "none"]
    method = method or (DEFAULT_METHOD if DEFAULT_METHOD in finished else (small or finished)[-1])
    if of_thumbnails and method not in small:
        mend = f"choose of {', '.join(small)}" if small else "train one first"
        raise UserError(f"--method must be one that reads thumbnails; {mend}. Received: {method} of {run.path}")
    return method


def list_images(files: Sequence[str]) -> list[str]:
    """Lists files as given, and the images in folders, however deep, in natural order; hidden ones are left out.

    Raises:
        UserError: when a path doesn't exist, or a folder holds no image.
    """
    found: list[str] = []
    for name in files:
        path = pathlib.Path(name)
        if not name or not os.path.exists(path):  # an empty one would be the working directory
            raise UserError(f"every file or folder must exist; correct the path. Received: {name!r}")
        if not path.is_dir():
            found.append(name)
            continue
        inside = [each.relative_to(path) for each in path.rglob("*")]
        inside = [each for each in inside if not any(part.startswith(".") for part in each.parts)]
        for folder in (path, *(path / each for each in inside)):
            if os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
                raise UserError(f"a folder of images must be readable; allow it or give another. Received: {folder}")
        found_inside = (each for each in inside if each.suffix.lower() in IMAGE_SUFFIXES and (path / each).is_file())
        images = sorted((each.as_posix() for each in found_inside), key=natural_key)
        if not images:
            raise UserError(f"a folder must hold images ({', '.join(IMAGE_SUFFIXES)}); add some. Received: {name}")
        found += [str(path / file) for file in images]
    return found


def thumbnail_name(file: str) -> str:
    """Returns the name a file's thumbnail is saved under: its own name and a digest of where it lies."""
    path = pathlib.Path(file).resolve()
    return f"{path.stem[:48]}-{hashlib.sha1(os.fsencode(path), usedforsecurity=False).hexdigest()[:8]}.png"


def _reader(cfg: Config, from_thumbnails: bool) -> Callable[[str], tf.Tensor | str]:
    """Returns what reads a file as the network's or the downscaler's input, uint8 (s, s, 3), or says why it can't."""
    size = cfg.thumbnail_size

    @tf.function(input_signature=[tf.TensorSpec((None, None, 3), tf.uint8)], autograph=False)
    def crop(image: tf.Tensor) -> tf.Tensor:
        return preprocess.eval_crop(image, cfg.image_size, cfg.crop_fraction)

    def read(file: str) -> tf.Tensor | str:
        image = try_decode(pathlib.Path.read_bytes, pathlib.Path(file))
        if isinstance(image, str):
            return image
        if not from_thumbnails:
            return crop(image)
        height, width = image.shape[:2]
        if (height, width) != (size, size):
            raise UserError(
                f"--from_thumbnails takes thumbnails of {size} x {size} pixels, as --save_thumbnails saves them; "
                f"drop the flag for other images. Received: {file} of {width} x {height}"
            )
        return image

    return read


def _without_bad(images: list[tuple[str, tf.Tensor | str]], on_bad_image: str) -> list[tuple[str, tf.Tensor]]:
    """Returns the files that could be decoded; complains about the others."""
    for file, image in images:
        if isinstance(image, str) and on_bad_image == "error":
            raise UserError(
                f"an image can't be decoded; mend or remove it, or set --on_bad_image=skip. Received: {file} ({image})"
            )
        if isinstance(image, str):
            _log.warning("left out, can't be decoded: %s (%s)", file, image)
    return [(file, image) for file, image in images if not isinstance(image, str)]


def _classifier(
    small: keras.layers.Layer | None, network: keras.Model
) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns what maps images uint8 (B, S, S, 3) to the network's input, float32 (B, s, s, 3), and scores (B, C)."""

    @tf.function(autograph=False)
    def graph(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = tf.cast(images, tf.float32)
        inputs = images if small is None else small(images, training=False)
        return inputs, tf.nn.softmax(network(inputs, training=False)["logits"])

    return lambda images: tuple(value.numpy() for value in graph(images))


def _save_thumbnail(prediction: Prediction, folder: pathlib.Path) -> str:
    """Writes a prediction's thumbnail as a PNG file and returns its path."""
    path = folder / thumbnail_name(prediction.file)
    with saving(path):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tf.io.encode_png(prediction.thumbnail).numpy())
    return str(path)


def _line(prediction: Prediction, thumbnail: str | None, as_json: bool) -> str:
    if not as_json:
        return "\t".join([prediction.file, *(f"{label} {score:.4f}" for label, score in prediction.top)])
    top = [{"label": label, "score": score} for label, score in prediction.top]
    return json.dumps({"file": prediction.file, **top[0], "top": top, "thumbnail": thumbnail})


def main(options: Options) -> None:
    """Prints a line for each file, and saves its thumbnail if asked to."""
    run = RunDir.existing(options.run_dir)
    method = choose_method(run, options.method)
    folder = pathlib.Path(options.save_thumbnails)
    if options.save_thumbnails and METHODS[method].downscaler == "none":
        raise UserError(f"--save_thumbnails needs a --method that makes thumbnails; choose another. Received: {method}")
    for name in options.files if options.save_thumbnails else ():
        if folder.resolve().is_relative_to(pathlib.Path(name).resolve()):
            raise UserError(
                f"--save_thumbnails must lie outside the folders of images, or the next start takes thumbnails for "
                f"images. Received: {folder} in {name}"
            )
    if options.save_thumbnails and run.config().thumbnail_bits == 0:
        _log.warning(
            "this run's thumbnails aren't rounded to 8 bits, their PNG files are: S may answer otherwise to them"
        )
    files = list_images(options.files)
    predictions = predict_files(
        run,
        files,
        method=method,
        top=options.top,
        from_thumbnails=options.from_thumbnails,
        on_bad_image=options.on_bad_image,
    )
    sys.stdout.reconfigure(errors="surrogateescape")  # a file name that is no UTF-8 comes out as it is on disk
    shown = predictions if sys.stdout.isatty() else track(predictions, len(files), f"classifying by {method}")
    count = turned = 0
    for prediction in shown:
        thumbnail = _save_thumbnail(prediction, folder) if options.save_thumbnails else None
        print(_line(prediction, thumbnail, options.json), flush=True)
        count += 1
        turned += is_turned(prediction.file)
    if turned:
        _log.warning(of_turned(turned, count))
    if not count:
        raise UserError(f"at least one image must be readable; mend them. Received: {len(files)} unreadable files")


if __name__ == "__main__":
    flags.run(main, Options, positional="files")
