"""Where a split's images are: decoded in memory, in files, or in a stream of records."""

import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from PIL import ExifTags
from PIL.JpegImagePlugin import JpegImageFile

from thumbnet_tf import preprocess, progress

CHUNK_BYTES = 2**29  # decoded images are packed in chunks: loading needs at most this much more than the images
BLOCK = 128  # images handed to the decoding threads at a time


class MemoryStore:
    """Decoded images, packed in a few long uint8 vectors; any of them is one slice away."""

    random_access = True

    def __init__(self, chunks: list[tf.Tensor], chunk: np.ndarray, offset: np.ndarray, shape: np.ndarray):
        """Keeps the pixels.

        Args:
            chunks: uint8 vectors.
            chunk: int32 (n,), which of them an image is in.
            offset: int64 (n,), its first byte there.
            shape: int32 (n, 2), its height and width.
        """
        self._chunks = chunks
        self._chunk, self._offset, self._shape = tf.constant(chunk), tf.constant(offset), tf.constant(shape)

    @property
    def num_bytes(self) -> int:
        """Size of all pixels."""
        return sum(int(chunk.shape[0]) for chunk in self._chunks)

    def get(self, index: tf.Tensor) -> tf.Tensor:
        """Returns image `index` (integer scalar), uint8 (H, W, 3)."""
        height, width = tf.unstack(self._shape[index])
        begin, size = self._offset[index], tf.cast(height, tf.int64) * tf.cast(width, tf.int64) * 3

        def cut(chunk: tf.Tensor) -> tf.Tensor:
            return tf.slice(chunk, [begin], [size])

        if len(self._chunks) == 1:
            flat = cut(self._chunks[0])
        else:
            branches = [lambda chunk=chunk: cut(chunk) for chunk in self._chunks]
            flat = tf.switch_case(self._chunk[index], branches)
        return tf.reshape(flat, (height, width, 3))

    def file(self, index: tf.Tensor) -> tf.Tensor:
        """Returns image `index` (integer scalar) as a PNG file, a string scalar."""
        return tf.io.encode_png(self.get(index), compression=1)


class FileStore:
    """Image files, read and decoded anew each time."""

    random_access = True

    def __init__(self, paths: list[str]):
        self._paths = tf.constant([os.fsencode(path) for path in paths], tf.string)  # names need not be UTF-8

    def get(self, index: tf.Tensor) -> tf.Tensor:
        """Returns image `index` (integer scalar), uint8 (H, W, 3)."""
        return preprocess.decode_image(self.file(index))

    def file(self, index: tf.Tensor) -> tf.Tensor:
        """Returns image `index` (integer scalar) as its file is, a string scalar."""
        return tf.io.read_file(self._paths[index])


class StreamStore:
    """Encoded records that can only be read in the order they are stored in."""

    random_access = False

    def __init__(self, records: Callable[[], tf.data.Dataset], positions: np.ndarray, total: int):
        """Keeps how to read them.

        Args:
            records: gives a dataset of string scalars, always in the same order.
            positions: int64 (n,), rising: the records of this split; the others are passed over.
            total: how many records there are.
        """
        self._records = records
        index = np.full((total,), -1, np.int64)
        index[positions] = np.arange(len(positions))
        self._index = tf.constant(index)

    def encoded(self) -> tf.data.Dataset:
        """Returns a dataset of (int64 index, string data) in rising order of the index."""
        dataset = self._records().enumerate().map(lambda position, data: (self._index[position], data))
        return dataset.filter(lambda index, data: index >= 0)


# A graph, because threads decoding eagerly spend most of their time waiting for Python's lock.
_decode = tf.function(preprocess.decode_image, input_signature=[tf.TensorSpec((), tf.string)])


def try_decode(fetch: Callable[[Any], bytes], item: Any) -> tf.Tensor | str:
    """Returns the decoded image, or a line that says why there is none."""
    try:
        data = fetch(item)
        return _decode(data) if data else "it is empty"
    except OSError as error:
        return error.strerror or type(error).__name__
    except tf.errors.OpError as error:
        return _reason(error.message)


