"""TFLite files against the Keras models they come from, through LiteRT's own interpreter."""

import io
import zipfile

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from run_helpers import CLASSES, IMAGE_SIZE, RATIO, disc
from tensorflow.lite.python import schema_py_generated as schema
from tflite_helpers import infer, normalization, operators, probabilities, silent, thumbnails

from thumbnet_tf import downscaler, preprocess, tflite, tflite_metadata, thumbnet
from thumbnet_tf.config import Config, UserError

SMALL = IMAGE_SIZE // RATIO


@pytest.fixture(scope="module")
def images():
    """Returns discs as evaluation crops them, uint8 (48, 32, 32, 3); the tiny run was trained on the first of each."""
    crops = [preprocess.eval_crop(disc(i % 3, i // 3), IMAGE_SIZE, 0.875) for i in range(48)]
    return np.stack([crop.numpy() for crop in crops])


@pytest.fixture(scope="module")
def models(tiny_run):
    names = {"classifier": "student", "downscaler": "downscaler", "thumbnet": "shipped"}
    return {name: tiny_run.load_model("thumbnet", file) for name, file in names.items()}


@pytest.fixture(scope="module")
def inputs(models, images):
    small = thumbnails(models["downscaler"], images).astype(np.uint8)
    return {"thumbnet": images, "downscaler": images, "classifier": small}


@pytest.fixture(scope="module")
def files(models, inputs):
    class Files(dict):
        def __missing__(self, key):  # made when it is asked for, for it takes seconds
            name, variant = key
            self[key] = tflite.convert(models[name], name, variant, calibration=inputs[name][:24])
            return self[key]

    return Files()


@pytest.mark.parametrize(
    ("name", "source", "result", "side", "output"),
    [
        ("thumbnet", "image", "probabilities", IMAGE_SIZE, [1, 3]),
        ("downscaler", "image", "thumbnail", IMAGE_SIZE, [1, SMALL, SMALL, 3]),
        ("classifier", "thumbnail", "probabilities", SMALL, [1, 3]),
    ],
)
def test_names_shapes_and_types_are_the_same_in_all_variants(files, name, source, result, side, output):
    for variant in tflite.VARIANTS if name == "thumbnet" else ("float32", "int8"):
        interpreter = Interpreter(model_content=files[name, variant])
        assert interpreter.get_signature_list() == {"serving_default": {"inputs": [source], "outputs": [result]}}
        given, made = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        assert (given["dtype"], given["shape"].tolist()) == (np.uint8, [1, side, side, 3])
        byte = name == "downscaler" or variant == "int8"
        assert (made["dtype"], made["shape"].tolist()) == (np.uint8 if byte else np.float32, output)


@pytest.mark.parametrize(
    ("name", "variant", "tolerance"),
    [
        ("thumbnet", "float32", 1e-2),
        ("thumbnet", "float16", 1e-2),
        ("thumbnet", "dynamic", 3e-2),
        ("classifier", "float32", 1e-4),
    ],
)
def test_float_variants_answer_as_keras_does(files, models, inputs, name, variant, tolerance):
    # other summation orders and half weights turn some of a thumbnail's pixels by one level
    expected = probabilities(models[name], inputs[name])
    scores = infer(files[name, variant], inputs[name])
    np.testing.assert_allclose(scores, expected, atol=tolerance)
    assert np.mean(scores.argmax(1) == expected.argmax(1)) >= 0.95


@pytest.mark.parametrize("name", ["thumbnet", "classifier"])
def test_int8_answers_as_keras_does(files, models, inputs, name):
    expected = probabilities(models[name], inputs[name])
    scores = infer(files[name, "int8"], inputs[name]) / 256
    np.testing.assert_allclose(scores, expected, atol=0.05)
    sure = np.sort(expected, axis=1)
    sure = sure[:, -1] - sure[:, -2] > 0.02
    assert sure.sum() >= 24 and np.mean(scores.argmax(1)[sure] == expected.argmax(1)[sure]) >= 0.95


@pytest.mark.parametrize(
    ("variant", "levels"),
    [
        ("float32", 1),
        pytest.param("float16", 1, marks=pytest.mark.slow),
        pytest.param("dynamic", 2, marks=pytest.mark.slow),
        ("int8", 2),
    ],
)
def test_thumbnails_are_the_same_bytes_up_to_rounding(files, models, images, variant, levels):
    expected = thumbnails(models["downscaler"], images)
    found = infer(files["downscaler", variant], images).astype(float)
    assert np.abs(found - expected).max() <= levels
    assert np.abs(found - expected).mean() < 0.5
    assert expected.std() > 20


def test_thumbnet_is_downscaler_and_classifier_in_one(files, images):
    small = infer(files["downscaler", "int8"], images)
    two, one = infer(files["classifier", "int8"], small), infer(files["thumbnet", "int8"], images)
    assert np.abs(two.astype(int) - one).max() <= 8  # of 256; the two files were calibrated apart


def test_int8_files_hold_integers_only_and_take_raw_pixels(files, models):
    floats = {schema.TensorType.FLOAT16, schema.TensorType.FLOAT32}
    for name in models:
        content = files[name, "int8"]
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
        assert not floats & {tensor.type for tensor in model.subgraphs[0].tensors}
        interpreter = Interpreter(model_content=content)
        assert interpreter.get_input_details()[0]["quantization"] == (1 / 128, 128)  # of normalised pixels: raw bytes
        expected = (1 / 128, 128) if name == "downscaler" else (1 / 256, 0)
        assert interpreter.get_output_details()[0]["quantization"] == expected


def test_int8_graph_has_no_rescaling_left(files):
    operator = schema.BuiltinOperator
    used = operators(files["thumbnet", "int8"])
    assert operator.MUL not in used and operator.SUB not in used and operator.AVERAGE_POOL_2D not in used
    assert used.count(operator.QUANTIZE) == 2 and used.count(operator.SPACE_TO_DEPTH) == 2  # raw bytes in and out


def test_calibration_images_need_not_span_all_levels(models, images):
    grey = (images[:4] // 4 + 100).astype(np.uint8)
    content = tflite.convert(models["downscaler"], "downscaler", "int8", calibration=iter(grey))
    interpreter = Interpreter(model_content=content)
    assert interpreter.get_input_details()[0]["quantization"] == (1 / 128, 128)
    assert np.abs(infer(content, grey) - thumbnails(models["downscaler"], grey)).max() <= 2


def test_sizes_of_the_variants():
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3))
    hidden = keras.layers.Dense(512, "relu")(keras.layers.Flatten()(image / 255.0))  # nearly all of the file
    model = keras.Model(image, {"logits": keras.layers.Dense(5)(hidden)})
    noise = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    size = {name: len(tflite.convert(model, "classifier", name, calibration=noise)) for name in tflite.VARIANTS}
    assert 0.48 < size["float16"] / size["float32"] < 0.54
    assert size["int8"] <= 0.28 * size["float32"] and size["dynamic"] <= 0.28 * size["float32"]


@pytest.mark.parametrize("variant", [pytest.param("float16", marks=pytest.mark.slow), "int8"])
def test_same_model_same_file(files, models, inputs, variant):
    again = tflite.convert(models["thumbnet"], "thumbnet", variant, calibration=inputs["thumbnet"][:24])
    assert again == files["thumbnet", variant]


def test_conversion_leaves_the_model_alone_and_says_nothing(models, images):
    model = models["thumbnet"]
    before, names = probabilities(model, images), [layer.name for layer in model.layers]
    with silent():
        tflite.convert(model, "thumbnet", "int8", calibration=[images[:4], images[4]])
    assert [layer.name for layer in model.layers] == names
    np.testing.assert_array_equal(probabilities(model, images), before)


def test_teacher(tiny_run, images):
    teacher = tiny_run.load_model("original", "teacher")
    scores = infer(tflite.convert(teacher, "teacher", "float32"), images)
    np.testing.assert_allclose(scores, probabilities(teacher, images), atol=1e-4)


@pytest.mark.parametrize(("kind", "ratio"), [("bicubic", 2), ("bicubic", 4), ("area", 4), ("learned", 4)])
def test_every_downscaler_to_its_edges(photos, kind, ratio):
    keras.utils.set_random_seed(1)
    model = downscaler.build(kind, 48, ratio, 4)
    shots = photos(6, 48)
    expected = thumbnails(model, shots)
    for variant, levels in (("float32", 1), ("int8", 2)):
        content = tflite.convert(model, "downscaler", variant, calibration=shots)
        assert np.abs(infer(content, shots) - expected).max() <= levels, variant


@pytest.mark.parametrize(("bits", "step"), [(0, 1), (4, 17)])
def test_thumbnails_of_other_bits(photos, bits, step):
    model = downscaler.build("area", 32, 2, bits=bits)
    shots = photos(3, 32)
    found = infer(tflite.convert(model, "downscaler", "float32"), shots)
    assert np.abs(found - thumbnails(model, shots)).max() <= (0.5 if bits == 0 else 0)
    assert (found % step == 0).all() and len(np.unique(found)) > 8
    with pytest.raises(UserError, match=f"int8 needs thumbnails of 8 bits; .* Received: --thumbnail_bits={bits}"):
        tflite.convert(model, "downscaler", "int8", calibration=shots)


@pytest.mark.slow
def test_vgg_and_bicubic_as_one_model(photos):
    keras.utils.set_random_seed(0)
    cfg = Config(run_dir="unused", dataset="fine_detail", image_size=64, ratio=2, backbone="vgg11", width=0.0625)
    student, _ = thumbnet.build_student(cfg, thumbnet.build_teacher(cfg, 4))
    student.get_layer("logits").set_weights([np.random.default_rng(0).normal(0, 1, (256, 4)), np.zeros(4)])
    model = thumbnet.build_shipped(cfg, "bicubic", thumbnet.build_downscaler(cfg, "bicubic"), student)
    shots = photos(8, 64)
    expected = probabilities(model, shots)
    for variant, tolerance in (("float32", 1e-2), ("int8", 0.06)):
        scores = infer(tflite.convert(model, "thumbnet", variant, calibration=shots), shots)
        np.testing.assert_allclose(scores / (256 if variant == "int8" else 1), expected, atol=tolerance)


@pytest.mark.parametrize("calibration", [None, [], iter(())])
def test_no_calibration_images(models, calibration):
    with pytest.raises(UserError, match="training images to calibrate with.*Received: none"):
        tflite.convert(models["thumbnet"], "thumbnet", "int8", calibration=calibration)


def test_wrong_arguments(models, images):
    with pytest.raises(ValueError, match="must be uint8 .16, 16, 3.. Received: uint8 .4, 32, 32, 3"):
        tflite.convert(models["classifier"], "classifier", "int8", calibration=[images[:4]])
    with pytest.raises(ValueError, match="Received: 'student', 'int4'"):
        tflite.convert(models["classifier"], "student", "int4")


def test_check_finds_what_differs(files):
    shapes = (32, 32, 3), (3,)
    tflite.check(files["thumbnet", "int8"], "thumbnet", *shapes, integer=True)
    with pytest.raises(RuntimeError, match="only integer tensors"):
        tflite.check(files["thumbnet", "dynamic"], "thumbnet", *shapes, integer=True)
    with pytest.raises(RuntimeError, match="inputs and outputs"):
        tflite.check(files["thumbnet", "float32"], "downscaler", *shapes, integer=False)
    with pytest.raises(RuntimeError, match="inputs and outputs"):
        tflite.check(files["thumbnet", "float32"], "thumbnet", (32, 32, 3), (4,), integer=False)


LABELS = ["Gänseblümchen", "löwenzahn, 蒲公英", "red disc"]


def labels_in(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read("labels.txt").decode().split("\n")


@pytest.mark.parametrize("variant", tflite.VARIANTS)
def test_metadata_round_trip(files, images, variant):
    content = files["thumbnet", variant]
    labelled = tflite_metadata.add(content, "flowers", "Tells flowers apart", LABELS)
    assert labels_in(labelled) == LABELS
    assert labelled == tflite_metadata.add(content, "flowers", "Tells flowers apart", LABELS)
    np.testing.assert_array_equal(infer(labelled, images[:6]), infer(content, images[:6]))
    tflite.check(labelled, "thumbnet", (32, 32, 3), (3,), integer=variant == "int8")


def test_metadata_can_be_replaced(files):
    once = tflite_metadata.add(files["thumbnet", "int8"], "one", "the first", CLASSES)
    twice = tflite_metadata.add(once, "two", "the second", LABELS)
    assert labels_in(twice) == LABELS
    names = [entry.name for entry in schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(twice, 0)).metadata]
    assert names.count(b"TFLITE_METADATA") == 1 and b"min_runtime_version" in names


def test_metadata_says_what_goes_in_and_comes_out(files):
    content = tflite_metadata.add(files["downscaler", "int8"], "small", "Makes thumbnails")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    entry = next(entry for entry in model.metadata if entry.name == b"TFLITE_METADATA")
    metadata = model.buffers[entry.buffer].data.tobytes()
    assert metadata[4:8] == b"M001"
    for text in (b"small", b"Makes thumbnails", b"32 x 32 pixels", b"16 x 16 pixels", b"thumbnail", b"1.0.0"):
        assert text in metadata
    assert not zipfile.is_zipfile(io.BytesIO(content))  # a thumbnail has no classes
    # what is stated of the output's scale would turn the bytes into other numbers: they are said to be the pixels
    assert normalization(content, "output") is None and b"the bytes as they are" in metadata
    plain = tflite_metadata.add(files["downscaler", "float32"], "small", "Makes thumbnails")
    assert normalization(plain, "output") == (0, 1)


@pytest.mark.parametrize(("name", "variant"), [("thumbnet", "int8"), ("classifier", "int8"), ("thumbnet", "dynamic")])
def test_metadata_and_scale_together_leave_a_pixel_as_it_is(files, name, variant):
    content = tflite_metadata.add(files[name, variant], "flowers", "Tells flowers apart", LABELS)
    mean, std = normalization(content, "input")
    scale, zero_point = Interpreter(model_content=content).get_input_details()[0]["quantization"]
    for pixel in (0, 7, 255):
        value = (pixel - mean) / std
        # as Android Studio's code does it: uint8 is quantised only where the tensor states a scale
        assert (value / scale + zero_point if scale else value) == pixel


def test_weights_stay_aligned(files):
    content = tflite_metadata.add(files["thumbnet", "float32"], "flowers", "Tells flowers apart", LABELS)
    model = schema.Model.GetRootAsModel(content, 0)
    tables = [model.Buffers(i)._tab for i in range(model.BuffersLength())]
    starts = [table.Vector(table.Offset(4)) for table in tables if table.Offset(4)]
    assert len(starts) > 10 and not any(start % 16 for start in starts)


@pytest.mark.parametrize("foreign", [b"", b"PK\x03\x04 a zip", b"\x1c\x00\x00\x00TFL3", b"\x89PNG" * 40])
def test_foreign_bytes(foreign):
    with pytest.raises(UserError, match="whole TFLite file is expected"):
        tflite_metadata.add(foreign, "x", "y", LABELS)


def test_truncated_file(files):
    content = files["thumbnet", "float32"]
    with pytest.raises(UserError, match="whole TFLite file is expected"):
        tflite_metadata.add(content[: len(content) // 2], "x", "y", LABELS)


def test_wrong_labels(files):
    with pytest.raises(ValueError, match="needs 3 labels. Received: 2"):
        tflite_metadata.add(files["thumbnet", "int8"], "x", "y", LABELS[:2])
    with pytest.raises(UserError, match=r"one line of text.*Received: 'two\\nlines'"):
        tflite_metadata.add(files["thumbnet", "int8"], "x", "y", [*LABELS[:2], "two\nlines"])
