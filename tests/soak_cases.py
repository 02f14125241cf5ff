"""The requests of the soak test: good, damaged and hostile ones, each with what it must get."""

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from data_helpers import encode, picture
from PIL import Image

HUGE = 60_000  # pixels a side that false headers claim
FORMATS = (  # what Pillow saves: name, mode, options
    ("JPEG", "RGB", {"quality": 90}),
    ("JPEG", "RGB", {"quality": 60, "progressive": True}),
    ("JPEG", "L", {}),
    ("JPEG", "CMYK", {}),
    ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "1", {}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("GIF", "P", {}),
    ("WEBP", "RGB", {"quality": 80}),
    ("WEBP", "RGBA", {"lossless": True}),
)
Ask = Callable[..., dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Case:
    """A request and what it must get.

    Attributes:
        kind: what is special about it.
        signature: which one to ask.
        name: the input's name.
        value: the input.
        wanted: the answer's `probabilities`; None if it must be refused.
        text: what the refusal must say.
    """

    kind: str
    signature: str
    name: str
    value: np.ndarray
    wanted: np.ndarray | None
    text: str = ""


def good_files(rng: np.random.Generator, count: int) -> list[bytes]:
    """Returns images of all formats, 8 to 600 pixels a side."""
    files = []
    for i in range(count):
        kind, mode, options = FORMATS[i % len(FORMATS)]
        height, width = (int(side) for side in 2 ** rng.uniform(3, 9.2, 2))
        image = Image.fromarray(picture(height, width, i)).convert(mode)
        files.append(encode(image, kind, **options))
    return files


def huge_headers() -> dict[str, bytes]:
    """Returns small files that claim to be 60,000 x 60,000 pixels, by format."""
    both = struct.pack(">II", HUGE, HUGE)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    tiny = Image.fromarray(picture(16, 16))
    png = chunk(b"IHDR", both + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(bytes(300))) + chunk(b"IEND", b"")
    jpeg = bytearray(encode(tiny, "JPEG"))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg[start : start + 4] = struct.pack(">HH", HUGE, HUGE)
    bmp = bytearray(encode(tiny, "BMP"))
    bmp[18:26] = struct.pack("<ii", HUGE, HUGE)
    gif = bytearray(encode(tiny, "GIF"))
    gif[6:10] = struct.pack("<HH", HUGE, HUGE)
    frame = gif.index(b"\x2c\0\0\0\0") + 5
    gif[frame : frame + 4] = struct.pack("<HH", HUGE, HUGE)
    side = struct.pack("<I", HUGE - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + side + side + encode(tiny, "WEBP")[12:]
    webp = b"RIFF" + struct.pack("<I", len(body)) + body
    return {
        "PNG": b"\x89PNG\r\n\x1a\n" + png,
        "JPEG": bytes(jpeg),
        "BMP": bytes(bmp),
        "GIF": bytes(gif),
        "WebP": webp,
    }


def make_cases(ask: Ask, size: int, small: int, count: int, seed: int) -> list[Case]:
    """Returns about `count` requests of all kinds with what the SavedModel says of them when it is called directly.

    Args:
        ask: calls a signature of the SavedModel.
        size: side of the network's images, pixels.
        small: side of its thumbnails, pixels.
        count: how many.
        seed: of all that is random.
    """
    rng = np.random.default_rng(seed)
    files = good_files(rng, max(count // 8, len(FORMATS)))

    def known(kind: str, signature: str, name: str, value: np.ndarray) -> Case:
        return Case(kind, signature, name, value, ask(signature, value)["probabilities"])

    def refused(kind: str, value: list[bytes], text: str = "whole images", name: str = "image_bytes") -> Case:
        signature = "thumbnail" if name == "thumbnail_bytes" else "serving_default"
        return Case(kind, signature, name, np.array(value, object), None, text)

    cases = [known("good files", "serving_default", "image_bytes", np.array([file], object)) for file in files]
    for _ in range(count // 8):
        batch = rng.choice(np.array(files, object), rng.integers(2, 6))
        cases.append(known("good batches", "serving_default", "image_bytes", batch))
        place = int(rng.integers(len(batch)))
        damaged = batch.copy()
        damaged[place] = b"not an image"
        cases.append(refused("batches with one bad file", damaged, f"[{place}]"))
        cases.append(_truncated(ask, rng.choice(np.array(files, object)), rng))
        cases.append(refused("random bytes", [rng.bytes(int(rng.integers(1, 5000)))]))
    for side in (size, size // 2 + 1, 3 * size, 200):
        pixels = np.stack([picture(side, side, i) for i in range(3)])
        cases.append(known("good pixels", "pixels", "pixels", pixels))
    for file in ask("downscale", np.array(files[:8], object))["thumbnail_png"]:
        cases.append(known("good thumbnails", "thumbnail", "thumbnail_bytes", np.array([file], object)))
        jpeg = encode(Image.open(io.BytesIO(file)), "JPEG", quality=95)
        cases.append(known("good thumbnails", "thumbnail", "thumbnail_bytes", np.array([jpeg], object)))
    for extent in ((small, small + 1), (small - 1, small), (size, size), (1, 1)):
        wrong = encode(picture(*extent), "PNG")
        cases.append(refused("wrong thumbnail sizes", [wrong], f"{small} x {small} pixels", "thumbnail_bytes"))
    cases += [refused("empty strings", [b""] * n) for n in (1, 3)]
    cases.append(refused("empty batches", [], "at least one image"))
    for kind, file in huge_headers().items():
        cases.append(refused(f"huge {kind} headers", [file], "million pixels"))
        cases.append(refused(f"huge {kind} headers", [files[0], file], "[1]"))
    for shape in ((0, size, size, 3), (1, 0, 0, 3), (1, size, size, 1), (1, size, size, 4), (size, size, 3), ()):
        cases.append(Case("wrong pixel shapes", "pixels", "pixels", np.zeros(shape, np.uint8), None, "pixels"))
    for dtype in (np.float32, np.int64):
        wrong = np.zeros((1, size, size, 3), dtype)
        cases.append(Case("wrong pixel types", "pixels", "pixels", wrong, None, "pixels must be uint8"))
    return cases


def _truncated(ask: Ask, file: bytes, rng: np.random.Generator) -> Case:
    """Cuts a file at a random place. Some formats can do without their end: then the answer must be that one's."""
    value = np.array([file[: int(rng.integers(1, len(file)))]], object)
    try:
        wanted = ask("serving_default", value)["probabilities"]
    except tf.errors.InvalidArgumentError:
        return Case("truncated files", "serving_default", "image_bytes", value, None, "[0]")
    return Case("truncated files that can be read", "serving_default", "image_bytes", value, wanted)
