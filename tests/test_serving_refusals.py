"""Requests that the served model must refuse: with which message, naming which positions, and going on after them."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import encode
from PIL import Image
from run_helpers import IMAGE_SIZE, RATIO

from thumbnet_tf import intake

SMALL = IMAGE_SIZE // RATIO


def error(ask, signature: str, values) -> str:
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ask(signature, values)
    return caught.value.message


def huge_headers() -> dict[str, bytes]:
    """Returns small files of each kind whose headers claim 60000 x 60000 pixels (WebP: its largest)."""
    image = np.full((4, 4, 3), 120, np.uint8)
    files = {kind: bytearray(encode(image, kind)) for kind in ("PNG", "BMP", "GIF", "JPEG")}
    files["WEBP"] = bytearray(encode(image, "WEBP", lossless=True))
    side = 60000
    files["PNG"][16:24] = struct.pack(">II", side, side)
    files["BMP"][18:26] = struct.pack("<ii", side, -side)
    files["GIF"][6:10] = struct.pack("<HH", side, side)
    at = files["JPEG"].index(b"\xff\xc0") + 5
    files["JPEG"][at : at + 4] = struct.pack(">HH", side, side)
    files["WEBP"][21:25] = struct.pack("<I", 0x3FFF | 0x3FFF << 14)
    return {kind: bytes(data) for kind, data in files.items()}


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_refuses_huge_images_before_it_decodes_them(kind, photos, ask):
    good = encode(photos(1, 30)[0], "PNG")
    message = error(ask, "serving_default", [good, huge_headers()[kind]])
    assert "image_bytes must be images of at most 50 million pixels" in message
    assert "positions] [1]" in message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "JPEG", "WEBP"])
def test_names_the_positions_of_truncated_files_and_goes_on(kind, photos, ask):
    good = encode(photos(1, 60)[0], kind)
    before = ask("serving_default", [good])
    for part in (0.95, 0.5, 0.02):
        message = error(ask, "serving_default", [good, good[: int(part * len(good))], good, b""])
        assert "image_bytes must be whole images (JPEG, PNG, BMP, GIF, WebP)" in message
        assert "positions] [1 3]" in message
    np.testing.assert_array_equal(ask("serving_default", [good])["scores"], before["scores"])


def test_a_preview_inside_does_not_hide_that_a_jpeg_is_cut_off(photos, ask):
    preview, image = encode(photos(1, 16)[0], "JPEG"), encode(photos(1, 80)[0], "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview
    whole = image[:2] + segment + image[2:]
    assert ask("serving_default", [whole])["scores"].shape == (1, 3)
    assert "positions] [0]" in error(ask, "serving_default", [whole[:-200]])


@pytest.mark.parametrize(
    "junk", [b"no image", b"BM", b"RIFF" + bytes(40), b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_names_the_positions_of_what_is_no_image(junk, photos, ask):
    assert "positions] [0 2]" in error(ask, "serving_default", [junk, encode(photos(1, 9)[0], "PNG"), junk])


JPEG_XL = bytes.fromhex("ff0a434024080001005c004b188b1500d4884119e31c400c185a00e07de09c6b860a")  # 16 x 16 pixels, red


def test_refuses_jpeg_xl_untried_though_tensorflow_could_decode_it(photos, ask):
    def box(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data) + 8) + kind + data

    contained = box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl \0\0\0\0jxl ") + box(b"jxlc", JPEG_XL)
    for file in (JPEG_XL, contained):  # a few bytes of it could ask for any number of pixels
        assert tf.io.decode_image(file, 3).shape == (16, 16, 3)
        message = error(ask, "serving_default", [encode(photos(1, 30)[0], "PNG"), file])
        assert "image_bytes must be whole images (JPEG, PNG, BMP, GIF, WebP)" in message
        assert "positions] [1]" in message


def test_refuses_thumbnails_of_another_size(photos, ask):
    right, wrong = (encode(photos(1, size)[0], "PNG") for size in (SMALL, SMALL + 1))
    message = error(ask, "thumbnail", [right, wrong])
    assert f"thumbnail_bytes must be images of {SMALL} x {SMALL} pixels" in message
    assert "positions] [1]" in message
    assert "positions] [1]" in error(ask, "thumbnail", [right, right[:-20]])


def test_refuses_empty_requests(ask):
    assert "must hold at least one image" in error(ask, "serving_default", np.zeros((0,), object).astype(bytes))
    assert "pixels must hold images" in error(ask, "pixels", np.zeros((0, 32, 32, 3), np.uint8))
    assert "pixels must hold images" in error(ask, "pixels", np.zeros((2, 0, 32, 3), np.uint8))


def test_refuses_more_images_than_it_takes_at_once(photos, ask):
    few = [encode(photos(1, 3)[0], "PNG")] * intake.MAX_IMAGES
    assert ask("serving_default", few)["scores"].shape == (256, 3)
    message = error(ask, "serving_default", few + few[:1])
    assert "image_bytes must hold at least one image and at most 256. Received:] [257]" in message
    assert "thumbnail_bytes must hold at least one image and at most 256" in error(ask, "thumbnail", few + few[:1])
    assert ask("pixels", np.zeros((256, 2, 2, 3), np.uint8))["scores"].shape == (256, 3)
    message = error(ask, "pixels", np.zeros((257, 2, 2, 3), np.uint8))
    assert "pixels must hold images, at most 256. Received the shape] [257 2 2 3]" in message


def gif(screen: int, frames: list[tuple[int, int, bytes]]) -> bytes:
    """Returns a GIF of frames of a width, a height and compressed data, with a palette of two colours and a comment."""
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6) + b"\x21\xfe\x03abc\x00"
    blocks = [b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + data for width, height, data in frames]
    return head + b"".join(blocks) + b"\x3b"


def test_a_gif_counts_all_its_frames(ask):
    out = io.BytesIO()
    Image.new("P", (50, 50)).save(out, "GIF", save_all=True, append_images=[Image.new("P", (50, 50), 3)] * 4)
    assert ask("serving_default", [out.getvalue()])["scores"].shape == (1, 3)
    data = b"\x02\x02\x4c\x01\x00"
    for frames in (
        [(9000, 9000, data)],
        [(3000, 3000, data)] * 6,
        [(60000, 1, data), (1, 1000, data)],  # decoded to 60000 x 1000 pixels
        [(8, 8, b"\x02" + b"\x01a" * 30000 + b"\x00")],
    ):
        message = error(ask, "serving_default", [out.getvalue(), gif(8, frames)])
        assert "at most 50 million pixels" in message
        assert "positions] [1]" in message


def test_a_gif_has_the_size_of_its_frames(ask):
    line = encode(Image.new("P", (SMALL, 1)), "GIF")
    line = line[line.index(b"\x2c\0\0\0\0") + 10 : -1]  # its compressed data
    right = gif(8, [(SMALL, 1, line), (1, SMALL, line)])
    assert tf.io.decode_image(right, 3, expand_animations=False).shape == (SMALL, SMALL, 3)
    assert ask("thumbnail", [right])["scores"].shape == (1, 3)
    message = error(ask, "thumbnail", [right, gif(SMALL, [(SMALL, 1, line)])])
    assert f"{SMALL} x {SMALL} pixels" in message and "positions] [1]" in message


@pytest.mark.parametrize("lossless", [True, False])
def test_refuses_webp_whose_data_stand_where_their_header_should(lossless, photos, ask):
    good = encode(photos(1, 30)[0], "WEBP", lossless=lossless)
    assert good[12:16] == (b"VP8L" if lossless else b"VP8 ")
    bare = b"RIFF" + struct.pack("<I", len(good) - 16) + b"WEBP" + good[20:]
    assert tf.io.decode_image(bare, 3, expand_animations=False).shape == (30, 30, 3)  # libwebp takes it
    for file in (bare, good[:12] + b"VP8Y" + good[16:], good[:12] + b"ABCX" + good[16:]):
        message = error(ask, "serving_default", [good, file])
        assert "image_bytes must be whole images" in message and "positions] [1]" in message


def test_refuses_jpegs_of_very_many_scans(photos, ask):
    good = encode(photos(1, 30)[0], "JPEG", progressive=True)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x3f\x3f\x10\x00"  # of one coefficient, cut short
    many, some = (good[:-2] + scan * count + good[-2:] for count in (intake.MAX_SCANS, 50))
    message = error(ask, "serving_default", [good, many])
    assert "image_bytes must be JPEG files of at most 100 scans" in message and "positions] [1]" in message
    assert ask("serving_default", [good, some])["scores"].shape == (2, 3)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_refuses_what_is_damaged_in_its_middle_and_goes_on(kind, photos, ask):
    good = encode(photos(1, 60)[0], kind)
    middle = len(good) // 2
    damaged = good[:middle] + bytes(255 - value for value in good[middle : middle + 30]) + good[middle + 30 :]
    assert error(ask, "serving_default", [good, damaged])  # its beginning and end are good: no position
    assert ask("serving_default", [good])["scores"].shape == (1, 3)
