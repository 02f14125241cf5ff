"""The served graph: its contract, equality with Keras for every kind of file, and what it says to bad ones."""

import base64
import io
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from data_helpers import encode, exif
from PIL import Image
from run_helpers import CLASSES, IMAGE_SIZE, RATIO
from tensorflow.core.protobuf import saved_model_pb2

from thumbnet_tf import preprocess, serving, warmup

SMALL = IMAGE_SIZE // RATIO
OUTPUTS = {"classes", "scores", "probabilities"}


KINDS = {
    "jpeg_420": {"kind": "JPEG", "subsampling": 2},
    "jpeg_444_progressive": {"kind": "JPEG", "subsampling": 0, "progressive": True},
    "jpeg_grey": {"kind": "JPEG", "mode": "L"},
    "jpeg_cmyk": {"kind": "JPEG", "mode": "CMYK"},
    "jpeg_exif": {"kind": "JPEG", "exif": exif(6)},
    "png": {"kind": "PNG"},
    "png_rgba": {"kind": "PNG", "mode": "RGBA"},
    "png_palette": {"kind": "PNG", "mode": "P"},
    "png_grey": {"kind": "PNG", "mode": "L"},
    "bmp": {"kind": "BMP"},
    "bmp_palette": {"kind": "BMP", "mode": "P"},
    "gif": {"kind": "GIF"},
    "webp": {"kind": "WEBP"},
    "webp_lossless": {"kind": "WEBP", "lossless": True},
    "webp_alpha": {"kind": "WEBP", "mode": "RGBA"},
}


@pytest.fixture(scope="module")
def keras_scores(tiny_run):
    """Returns a function from images of the network's size to Keras' probabilities."""
    model = tiny_run.load_model("thumbnet", "shipped")
    return lambda images: tf.nn.softmax(model(np.asarray(images, np.float32), training=False)["logits"]).numpy()


def cropped(data: bytes) -> np.ndarray:
    return preprocess.eval_crop(preprocess.decode_image(data), IMAGE_SIZE, 0.875).numpy()


# --- contract


def test_signatures_and_files_are_those_of_the_contract(exported):
    (graph,) = saved_model_pb2.SavedModel.FromString((exported / "saved_model.pb").read_bytes()).meta_graphs
    assert list(graph.meta_info_def.tags) == ["serve"]
    signatures = {name: s for name, s in graph.signature_def.items() if name != "__saved_model_init_op"}
    count = len(CLASSES)
    answer = {"classes": ([-1, count], "DT_STRING"), "scores": ([-1, count], "DT_FLOAT")}
    answer["probabilities"] = ([-1, count], "DT_FLOAT")
    wanted = {
        "serving_default": ({"image_bytes": ([-1], "DT_STRING")}, answer),
        "pixels": ({"pixels": ([-1, -1, -1, 3], "DT_UINT8")}, answer),
        "thumbnail": ({"thumbnail_bytes": ([-1], "DT_STRING")}, answer),
        "downscale": (
            {"image_bytes": ([-1], "DT_STRING")},
            {"thumbnail_png": ([-1], "DT_STRING"), "thumbnail": ([-1, SMALL, SMALL, 3], "DT_UINT8")},
        ),
    }
    tensor_type = tf.dtypes.DType

    def described(tensors) -> dict:
        return {
            name: ([d.size for d in info.tensor_shape.dim], f"DT_{tensor_type(info.dtype).name.upper()}")
            for name, info in tensors.items()
        }

    found = {name: (described(s.inputs), described(s.outputs)) for name, s in signatures.items()}
    float_name = {"DT_FLOAT32": "DT_FLOAT"}
    for inputs, outputs in found.values():
        for tensors in (inputs, outputs):
            for name, (shape, kind) in tensors.items():
                tensors[name] = (shape, float_name.get(kind, kind))
    assert found == wanted
    operators = {node.op for f in graph.graph_def.library.function for node in f.node_def}
    assert "DecodeImage" in operators
    assert not [op for op in operators if op.startswith(("PyFunc", "EagerPyFunc"))]


# --- the same answer on every way


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(45, 61), (3, 2)], ids=str)
def test_bytes_equal_pixels_equal_keras(name, size, photos, ask, keras_scores):
    options = dict(KINDS[name])
    image = photos(1, max(size), seed=len(name))[0][: size[0], : size[1]]
    image = Image.fromarray(image).convert(options.pop("mode", "RGB"))
    data = encode(image, options.pop("kind"), **options)
    from_bytes = ask("serving_default", [data])
    expected = keras_scores(cropped(data)[None])
    np.testing.assert_allclose(from_bytes["probabilities"], expected, atol=1e-6)
    decoded = preprocess.decode_image(data).numpy()
    assert decoded.shape == (*size, 3)
    for pixels in (decoded, cropped(data)):  # whole, and as TFLite gets it
        np.testing.assert_allclose(ask("pixels", pixels[None])["probabilities"], expected, atol=1e-6)


