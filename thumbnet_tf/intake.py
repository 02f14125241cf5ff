"""Reads encoded images inside a served graph, and says which positions of a request can't be read.

An operator that fails ends the whole request with its own words, which name no position. So files are looked at
before they are decoded: their kind, their size in pixels and whether their end is there. Only when something looks
wrong are they decoded one by one by `tf.data`, which goes on behind a failure; that is exact, but takes about a
tenth of a second, for TensorFlow prepares such a dataset anew at each call.
"""

from collections.abc import Callable

import tensorflow as tf

from thumbnet_tf import preprocess

MAX_PIXELS = 50_000_000  # decoding and cropping an image of this size takes about 1 GB

_HEADER = 32  # bytes that hold the size in pixels of all kinds but JPEG
_BMP_HEADER = 54
_JPEG, _PNG, _GIF, _BMP, _WEBP = range(1, 6)
_MAGIC = {_JPEG: b"\xff\xd8\xff", _PNG: b"\x89PNG\r\n\x1a\n", _GIF: b"GIF8", _BMP: b"BM", _WEBP: b"RIFF"}


def read_images(
    data: tf.Tensor, name: str, prepare: Callable[[tf.Tensor], tf.Tensor], size: int, exact: bool = False
) -> tf.Tensor:
    """Decodes and prepares the images of a request.

    Args:
        data: string (N,), files as `preprocess.decode_image` takes them.
        name: what the input is called in messages.
        prepare: from uint8 (H, W, 3) to uint8 (size, size, 3).
        size: pixels.
        exact: whether the files must be of `size` x `size` pixels.

    Returns:
        uint8 (N, size, size, 3) in [0, 255].

    Raises:
        tf.errors.InvalidArgumentError: when run, on no images, or on those that can't be decoded or are of a wrong
            size; with their positions.
    """

    def fast() -> tf.Tensor:
        extents = tf.map_fn(_extent, data, fn_output_signature=tf.TensorSpec((2,), tf.int64))
        with tf.control_dependencies(_check_extents(extents, name, size if exact else None)):
            return tf.map_fn(
                lambda file: prepare(preprocess.decode_image(file)),
                tf.identity(data),
                fn_output_signature=tf.TensorSpec((size, size, 3), tf.uint8),
            )

    some = tf.debugging.Assert(tf.size(data) > 0, [f"{name} must hold at least one image. Received: none"])
    with tf.control_dependencies([some]):
        whole = tf.reduce_all(tf.map_fn(_looks_whole, data, fn_output_signature=tf.bool))
    return tf.cond(whole, fast, lambda: _one_by_one(data, name, prepare, size, exact))


def _one_by_one(
    data: tf.Tensor, name: str, prepare: Callable[[tf.Tensor], tf.Tensor], size: int, exact: bool
) -> tf.Tensor:
    """Does what `read_images` does, and names the positions of all files that fail."""
    count = tf.size(data, tf.int64)

    def read(position: tf.Tensor, file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        checks = _check_extents(_extent(file)[None], name, size if exact else None)
        with tf.control_dependencies(checks):
            return position, prepare(preprocess.decode_image(tf.identity(file)))

    files = tf.data.Dataset.from_tensor_slices(data).enumerate()
    good = files.map(read, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors().batch(count)
    nothing = (tf.zeros((0,), tf.int64), tf.zeros((0, size, size, 3), tf.uint8))
    positions, images = good.reduce(nothing, lambda _, batch: batch)
    found = tf.scatter_nd(positions[:, None], tf.ones_like(positions), count[None])
    what = f"of {size} x {size} pixels" if exact else f"of at most {MAX_PIXELS // 10**6} million pixels"
    with tf.control_dependencies(
        [_refuse(found == 0, f"{name} must be whole images (JPEG, PNG, BMP, GIF, WebP) {what}")]
    ):
        return tf.ensure_shape(tf.identity(images), (None, size, size, 3))


def _refuse(wrong: tf.Tensor, message: str) -> tf.Operation:
    """Fails if any of (N,) is true, with its positions."""
    positions = tf.where(wrong)[:, 0]
    return tf.debugging.Assert(tf.size(positions) == 0, [f"{message}. Received others at positions", positions], 20)


def _check_extents(extents: tf.Tensor, name: str, exact: int | None) -> list[tf.Operation]:
    """Checks heights and widths (N, 2) in pixels."""
    limit = f"{name} must be images of at most {MAX_PIXELS // 10**6} million pixels"
    checks = [_refuse(tf.reduce_prod(extents, axis=-1) > MAX_PIXELS, limit)]
    if exact is not None:
        wrong = tf.reduce_any(extents != exact, axis=-1)
        checks.append(_refuse(wrong, f"{name} must be images of {exact} x {exact} pixels"))
    return checks


def _header(data: tf.Tensor) -> tf.Tensor:
    """Returns the first bytes of a string scalar as int64 (_HEADER,), zeros where it has ended."""
    return tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=_HEADER), tf.int64)


