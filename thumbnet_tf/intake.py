"""Reads encoded images inside a served graph, and says which positions of a request can't be read.

An operator that fails ends the whole request with its own words, which name no position. So files are looked at
before they are decoded: their kind, their size in pixels and whether their end is there. Only when something looks
wrong are they tried one by one by `tf.data`, which goes on behind a failure. That is exact, but takes tens of
milliseconds, for TensorFlow prepares such a dataset anew at each call; the fewer operators in it, the faster. So a
file that is damaged in its middle only, with a good beginning and end, is refused in the operator's words, without a
position.
"""

from collections.abc import Callable

import tensorflow as tf

from thumbnet_tf import preprocess

MAX_PIXELS = 50_000_000  # decoding and cropping an image of this size takes about 1 GB
MAX_IMAGES = 256  # of a request: the networks take all of them at once
MAX_SCANS = 100  # of a JPEG: a decoder goes through the whole image for each; encoders write 10 or so

_AT_A_TIME = 2  # images of a request that are decoded side by side: their memory adds up
_HEADER = 32  # bytes that hold the size in pixels of all kinds but JPEG
_BMP_HEADER = 54
_GIF_EXTENSION, _GIF_FRAME = 0x21, 0x2C  # the bytes that these blocks start with
_GIF_RUNS = 20_000  # of at most 255 bytes, together 5 MB
_WEBP_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X")  # lossy, lossless, extended
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
        tf.errors.InvalidArgumentError: when run, on no images, on more than MAX_IMAGES, or on those that can't be
            decoded or are of a wrong size; with their positions, but for files whose beginning and end are good.
    """
    exact_size = size if exact else None
    count = tf.size(data)
    message = f"{name} must hold at least one image and at most {MAX_IMAGES}. Received:"
    with tf.control_dependencies([tf.debugging.Assert((count > 0) & (count <= MAX_IMAGES), [message, count])]):
        scans = map_images(_scans, data, tf.TensorSpec((), tf.int64))
    few = _refuse(scans > MAX_SCANS, f"{name} must be JPEG files of at most {MAX_SCANS} scans")
    with tf.control_dependencies([few]):
        whole = tf.reduce_all(map_images(_looks_whole, data, tf.TensorSpec((), tf.bool)))

    def look() -> tf.Tensor:
        with tf.control_dependencies(_check_extents(_extents(data, _jpeg_extent), name, exact_size)):
            return tf.identity(data)

    checked = tf.cond(whole, look, lambda: _try_one_by_one(data, name, exact_size))
    ready = tf.TensorSpec((size, size, 3), tf.uint8)
    return map_images(lambda file: prepare(preprocess.decode_image(file)), checked, ready)


def is_small_enough(data: tf.Tensor) -> tf.Tensor:
    """Returns whether a file that can be decoded, a string scalar, is within the limits of pixels and scans."""
    return (_scans(data) <= MAX_SCANS) & (tf.reduce_prod(_extent(data, _jpeg_extent)) <= MAX_PIXELS)


def map_images(function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor, result: tf.TensorSpec) -> tf.Tensor:
    """Returns what a function makes of each image of a request, few at a time.

    Args:
        function: of one image.
        images: (N, ...).
        result: what it returns.

    Returns:
        The results (N, ...).
    """
    return tf.map_fn(function, images, fn_output_signature=result, parallel_iterations=_AT_A_TIME)


def _try_one_by_one(data: tf.Tensor, name: str, exact: int | None) -> tf.Tensor:
    """Returns the files, all of which can be decoded, or names the positions of those that can't."""
    jpegs = _sizes(data, tf.image.extract_jpeg_shape)
    extents = jpegs + _extents(data, lambda file: tf.zeros((2,), tf.int64))
    # TensorFlow would also decode JPEG XL, whose size in pixels isn't looked at here: unknown kinds aren't tried
    known = map_images(_kind, data, tf.TensorSpec((), tf.int32)) > 0
    with tf.control_dependencies(_check_extents(extents, name, exact)):
        files = tf.where(known, data, "")
    # of 3 channels, or of 4: only WebP with alpha has to be decoded so
    tried = [
        _sizes(files, lambda file, c=channels: tf.shape(tf.io.decode_image(file, c, expand_animations=False)))
        for channels in (3, 4)
    ]
    what = f"of {exact} x {exact} pixels" if exact else f"of at most {MAX_PIXELS // 10**6} million pixels"
    message = f"{name} must be whole images (JPEG, PNG, BMP, GIF, WebP) {what}"
    with tf.control_dependencies([_refuse(tf.reduce_all(sum(tried) == 0, axis=-1), message)]):
        return tf.identity(files)