def test_a_batch_of_mixed_sizes_is_its_images_one_by_one(photos, ask):
    files = [encode(photos(1, size, seed=size)[0], kind) for size, kind in ((20, "PNG"), (90, "JPEG"), (33, "WEBP"))]
    together = ask("serving_default", files)
    assert {name: value.shape for name, value in together.items()} == dict.fromkeys(OUTPUTS, (3, 3))
    for index, data in enumerate(files):
        alone = ask("serving_default", [data])
        np.testing.assert_allclose(together["probabilities"][index], alone["probabilities"][0], atol=1e-6)
        assert together["classes"][index].tolist() == alone["classes"][0].tolist()


def test_classes_are_in_the_order_of_their_scores(disc_files, ask):
    answer = ask("serving_default", [pathlib.Path(file).read_bytes() for file in disc_files])
    order = np.argsort(-answer["probabilities"], axis=1)
    assert answer["classes"].tolist() == [[CLASSES[i].encode() for i in row] for row in order]
    np.testing.assert_array_equal(answer["scores"], np.take_along_axis(answer["probabilities"], order, 1))
    np.testing.assert_allclose(answer["probabilities"].sum(1), 1, atol=1e-6)


def test_a_saved_thumbnail_gives_the_image_s_answer(photos, ask, tiny_run):
    files = [encode(image, "PNG") for image in photos(3, 50)]
    small = ask("downscale", files)
    assert small["thumbnail"].shape == (3, SMALL, SMALL, 3)
    for pixels, png in zip(small["thumbnail"], small["thumbnail_png"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), pixels)
    expected = tiny_run.load_model("thumbnet", "downscaler")(np.stack([cropped(f) for f in files]), training=False)
    np.testing.assert_array_equal(small["thumbnail"], expected)
    again = ask("thumbnail", small["thumbnail_png"])
    np.testing.assert_array_equal(again["probabilities"], ask("serving_default", files)["probabilities"])


def test_a_thumbnail_may_be_a_jpeg(photos, ask, tiny_run):
    data = encode(photos(1, SMALL)[0], "JPEG", quality=85)
    student = tiny_run.load_model("thumbnet", "student")
    logits = student(preprocess.decode_image(data).numpy()[None].astype(np.float32), training=False)["logits"]
    np.testing.assert_allclose(ask("thumbnail", [data])["probabilities"], tf.nn.softmax(logits), atol=1e-6)


def test_what_follows_a_jpeg_is_ignored(photos, ask):
    data = encode(photos(1, 40)[0], "JPEG")
    trailed = data + b"\xff\xd8\xff" + bytes(500)  # as phones append previews: it looks cut off, and isn't
    np.testing.assert_array_equal(
        ask("serving_default", [trailed, data])["probabilities"], ask("serving_default", [data, data])["probabilities"]
    )


def test_loads_and_answers_where_the_package_cannot_be_imported(exported, photos, keras_scores):
    images = photos(3, 52)
    files = [encode(image, "PNG") for image in images]
    code = """
import sys, json, base64
sys.modules["thumbnet_tf"] = None
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
files = tf.constant([base64.b64decode(text) for text in json.load(sys.stdin)])
print(json.dumps(model.signatures["serving_default"](image_bytes=files)["probabilities"].numpy().tolist()))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(exported)],
        input=json.dumps([base64.b64encode(data).decode() for data in files]),
        capture_output=True,
        text=True,
        cwd=exported,
        check=True,
    )
    expected = keras_scores([cropped(data) for data in files])
    np.testing.assert_allclose(json.loads(result.stdout), expected, atol=1e-6)


# --- warm-up


@pytest.fixture
def copy(exported, tmp_path):
    """Returns a copy of the SavedModel that a test may break."""
    return shutil.copytree(exported, tmp_path / "copy", ignore=shutil.ignore_patterns("tflite"))


def test_warm_up_holds_every_signature_at_every_size(copy):
    model = tf.saved_model.load(str(copy))
    sizes = {"serving_default": 40, "pixels": IMAGE_SIZE, "downscale": 40, "thumbnail": SMALL}
    warmup.write(copy, model, "thumbnet", sizes)
    sent = [
        (request.model_spec.name, request.model_spec.signature_name, tf.make_ndarray(value).shape[0])
        for request in warmup.requests(copy)
        for value in request.inputs.values()
    ]
    signatures = ("serving_default", "pixels", "downscale", "thumbnail")
    assert sorted(sent) == sorted(("thumbnet", s, n) for s in signatures for n in warmup.BATCH_SIZES)
    assert warmup.replay(copy, model) == len(sent)


def test_replay_finds_a_request_that_fails_and_one_that_is_missing(copy):
    sizes = {"serving_default": 40, "pixels": IMAGE_SIZE, "downscale": 40, "thumbnail": SMALL + 1}
    model = tf.saved_model.load(str(copy))
    warmup.write(copy, model, "thumbnet", sizes)
    with pytest.raises(tf.errors.InvalidArgumentError, match="thumbnail_bytes must be images of 16 x 16"):
        warmup.replay(copy, model)
    (copy / warmup.FILE).write_bytes(b"")
    with pytest.raises(RuntimeError, match="no warm-up requests"):
        warmup.replay(copy, model)


def test_five_classes_are_answered_the_likeliest_first():
    answer = serving._answer(tf.constant([[0.0, 6, 1, 5, 2, 4, 3]]), "abcdefg")
    assert answer["classes"].numpy().tolist() == [[b"b", b"d", b"f", b"g", b"e"]]
