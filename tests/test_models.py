"""Backbones, downscalers, decoder and assembly: costs as published, shapes, shared weights, what ships."""

import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_helpers import area

from thumbnet_tf import backbones, costs, downscaler, thumbnet
from thumbnet_tf.config import Config, UserError

# computed reference costs, 120 classes: G multiply-adds, M parameters
REFERENCE = [
    ("resnet18", 224, 1.814, 11.24),
    ("resnet18", 112, 0.485, 11.24),
    ("resnet18", 56, 0.129, 11.24),
    ("resnet34", 224, 3.663, 21.35),
    ("resnet34", 56, 0.267, 21.35),
    ("resnet50", 224, 4.087, 23.75),
    ("resnet50", 112, 1.076, 23.75),
    ("resnet50", 56, 0.297, 23.75),
]


def resnet_macs(blocks: tuple[int, ...], bottleneck: bool, size: int, classes: int) -> int:
    """Adds up k * k * c_in * c_out * h * w over the table of ResNet's stages (He et al. 2015, table 1)."""
    side, channels = math.ceil(size / 2), 64
    total = 7 * 7 * 3 * 64 * side**2
    side = math.ceil(side / 2)  # the pooling
    for stage, count in enumerate(blocks):
        width = 64 * 2**stage
        for block in range(count):
            before, side = side, math.ceil(side / 2) if stage and not block else side
            out = 4 * width if bottleneck else width
            if bottleneck:  # 1 x 1, 3 x 3 that halves, 1 x 1
                total += channels * width * before**2 + 9 * width * width * side**2 + width * out * side**2
            else:
                total += 9 * channels * width * side**2 + 9 * width * width * side**2
            if channels != out:  # the shortcut
                total += channels * out * side**2
            channels = out
    return total + channels * classes


@pytest.mark.parametrize(("name", "size", "gmacs", "mparams"), REFERENCE)
def test_costs_equal_the_reference_table(name, size, gmacs, mparams):
    model = backbones.build(name, size, 120)
    blocks = (2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3)
    assert costs.macs(model) == resnet_macs(blocks, name == "resnet50", size, 120)
    assert costs.macs(model) / 1e9 == pytest.approx(gmacs, rel=0.01)
    assert costs.parameters(model) / 1e6 == pytest.approx(mparams, rel=0.01)


