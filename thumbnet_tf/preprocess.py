"""Pure functions of one image, shared by training, evaluation, calibration and the serving graph.

Images are RGB, uint8, in [0, 255], of shape (H, W, 3). All functions are made of TensorFlow operations only, so
they run eagerly, inside `tf.data` and inside a SavedModel, and draw nothing at random: whatever is random is a
function of an explicit seed.
"""

import tensorflow as tf

ASPECT_RANGE = (3 / 4, 4 / 3)  # width over height of a random crop
CROP_TRIES = 10  # candidate crops a view draws; the first that lies inside the image is taken

_HEADER_BYTES = 30  # enough to tell a palette BMP and a WebP with alpha


def decode_image(data: tf.Tensor) -> tf.Tensor:
    """Decodes an encoded image to RGB.

    JPEG (grey, CMYK and progressive too), PNG (grey, palette, 16 bits, 1 bit), BMP (8, 24 and 32 bits), GIF (first
    frame) and WebP (no animation without alpha). Alpha is dropped, not blended; of 16 bits the upper 8 are kept.
    EXIF orientation is ignored, as TFDS and `keras.utils.image_dataset_from_directory` do. JPEG goes by the accurate
    transform, as in browsers, Android and Pillow, so that a file gives the same pixels there; TensorFlow's default,
    the fast one, is no faster.

    Args:
        data: string scalar, the bytes of a file.

    Returns:
        uint8 (H, W, 3) in [0, 255].

    Raises:
        tf.errors.InvalidArgumentError: when the bytes are no such image, or a truncated one.
    """
    header = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=_HEADER_BYTES), tf.int32)  # zero-padded
    # `tf.io.decode_image` takes a palette BMP's indices for grey levels, and asks that the number of channels of a
    # WebP be given right. It must never be called with channels=0: an animated WebP then crashes the process.
    palette_bmp = _starts(header, b"BM") & (header[28] == 8)
    chunk = header[12:16]
    alpha_byte = tf.where(_starts(chunk, b"VP8X"), header[20], tf.where(_starts(chunk, b"VP8L"), header[24], 0))
    alpha_webp = _starts(header, b"RIFF") & (tf.bitwise.bitwise_and(alpha_byte, 16) > 0)
    kind = tf.where(palette_bmp, 1, tf.where(alpha_webp, 2, tf.where(_starts(header, b"\xff\xd8\xff"), 3, 0)))
    image = tf.switch_case(
        kind,
        [
            lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
            lambda: _decode_palette_bmp(data),
            lambda: tf.io.decode_image(data, channels=4, expand_animations=False)[..., :3],
            lambda: decode_jpeg(data),
        ],
    )
    return tf.ensure_shape(image, (None, None, 3))


def decode_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Returns the uint8 (H, W, 3) of a JPEG file, a string scalar, by the accurate DCT; raises as `decode_image`."""
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def _starts(header: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.reduce_all(header[: len(magic)] == list(magic))


def _decode_palette_bmp(data: tf.Tensor) -> tf.Tensor:
    indices = tf.io.decode_image(data, channels=3, expand_animations=False)[..., 0]
    pixels_at = tf.io.decode_raw(tf.strings.substr(data, 10, 4), tf.int32)[0]
    palette_at = 14 + tf.io.decode_raw(tf.strings.substr(data, 14, 4), tf.int32)[0]
    palette = tf.io.decode_raw(tf.strings.substr(data, palette_at, pixels_at - palette_at), tf.uint8)
    palette = tf.reshape(palette, (-1, 4))[:, 2::-1]  # stored as blue, green, red, unused
    return tf.gather(palette, tf.cast(indices, tf.int32))


def _resize(image: tf.Tensor, size: int, mirrored: tf.Tensor | None = None) -> tf.Tensor:
    """Resizes uint8 (H, W, 3) to uint8 (size, size, 3): bilinear, antialiased when shrinking, rounded; may mirror it.

    The same numbers as `tf.image.resize` of both sides at once gives, which takes longer on a CPU: along a row it goes
    from pixel to pixel, and here the second pass, too, goes over whole rows, those of the image turned.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    rows = tf.image.resize(tf.reshape(image, (height, 1, width * 3)), (size, 1), "bilinear", antialias=True)
    turned = tf.transpose(tf.reshape(rows, (size, width, 3)), (1, 0, 2))
    columns = tf.image.resize(tf.reshape(turned, (width, 1, size * 3)), (size, 1), "bilinear", antialias=True)
    pixels = tf.saturate_cast(tf.round(tf.reshape(columns, (size, size, 3))), tf.uint8)
    if mirrored is not None:
        pixels = tf.gather(pixels, tf.where(mirrored, tf.range(size - 1, -1, -1), tf.range(size)))
    return tf.ensure_shape(tf.transpose(pixels, (1, 0, 2)), (size, size, 3))


def crop_side(short: tf.Tensor, crop_fraction: float) -> tf.Tensor:
    """Returns the side of the central square that evaluation cuts, int32 of at least 1, of an image's short side."""
    return tf.maximum(1, tf.cast(tf.round(tf.cast(short, tf.float32) * crop_fraction), tf.int32))