def is_turned(file: str | os.PathLike | BinaryIO) -> bool:
    """Returns whether a JPEG's EXIF says to turn it, as cameras write it; decoding ignores that.

    Args:
        file: path of a file, or one that is open; False for what is no regular file or no JPEG.
    """
    if isinstance(file, str | os.PathLike) and not os.path.isfile(file):
        return False
    try:
        with JpegImageFile(file) as image:  # unlike Image.open, this takes images of any size
            return image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)  # 0: not known
    except Exception:  # Pillow raises whatever a damaged header leads to, and decoding judges the file
        return False


def of_turned(turned: int, total: int) -> str:
    """Returns the line that tells of images for which `is_turned`."""
    return (
        f"{turned} of {total} images carry an EXIF orientation, which is ignored: they are seen as their pixels lie in "
        "the file. Turn them upright first (as PIL.ImageOps.exif_transpose does) if they aren't meant to lie so"
    )


def _reason(message: str) -> str:
    """Returns the part of a TensorFlow error that says what is wrong, without where in the graph."""
    if "Number of channels requested" in message:
        return "WebP animations without alpha can't be decoded"
    lines = [line.strip() for line in re.sub(r"\{\{function_node.*?\}\}|\[Op:.*?\]", "", message).splitlines()]
    return [line for line in lines if line and not line.startswith("[[")][-1]


def _blocks(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while block := list(islice(iterator, BLOCK)):
        yield block


def check_images(
    items: Iterable[Any], fetch: Callable[[Any], bytes], total: int, what: str, limit_bytes: float
) -> tuple[dict[int, str], int, np.ndarray, MemoryStore | None]:
    """Decodes every image once, and keeps the pixels if they fit.

    Args:
        items: what `fetch` takes, one for each image.
        fetch: returns the encoded image; called in several threads.
        total: how many items there are.
        what: name of the work for the progress line.
        limit_bytes: pixels are kept as long as all together are no more than this.

    Returns:
        The position and the reason of each bad image, how many good ones EXIF says to turn, size (upper half) and
        CRC-32 (lower half) of all images' bytes as uint64 (n,), and the store of all good ones, in order, or None where
        they don't fit.
    """
    bad: dict[int, str] = {}
    turned = 0
    chunks: list[tf.Tensor] = []
    pending: list[tf.Tensor] = []  # decoded, not packed yet
    pending_bytes = kept_bytes = 0
    chunk_of, offset_of, shape_of = [], [], []
    keep = limit_bytes > 0
    checksums = np.zeros(total, np.uint64)

    def decoded(item: Any) -> tuple[tf.Tensor | str, int, bool]:
        """Returns what `try_decode` does, size and CRC-32 of the bytes in one number, and whether to turn it."""
        data = b""

        def fetched(item: Any) -> bytes:
            nonlocal data
            data = fetch(item)
            return data

        image = try_decode(fetched, item)
        return image, len(data) << 32 | zlib.crc32(data), is_turned(io.BytesIO(data))

    def pack() -> None:
        nonlocal pending_bytes
        if pending:
            chunks.append(tf.concat([tf.reshape(image, (-1,)) for image in pending], axis=0))
        pending.clear()
        pending_bytes = 0

    with ThreadPoolExecutor(os.cpu_count()) as pool, tf.device("CPU"):
        results = (result for block in _blocks(items) for result in pool.map(decoded, block))
        for position, (image, checksum, lies) in enumerate(progress.track(results, total, what)):
            checksums[position] = checksum
            if isinstance(image, str):
                bad[position] = image
                continue
            turned += lies
            size = int(tf.size(image))
            kept_bytes += size
            if not keep:
                continue
            if kept_bytes > limit_bytes:
                keep = False
                chunks.clear()
                pending.clear()
                continue
            if pending_bytes + size > CHUNK_BYTES:
                pack()
            chunk_of.append(len(chunks))
            offset_of.append(pending_bytes)
            shape_of.append(image.shape[:2])
            pending.append(image)
            pending_bytes += size
        if not keep or not shape_of:
            return bad, turned, checksums, None
        pack()
        arrays = np.array(chunk_of, np.int32), np.array(offset_of, np.int64), np.array(shape_of, np.int32)
        return bad, turned, checksums, MemoryStore(chunks, *arrays)