@pytest.mark.parametrize(
    ("size", "gmacs"), [pytest.param(224, 7.485, marks=pytest.mark.slow), (112, 1.871), (56, 0.453)]
)
def test_vgg_convolutions_equal_the_reference_table(size, gmacs):
    model = backbones.build("vgg11", size, 120)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    total = sum(np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:3]) for layer in convolutions)
    assert total / 1e9 == pytest.approx(gmacs, rel=0.01)
    dense = 120 * 4096 + 4096**2 + 512 * (size // 32) ** 2 * 4096
    assert costs.macs(model) == total + dense


@pytest.mark.parametrize("size, ratio", [(224, 4), (224, 2), (128, 2), (96, 4)])
def test_downscaler_is_cheap(size, ratio):
    thumbnail_macs = costs.macs(backbones.build("resnet18", size // ratio, 1000))
    macs = costs.macs(downscaler.build("learned", size, ratio))
    assert macs <= 0.12 * thumbnail_macs
    assert macs > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11"])
@pytest.mark.parametrize("batch", [1, 3])
def test_backbones_give_logits_and_taps(name, batch, photos):
    model = backbones.build(name, 64, 7, 0.125)
    outputs = model(photos(batch, 64))
    assert outputs["logits"].shape == (batch, 7)
    assert len(outputs) == (6 if name == "vgg11" else 5)
    sizes = [outputs[f"stage{i}"].shape[1] for i in (1, 2, 3, 4)]
    assert sizes == ([32, 16, 8, 4] if name == "vgg11" else [16, 8, 4, 2])
    logits = outputs["logits"].numpy()
    assert np.isfinite(logits).all()
    assert logits.std() > 1e-3


def test_backbone_is_flat_and_plain():
    plain = (
        "InputLayer",
        "Rescaling",
        "Conv2D",
        "BatchNormalization",
        "ReLU",
        "MaxPooling2D",
        "Add",
        "Flatten",
        "Dense",
        "GlobalAveragePooling2D",
    )
    for name in ("resnet18", "resnet50", "vgg11"):
        assert {type(layer).__name__ for layer in backbones.build(name, 64, 3, 0.0625).layers} <= set(plain)


def test_networks_normalise_inside():
    # (p - 128) / 128: 0 -> -1, 128 -> 0, 255 -> 127/128
    rescaling = backbones.build("resnet18", 32, 2, 0.0625).get_layer("rescaling")
    np.testing.assert_array_equal(rescaling(np.array([[0, 128, 255]], np.uint8)), [[-1, 0, 127 / 128]])


def test_too_small_for_vgg_is_one_line():
    with pytest.raises(UserError, match="VGG-11 needs a thumbnail of at least 32 pixels"):
        backbones.build("vgg11", 16, 3)
    with pytest.raises(UserError, match="Received: 'alexnet'"):
        backbones.build("alexnet", 64, 3)


@pytest.mark.parametrize("ratio", [2, 4])
@pytest.mark.parametrize("kind", ["learned", "area", "bicubic"])
def test_thumbnails_are_8_bit_images(kind, ratio, photos):
    images = photos(3, 64)
    model = downscaler.build(kind, 64, ratio)
    thumbnails = model(images).numpy()
    assert thumbnails.shape == (3, 64 // ratio, 64 // ratio, 3)
    assert thumbnails.dtype == np.float32
    np.testing.assert_array_equal(thumbnails, np.rint(thumbnails))
    assert thumbnails.min() >= 0
    assert thumbnails.max() <= 255
    np.testing.assert_array_equal(model(images[:1])[0], thumbnails[0])
    assert np.abs(thumbnails - area(images, ratio)).mean() < (60 if kind == "learned" else 8)


def test_area_is_the_rounded_mean(photos):
    images = photos(2, 32)
    mean = area(images, 4)
    thumbnails = downscaler.build("area", 32, 4)(images).numpy()
    assert np.abs(thumbnails - mean).max() <= 0.5 + 1e-4


def test_bicubic_is_antialiased(photos):
    images = photos(2, 32).astype(np.float32)
    expected = tf.image.resize(images, (8, 8), "bicubic", antialias=True)
    thumbnails = downscaler.build("bicubic", 32, 4, bits=0)(images)
    np.testing.assert_allclose(thumbnails, tf.clip_by_value(expected, 0, 255), atol=1e-3)


@pytest.mark.parametrize(("bits", "levels"), [(0, None), (8, 256), (3, 8)])
def test_rounding_bits(bits, levels, photos):
    thumbnails = downscaler.build("area", 64, 2, bits=bits)(photos(4, 64)).numpy()
    count = len(np.unique(thumbnails))
    assert count > 1000 if levels is None else 4 < count <= levels


def test_rounding_passes_gradients_inside_the_range_only():
    layer = downscaler.ToThumbnail(8)
    x = tf.Variable([[-20.0, 0.4, 100.6, 254.8, 300.0]])
    with tf.GradientTape() as tape:
        y = layer(x)
        value = tf.reduce_sum(y * [[1.0, 2.0, 3.0, 4.0, 5.0]])
    np.testing.assert_array_equal(y, [[0, 0, 101, 255, 255]])
    np.testing.assert_array_equal(tape.gradient(value, x), [[0, 2, 3, 4, 0]])


def test_student_starts_from_the_teacher():
    cfg = Config(width=0.125)
    teacher = thumbnet.build_teacher(cfg, 5)
    for layer in teacher.layers:  # no value that a fresh student would have by chance
        layer.set_weights([value + 0.25 for value in layer.get_weights()])
    student, anew = thumbnet.build_student(cfg, teacher)
    assert anew == []
    compared = 0
    for layer in student.layers:
        for mine, theirs in zip(layer.get_weights(), teacher.get_layer(layer.name).get_weights(), strict=True):
            if mine.shape != theirs.shape:  # of the last stage, what meets padding only is left out (test_trimming.py)
                assert layer.name.startswith("stage4")
                first = theirs.shape[0] // 2 - mine.shape[0] // 2
                theirs = theirs[first:, first:][: mine.shape[0], : mine.shape[1]]
            np.testing.assert_array_equal(mine, theirs)
            compared += 1
    assert compared == len(teacher.weights) > 50


def test_vgg_student_tells_which_layers_start_anew():
    teacher = thumbnet.build_teacher(Config(backbone="vgg11", image_size=128, width=0.0625), 5)
    student, anew = thumbnet.build_student(Config(backbone="vgg11", image_size=128, width=0.0625), teacher)
    assert anew == ["dense1"]
    np.testing.assert_array_equal(
        student.get_layer("logits").get_weights()[0], teacher.get_layer("logits").get_weights()[0]
    )


@pytest.mark.parametrize(
    ("backbone", "size", "ratio", "tap"),
    [
        ("resnet18", 96, 4, "stage1"),
        ("resnet18", 224, 4, "stage3"),
        ("resnet50", 64, 2, "stage4"),
        ("vgg11", 224, 4, "stage4"),
    ],
)
def test_decoder_fits_the_teachers_map(backbone, size, ratio, tap):
    cfg = Config(backbone=backbone, image_size=size, ratio=ratio, width=0.0625)
    teacher = thumbnet.build_teacher(cfg, 3)
    student, _ = thumbnet.build_student(cfg, teacher)
    decoder = thumbnet.build_decoder(student, teacher, tap)
    assert decoder.input.shape == student.output[tap].shape
    assert decoder.output.shape == teacher.output[tap].shape


def test_a_teacher_alone_needs_no_thumbnails():
    cfg = Config(backbone="vgg11", image_size=32, ratio=4, width=0.0625, methods=())
    thumbnet.check(cfg)
    with pytest.raises(UserError, match=r"can't be laid on a thumbnail of 8 pixels.*call\(\)\. Computed output"):
        thumbnet.check(dataclasses.replace(cfg, methods=("bicubic",)))


@pytest.mark.parametrize(("method", "built"), [("slim", []), ("bicubic_kd", ["S"]), ("thumbnet", ["S", "D"])])
def test_only_what_a_method_needs_is_checked(method, built, monkeypatch):
    found = []
    for name, function in (("S", "build_student"), ("D", "build_decoder")):
        build = getattr(thumbnet, function)
        monkeypatch.setattr(thumbnet, function, lambda *args, n=name, b=build: found.append(n) or b(*args))
    thumbnet.check(Config(image_size=32, ratio=2, width=0.0625, methods=(method,)))
    assert found == built


@pytest.mark.parametrize(("kind", "size", "ratio"), [("lanczos", 64, 2), ("learned", 64, 8), ("bicubic", 63, 2)])
def test_other_downscalers_are_refused(kind, size, ratio):
    with pytest.raises(UserError, match=rf"ratio 2 or 4 .* Received: '{kind}', {ratio} and {size}$"):
        downscaler.build(kind, size, ratio)


def test_decoder_ends_in_depth_to_space(photos):
    cfg = Config(width=0.0625)
    teacher = thumbnet.build_teacher(cfg, 3)
    student, _ = thumbnet.build_student(cfg, teacher)
    decoder = thumbnet.build_decoder(student, teacher, "stage1")
    before = keras.Model(decoder.input, decoder.get_layer("decoder_2_conv").output)
    x = tf.random.stateless_normal((2, *decoder.input.shape[1:]), (1, 2))
    np.testing.assert_array_equal(decoder(x), tf.nn.depth_to_space(before(x), 4))


def test_unknown_tap_is_one_line():
    cfg = Config(width=0.0625)
    teacher = thumbnet.build_teacher(cfg, 3)
    student, _ = thumbnet.build_student(cfg, teacher)
    with pytest.raises(UserError, match="--fm_tap must be one of stage1, stage2, stage3, stage4 for this backbone"):
        thumbnet.build_decoder(student, teacher, "stage5")


def test_another_architecture_is_refused():
    with pytest.raises(UserError, match="don't match the configured backbone"):
        thumbnet.copy_weights(backbones.build("resnet18", 32, 3, 0.0625), backbones.build("resnet34", 32, 3, 0.0625))


@pytest.mark.parametrize("kind", ["learned", "bicubic"])
def test_what_ships_is_the_downscaler_and_the_student_only(kind, photos):
    cfg = Config(width=0.0625, image_size=64)
    teacher = thumbnet.build_teacher(cfg, 3)
    student, _ = thumbnet.build_student(cfg, teacher)
    small = thumbnet.build_downscaler(cfg, kind)
    for layer in [*small.layers, *student.layers]:
        layer.set_weights([value + 0.01 * i for i, value in enumerate(layer.get_weights())])
    shipped = thumbnet.build_shipped(cfg, kind, small, student)
    assert {v.path for v in shipped.variables} == {v.path for v in [*small.variables, *student.variables]}
    assert not any(isinstance(layer, keras.Model) for layer in shipped.layers)
    images = photos(3, 64)
    outputs = shipped(images)
    thumbnails = small(images)
    np.testing.assert_array_equal(outputs["thumbnail"], thumbnails)
    np.testing.assert_allclose(outputs["logits"], student(thumbnails)["logits"], atol=1e-5)
    np.testing.assert_array_equal(outputs["logits"], shipped(tf.constant(images, tf.float32))["logits"])


def test_band_filters_start_where_the_average_is_blind():
    kernel = downscaler.build("learned", 64, 4).get_layer("downscaler_1_conv").kernel.numpy()
    assert kernel.shape == (7, 7, 3, 16)
    grey = kernel.sum(2)
    np.testing.assert_allclose(grey.sum((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(np.sqrt((grey**2).sum((0, 1))), 1, rtol=1e-5)
    spectrum = np.abs(np.fft.fft2(grey, (32, 32), axes=(0, 1))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(32), np.fft.fftfreq(32)))
    lost = spectrum[frequency > 1 / 8].sum((0,)) / spectrum.sum((0, 1))
    assert lost.min() > 0.5
    assert lost.mean() > 0.85
    random = downscaler.build("learned", 64, 4, filters="random").get_layer("downscaler_1_conv").kernel.numpy()
    assert np.abs(random.sum((0, 1, 2))).max() > 0.1


def test_downscaler_without_residual_starts_as_area(photos):
    images = photos(2, 32)
    learned = downscaler.build("learned", 32, 4, residual=0.0)(images).numpy()
    assert np.abs(learned - downscaler.build("area", 32, 4)(images).numpy()).max() <= 1  # a tie may round both ways
    visible = downscaler.build("learned", 32, 4, residual=0.3)(images, training=True).numpy()
    assert 5 < np.abs(visible - learned).mean() < 60


@pytest.mark.parametrize("layer", [keras.layers.MaxPooling2D, keras.layers.AveragePooling2D])
def test_pooling_in_a_downscaler_takes_pixels_normalised_too(layer):
    def takers(name: str) -> set[str]:
        image = keras.Input((8, 8, 3))
        thumbnail = downscaler.ToThumbnail()(layer(2, name=name)(image))
        scale, offset = downscaler.FROM_PIXELS
        x = keras.layers.Rescaling(scale, offset=offset)(thumbnail)
        return downscaler.takers_of_pixels(keras.Model(image, keras.layers.Conv2D(2, 1)(x)))

    assert takers("downscaler_pool") == set()
    assert takers("pool") == {"pool"}  # of somebody else's network: nothing is known of what comes behind it