def eval_crop(image: tf.Tensor, size: int, crop_fraction: float) -> tf.Tensor:
    """Cuts the central square and resizes it: what evaluation, calibration and serving show the networks.

    The square is cut first and resized after, so no pixel outside it can have an influence. When it already is
    `size` x `size` the pixels are returned unchanged.

    Args:
        image: uint8 (H, W, 3) in [0, 255], of any size from 1 x 1.
        size: side of the result, pixels.
        crop_fraction: side of the square over the image's short side, in (0, 1].

    Returns:
        uint8 (size, size, 3) in [0, 255].
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    side = crop_side(tf.minimum(height, width), crop_fraction)
    top, left = (height - side) // 2, (width - side) // 2
    return _resize(image[top : top + side, left : left + side], size)


def train_view(image: tf.Tensor, seed: tf.Tensor, size: int, min_area: float, flip: bool) -> tf.Tensor:
    """Cuts a random rectangle, resizes it and may mirror it: a pure function of the image and `seed`.

    The rectangle's share of the image's area is uniform in [min_area, 1] and its aspect ratio log-uniform in
    [3/4, 4/3], given that it lies inside the image. Should none of ten candidates do (very long images, or a minimum
    area near 1), it is the largest one of an allowed aspect ratio.

    Args:
        image: uint8 (H, W, 3) in [0, 255].
        seed: int32 (2,).
        size: side of the result, pixels.
        min_area: smallest share of the image's area, in (0, 1].
        flip: whether to mirror left and right in half of all views.

    Returns:
        uint8 (size, size, 3) in [0, 255].
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    limit = tf.cast(tf.stack([height, width]), tf.float32)
    # One draw for all: an area for each candidate, then an aspect for each, then row, column and flip.
    draws = tf.random.stateless_uniform((2 * CROP_TRIES + 3,), seed)
    area = (min_area + (1 - min_area) * draws[:CROP_TRIES]) * limit[0] * limit[1]
    low, high = tf.math.log(ASPECT_RANGE[0]), tf.math.log(ASPECT_RANGE[1])
    aspect = tf.exp(low + (high - low) * draws[CROP_TRIES : 2 * CROP_TRIES])
    candidates = tf.round(tf.stack([tf.sqrt(area / aspect), tf.sqrt(area * aspect)], axis=-1))
    inside = tf.reduce_all(candidates <= limit, axis=-1)
    largest = tf.minimum(limit, tf.stack([limit[1] / ASPECT_RANGE[0], limit[0] * ASPECT_RANGE[1]]))
    extent = tf.where(tf.reduce_any(inside), candidates[tf.argmax(inside)], tf.floor(largest))
    extent = tf.maximum(extent, 1.0)
    # floor(u * (room + 1)) is uniform over the room + 1 possible places; u < 1, but the product may round up to it.
    room = limit - extent
    place = tf.cast(tf.minimum(tf.floor(draws[-3:-1] * (room + 1)), room), tf.int32)
    extent = tf.cast(extent, tf.int32)
    crop = image[place[0] : place[0] + extent[0], place[1] : place[1] + extent[1]]
    return _resize(crop, size, mirrored=draws[-1] < 0.5 if flip else None)


def training_image(
    image: tf.Tensor, seed: tf.Tensor, *, augment: str, size: int, crop_fraction: float, min_area: float
) -> tf.Tensor:
    """Returns the image a training step sees, by the option `augment` of a resolved `Config`.

    Args:
        image: uint8 (H, W, 3) in [0, 255].
        seed: int32 (2,), see `view_seed`; without effect for `none`.
        augment: `none` (the evaluation crop), `crop` or `crop_flip`.
        size: side of the result, pixels.
        crop_fraction: see `eval_crop`.
        min_area: see `train_view`.

    Returns:
        uint8 (size, size, 3) in [0, 255].

    Raises:
        ValueError: when `augment` is none of these (`auto` must be resolved before).
    """
    if augment == "none":
        return eval_crop(image, size, crop_fraction)
    if augment in ("crop", "crop_flip"):
        return train_view(image, seed, size, min_area, flip=augment == "crop_flip")
    raise ValueError(f"augment must be none, crop or crop_flip. Received: {augment!r}")


def view_seed(seed: int, example_id: tf.Tensor, view: tf.Tensor) -> tf.Tensor:
    """Derives the seed of one view of one example, the same on every machine and in any order of calls.

    Args:
        seed: the run's seed.
        example_id: integer scalar, the example's index in its split.
        view: integer scalar, such as the epoch.

    Returns:
        int32 (2,).
    """
    # The folded-in number's type becomes the seed's type.
    folded = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int32), tf.cast(example_id, tf.int32))
    return tf.random.experimental.stateless_fold_in(folded, tf.cast(view, tf.int32))


def mixing(seed: tf.Tensor, alpha: float, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws what MixUp mixes a view with: a pure function of `seed` (Zhang et al. 2018).

    https://arxiv.org/abs/1710.09412

    Args:
        seed: int32 (2,), see `view_seed`.
        alpha: of the share's Beta(alpha, alpha) distribution, above 0; 1 makes it uniform.
        count: number of examples.

    Returns:
        The other example's index, int64 scalar below `count`, and the share of the view itself, float32 in [0, 1].
    """
    own = tf.random.experimental.stateless_fold_in(seed, 1)  # what the view itself draws is left as it is
    other = tf.random.stateless_uniform((), own, 0, count, tf.int64)
    gammas = tf.random.stateless_gamma((2,), own, alpha)  # their shares of their sum are Beta distributed
    return other, tf.math.divide_no_nan(gammas[0], gammas[0] + gammas[1])


def mix(image: tf.Tensor, other: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Returns share * image + (1 - share) * other, uint8 as they are, rounded."""
    mixed = share * tf.cast(image, tf.float32) + (1 - share) * tf.cast(other, tf.float32)
    return tf.saturate_cast(tf.round(mixed), tf.uint8)