def _sizes(data: tf.Tensor, measure: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Returns the height and width int64 (N, 2) that `measure` finds in each file, 0 where it fails."""
    count = tf.size(data, tf.int64)
    files = tf.data.Dataset.from_tensor_slices(data).enumerate()
    sizes = files.map(lambda position, file: (position, measure(file)[:2])).ignore_errors().batch(count)
    nothing = (tf.zeros((0,), tf.int64), tf.zeros((0, 2), tf.int32))
    positions, found = sizes.reduce(nothing, lambda _, batch: batch)
    return tf.scatter_nd(positions[:, None], tf.cast(found, tf.int64), tf.stack([count, 2]))


def _refuse(wrong: tf.Tensor, message: str) -> tf.Operation:
    """Fails if any of (N,) is true, with its positions."""
    positions = tf.where(wrong)[:, 0]
    return tf.debugging.Assert(tf.size(positions) == 0, [f"{message}. Received others at positions", positions], 20)


def _check_extents(extents: tf.Tensor, name: str, exact: int | None) -> list[tf.Operation]:
    """Checks heights and widths (N, 2) in pixels, 0 where they are unknown."""
    limit = f"{name} must be images of at most {MAX_PIXELS // 10**6} million pixels"
    checks = [_refuse(tf.reduce_prod(extents, axis=-1) > MAX_PIXELS, limit)]
    if exact is not None:
        wrong = tf.reduce_any((extents != exact) & (extents > 0), axis=-1)
        checks.append(_refuse(wrong, f"{name} must be images of {exact} x {exact} pixels"))
    return checks


def _header(data: tf.Tensor) -> tf.Tensor:
    """Returns the first bytes of a string scalar as int64 (_HEADER,), zeros where it has ended."""
    return tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=_HEADER), tf.int64)


def _kind(data: tf.Tensor) -> tf.Tensor:
    """Returns which of the kinds a file claims to be, int32 scalar, 0 for none.

    A WebP file whose first chunk is no known one is none: libwebp would take what follows for bare VP8 or VP8L data,
    whose size in pixels stands elsewhere.
    """
    header = _header(data)
    kind = tf.constant(0)
    for number, magic in _MAGIC.items():
        kind = tf.where(_is(header[: len(magic)], magic), number, kind)
    webp = _is(header[8:12], b"WEBP") & tf.reduce_any([_is(header[12:16], chunk) for chunk in _WEBP_CHUNKS])
    return tf.where((kind == _WEBP) & ~webp, 0, kind)


def _is(digits: tf.Tensor, text: bytes) -> tf.Tensor:
    return tf.reduce_all(digits == list(text))


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


def _scans(data: tf.Tensor) -> tf.Tensor:
    """Returns how many scans a JPEG has at most, int64, 0 for other files."""

    def jpeg() -> tf.Tensor:
        values = tf.io.decode_raw(data, tf.uint8)  # a scan's header has 8 to 14 bytes, of which 2 tell that number
        return tf.math.count_nonzero((values[:-2] == 0xFF) & (values[1:-1] == 0xDA) & (values[2:] == 0))

    return tf.cond(_kind(data) == _JPEG, jpeg, lambda: tf.zeros((), tf.int64))


def _jpeg_extent(file: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.image.extract_jpeg_shape(file)[:2], tf.int64)


def _extents(data: tf.Tensor, of_jpeg: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Returns heights and widths in pixels that the headers of files state, int64 (N, 2), 0 where none do."""
    return map_images(lambda file: _extent(file, of_jpeg), data, tf.TensorSpec((2,), tf.int64))


def _extent(data: tf.Tensor, of_jpeg: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    header = _header(data)
    big = header[16:24]

    def webp() -> tf.Tensor:
        chunk = header[12:16]
        extended = tf.stack([_little(header[27:30]), _little(header[24:27])]) + 1
        packed = _little(header[21:25])
        lossless = tf.stack([packed // 2**14 % 2**14, packed % 2**14]) + 1
        lossy = tf.stack([_little(header[28:30]), _little(header[26:28])]) % 2**14
        return tf.where(_is(chunk, b"VP8X"), extended, tf.where(_is(chunk, b"VP8L"), lossless, lossy))

    return tf.switch_case(
        _kind(data),
        [
            lambda: tf.zeros((2,), tf.int64),
            lambda: of_jpeg(data),
            lambda: tf.stack([_little(big[7:3:-1]), _little(big[3::-1])]),
            lambda: _gif_extent(data, header),
            lambda: tf.abs(_signed(tf.stack([_little(header[22:26]), _little(header[18:22])]))),
            webp,
        ],
    )


def _gif_extent(data: tf.Tensor, header: tf.Tensor) -> tf.Tensor:
    """Returns the height and width that a GIF is decoded to, or one more than MAX_PIXELS and 1 if it is too large.

    TensorFlow reads all frames, though it returns the first one only, on an area as high as the highest and as wide
    as the widest. So all frames together, that area and the header's own size, which binds no frame, are held to
    MAX_PIXELS.
    """
    values = tf.concat([tf.io.decode_raw(data, tf.uint8), tf.zeros((_HEADER,), tf.uint8)], 0)
    length = tf.cast(tf.strings.length(data), tf.int64)

    def at(position: tf.Tensor, count: int = 1) -> tf.Tensor:
        position = tf.minimum(position, length + _HEADER - count)  # a length inside may point behind the file's end
        return _little(tf.ensure_shape(tf.cast(values[position : position + count], tf.int64), (count,)))

    def palette(flags: tf.Tensor) -> tf.Tensor:
        size = 3 * tf.bitwise.left_shift(tf.constant(2, tf.int64), flags % 8)
        return tf.where(flags >= 128, size, tf.zeros((), tf.int64))

    def fits(pixels: tf.Tensor, extent: tf.Tensor) -> tf.Tensor:
        return (pixels <= MAX_PIXELS) & (tf.reduce_prod(extent) <= MAX_PIXELS)

    def goes_on(position: tf.Tensor, pixels: tf.Tensor, extent: tf.Tensor, inside: tf.Tensor) -> tf.Tensor:
        at_block = (at(position) == _GIF_EXTENSION) | (at(position) == _GIF_FRAME)
        return (position < length) & (inside | at_block) & fits(pixels, extent)

    def step(position: tf.Tensor, pixels: tf.Tensor, extent: tf.Tensor, inside: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Passes a run of data, its end, or what comes before its first run."""
        byte = at(position)
        is_frame = ~inside & (byte == _GIF_FRAME)
        frame = tf.where(is_frame, tf.stack([at(position + 7, 2), at(position + 5, 2)]), 0)
        before_data = tf.where(is_frame, 11 + palette(at(position + 9)), 2)
        return (
            position + tf.where(inside, 1 + byte, before_data),
            pixels + tf.reduce_prod(frame),
            tf.maximum(extent, frame),
            ~inside | (byte > 0),
        )

    start = 13 + palette(header[10])
    state = (start, tf.zeros((), tf.int64), tf.zeros((2,), tf.int64), tf.constant(False))
    state = tf.while_loop(goes_on, step, state, maximum_iterations=_GIF_RUNS)
    _, pixels, extent, _ = state
    screen = tf.stack([_little(header[8:10]), _little(header[6:8])])
    # what goes on has too many runs to go through
    good = fits(pixels, extent) & (tf.reduce_prod(screen) <= MAX_PIXELS) & ~goes_on(*state)
    return tf.where(good, extent, tf.constant([MAX_PIXELS + 1, 1], tf.int64))


def _signed(number: tf.Tensor) -> tf.Tensor:
    """Returns 32 bits read as unsigned as the signed number they are."""
    return tf.where(number >= 2**31, number - 2**32, number)