def _kind(data: tf.Tensor) -> tf.Tensor:
    """Returns which of the kinds a file claims to be, int32 scalar, 0 for none."""
    header = _header(data)
    kind = tf.constant(0)
    for number, magic in _MAGIC.items():
        kind = tf.where(tf.reduce_all(header[: len(magic)] == list(magic)), number, kind)
    other_riff = (kind == _WEBP) & tf.reduce_any(header[8:12] != list(b"WEBP"))
    return tf.where(other_riff, 0, kind)


def _little(digits: tf.Tensor) -> tf.Tensor:
    """Returns the number that bytes int64 (n,) make, the lowest first."""
    return tf.reduce_sum(digits * [256**i for i in range(digits.shape[0])])


def _looks_whole(data: tf.Tensor) -> tf.Tensor:
    """Returns whether a file is of a known kind and its end is there, as far as that shows without decoding."""
    length = tf.strings.length(data)
    header = _header(data)

    def tail(count: int) -> tf.Tensor:
        return tf.strings.substr(data, tf.maximum(length - count, 0), count)

    def jpeg() -> tf.Tensor:
        # as many ends as starts of images (a preview inside has its own); more may follow, as some cameras write it
        values = tf.io.decode_raw(data, tf.uint8)
        marked, code = values[:-1] == 0xFF, values[1:]
        starts = tf.math.count_nonzero(marked[:-1] & (code[:-1] == 0xD8) & (values[2:] == 0xFF))
        return tf.math.count_nonzero(marked & (code == 0xD9)) >= starts

    return tf.switch_case(
        _kind(data),
        [
            lambda: tf.constant(False),
            jpeg,
            lambda: tf.strings.substr(tail(8), 0, 4) == b"IEND",
            lambda: tail(1) == b"\x3b",
            lambda: tf.cast(length, tf.int64) >= tf.maximum(_little(header[2:6]), _BMP_HEADER),
            lambda: tf.cast(length, tf.int64) >= _little(header[4:8]) + 8,
        ],
    )


def _extent(data: tf.Tensor) -> tf.Tensor:
    """Returns the height and width in pixels that a whole file's header states, int64 (2,)."""
    header = _header(data)
    big = header[16:24]

    def webp() -> tf.Tensor:
        kind = header[15]  # the last letter of VP8X, VP8L and "VP8 "
        extended = tf.stack([_little(header[27:30]), _little(header[24:27])]) + 1
        packed = _little(header[21:25])
        lossless = tf.stack([packed // 2**14 % 2**14, packed % 2**14]) + 1
        lossy = tf.stack([_little(header[28:30]), _little(header[26:28])]) % 2**14
        return tf.where(kind == ord("X"), extended, tf.where(kind == ord("L"), lossless, lossy))

    return tf.switch_case(
        _kind(data),
        [
            lambda: tf.zeros((2,), tf.int64),
            lambda: tf.cast(tf.image.extract_jpeg_shape(data)[:2], tf.int64),
            lambda: tf.stack([_little(big[7:3:-1]), _little(big[3::-1])]),
            lambda: tf.stack([_little(header[8:10]), _little(header[6:8])]),
            lambda: tf.abs(_signed(tf.stack([_little(header[22:26]), _little(header[18:22])]))),
            webp,
        ],
    )


def _signed(number: tf.Tensor) -> tf.Tensor:
    """Returns 32 bits read as unsigned as the signed number they are."""
    return tf.where(number >= 2**31, number - 2**32, number)
