"""Tests of sending thumbnails: bytes, accuracy and the JPEG round trip of training are the codec's own."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
from data_helpers import by_pillow
from PIL import Image
from run_helpers import IMAGE_SIZE, RATIO

from thumbnet_tf import jpeg, preprocess, wire
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import load_parts
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.runs import RunDir
from thumbnet_tf.wire import Options

SMALL = IMAGE_SIZE // RATIO


def pillow(image: np.ndarray, *args, **options) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, *args, **options)
    return content.getvalue()


# --- the encoder


@pytest.mark.parametrize("half_colour", [False, True])
@pytest.mark.parametrize("quality", [70, 95])
def test_jpegs_are_as_small_as_libjpegs_optimised_ones(photos, quality, half_colour):
    subsampling = "4:2:0" if half_colour else "4:4:4"
    for image in photos(3, 24):
        data = jpeg.encode(image, quality, half_colour=half_colour).numpy()
        assert len(data) == len(pillow(image, "JPEG", quality=quality, optimize=True, subsampling=subsampling))
        plain = tf.io.encode_jpeg(image, quality=quality, chroma_downsampling=half_colour).numpy()
        assert len(data) < len(plain) - 200
        np.testing.assert_array_equal(by_pillow(data), preprocess.decode_image(tf.constant(data)))


@pytest.mark.parametrize("count", [1, 3])
def test_through_jpeg_gives_the_codecs_values_and_an_identity_gradient(photos, count):
    images = photos(count, 24)
    expected = np.stack([preprocess.decode_image(jpeg.encode(image, 60)).numpy() for image in images])
    assert np.abs(expected.astype(int) - images).max() > 10  # the codec did something
    thumbnails = tf.constant(images + np.float32(0.3))  # rounded on its way
    weights = tf.random.stateless_normal(thumbnails.shape, (1, 2))

    @tf.function
    def value_and_gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = jpeg.through_jpeg(x, 60)
            loss = tf.reduce_sum(weights * y)
        return y, tape.gradient(loss, x)

    for run in (value_and_gradient, value_and_gradient.python_function):
        values, gradient = run(thumbnails)
        assert values.dtype == tf.float32
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(gradient, weights)


# --- training


def make_trainer(quality: int, method: str = "thumbnet"):
    cfg = Config(
        image_size=32, ratio=2, width=0.0625, fm_tap="stage1", downscaler_width=4, thumbnail_jpeg=quality, w_mm=1.0
    )
    keras.utils.set_random_seed(7)
    teacher = build_trainer("original", cfg, 3, None).student
    trainer = build_trainer(method, cfg, 3, teacher)
    trainer.compile(optimizer=build_optimizer(cfg, 0.01, 10, trainer.trainable_variables))
    return trainer


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("method", ["bicubic", "thumbnet"])
def test_only_training_shows_the_student_jpegs(photos, method):
    trainer, images = make_trainer(50, method), photos(4, 32).astype(np.float32)
    small = trainer.downscaler(images, training=False)
    np.testing.assert_array_equal(
        trainer(images, training=False)["logits"], trainer.student(small, training=False)["logits"]
    )
    trainer.downscaler.trainable = trainer.student.trainable = False  # frozen batch statistics: comparable outputs
    outputs = trainer(images, training=True)
    np.testing.assert_array_equal(outputs["thumbnail"], small)
    lossy = trainer.student(jpeg.through_jpeg(small, 50))["logits"]
    np.testing.assert_allclose(outputs["logits"], lossy, rtol=1e-5)
    assert np.abs(lossy - trainer.student(small)["logits"]).max() > 1e-3


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.slow
def test_fit_trains_the_downscaler_behind_jpegs(photos):
    trainer = make_trainer(70)
    before = [v.numpy() for v in trainer.downscaler.trainable_variables]
    trainer.fit(photos(6, 32), np.array([0, 1, 2, 2, 1, 0]), batch_size=3, verbose=0)
    after = [v.numpy() for v in trainer.downscaler.trainable_variables]
    assert min(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0


def test_old_runs_have_no_jpeg_and_qualities_are_bounded():
    assert Config.from_json('{"seed": 1}').thumbnail_jpeg == 0
    with pytest.raises(FlagError, match="--thumbnail_jpeg must be 0 to 100. Received: 101"):
        Config(thumbnail_jpeg=101)


# --- the measurement


def independent(run: RunDir, method: str, split: sources.Split) -> dict[str, tuple[list[int], list[int]]]:
    """Returns bytes and predicted classes by encoding, one image at a time, eagerly."""
    small, network = load_parts(run, method)
    decode = preprocess.decode_image

    def predict(thumbnail) -> int:
        return int(np.argmax(network(tf.cast(thumbnail, tf.float32), training=False)["logits"]))

    def shrink(image) -> tf.Tensor:
        return small(tf.cast(image[None], tf.float32), training=False)

    found: dict[str, tuple[list[int], list[int]]] = {}
    for index in range(split.num_examples):
        photo = split.store.get(index)
        crop = preprocess.eval_crop(photo, IMAGE_SIZE, 0.875)
        thumbnail = shrink(crop)[0].numpy().astype(np.uint8)
        files = {
            "png": tf.io.encode_png(thumbnail, compression=9).numpy(),
            "webp_lossless": pillow(thumbnail, "WEBP", lossless=True, quality=100, method=6),
            "webp85": pillow(thumbnail, "WEBP", quality=85, method=6),
            **{f"jpeg{q}": jpeg.encode(thumbnail, q).numpy() for q in (95, 85, 70)},
        }
        answers = {name: (len(data), predict(decode(tf.constant(data))[None])) for name, data in files.items()}
        data = jpeg.encode(crop, 85, half_colour=True)
        answers["full_jpeg85"] = len(data.numpy()), predict(shrink(decode(data)))
        data = jpeg.encode(photo, 85, half_colour=True)
        seen = preprocess.eval_crop(decode(data), IMAGE_SIZE, 0.875)
        answers["original_jpeg85"] = len(data.numpy()), predict(shrink(seen))
        answers["lossless"] = 0, predict(thumbnail[None])
        for name, (size, predicted) in answers.items():
            found.setdefault(name, ([], []))[0].append(size)
            found[name][1].append(predicted)
    return found


@pytest.mark.parametrize(("method", "split"), [("thumbnet", "test"), ("bicubic", "validation")])
def test_rows_are_what_each_image_alone_gives(run_copy, capsys, method, split):
    wire.main(Options(run_dir=str(run_copy.path), method=method, split=split, uplink_mbps=2.0))
    printed = capsys.readouterr().out.splitlines()
    rows = read_rows(run_copy.path / method / "wire.csv")
    data = sources.load(run_copy.config(), (split,)).splits[split]
    assert data.num_examples % run_copy.config().batch_size > 0  # a last batch with padding
    expected = independent(run_copy, method, data)
    lossless = expected.pop("lossless")[1]
    labels = data.labels
    assert [row["encoding"] + row["quality"] for row in rows] == list(expected)
    means = {name: np.mean(sizes) for name, (sizes, _) in expected.items()}
    for row, (name, (sizes, predicted)) in zip(rows, expected.items(), strict=True):
        assert tuple(row) == wire.COLUMNS
        assert (row["method"], row["split"], row["examples"]) == (method, split, str(data.num_examples))
        assert float(row["bytes_mean"]) == pytest.approx(means[name], abs=0.05)
        assert float(row["bytes_p95"]) == pytest.approx(np.percentile(sizes, 95), abs=0.05)
        assert float(row["ratio_to_full_jpeg"]) == pytest.approx(means["full_jpeg85"] / means[name], abs=1e-3)
        assert float(row["ratio_to_original_jpeg"]) == pytest.approx(means["original_jpeg85"] / means[name], abs=1e-3)
        assert float(row["top1"]) == pytest.approx(np.mean(predicted == labels), abs=1e-6)
        lost = 100 * (np.mean(lossless == labels) - np.mean(predicted == labels))
        assert float(row["top1_lost_points"]) == pytest.approx(lost, abs=1e-3)
        assert float(row["agreement"]) == pytest.approx(np.mean(np.equal(predicted, lossless)), abs=1e-6)
        assert float(row["encode_ms"]) > 0 and float(row["decode_ms"]) > 0
    assert [row["agreement"] for row in rows[:2]] == ["1.000000"] * 2  # lossless files change nothing
    assert rows[0]["top1_lost_points"] == "0.0000"
    assert printed[0].startswith("encoding") and printed[0].endswith("send ms")
    assert printed[1].split()[-1] == f"{float(rows[0]['bytes_mean']) * 8 / 2000:.3f}"
    assert printed[-1] == f"{method}, {split} split, {data.num_examples} images, 2 Mbit/s"


def test_top1_is_that_of_evaluate_and_splits_stand_side_by_side(run_copy):
    evaluated = {(row["method"], row["split"]): row["top1"] for row in read_rows(run_copy.path / "results.csv")}
    for split in ("validation", "test", "test"):
        wire.main(Options(run_dir=str(run_copy.path), split=split))
    rows = read_rows(run_copy.path / "thumbnet" / "wire.csv")
    assert [row["split"] for row in rows] == ["validation"] * 8 + ["test"] * 8
    for row in rows:
        if row["encoding"] == "png":
            assert row["top1"] == evaluated["thumbnet", row["split"]]


def test_mistakes_are_named(run_copy):
    with pytest.raises(UserError, match="reads thumbnails; choose of direct, bicubic, thumbnet. Received: original of"):
        wire.main(Options(run_dir=str(run_copy.path), method="original"))
    with pytest.raises(UserError, match="--method must be one finished in this run"):
        wire.main(Options(run_dir=str(run_copy.path), method="area"))
    with pytest.raises(FlagError, match="--split must be one of validation, test. Received: 'train'"):
        Options(split="train")
    with pytest.raises(FlagError, match="--uplink_mbps must be at least 0.001"):
        Options(uplink_mbps=0)
    assert not list(run_copy.path.rglob("wire.csv"))


def test_pixels_are_rounded_before_they_become_jpeg(photos):
    images = photos(1, 24)
    images = np.clip(images, 1, 255)
    np.testing.assert_array_equal(
        jpeg.through_jpeg(tf.constant(images - np.float32(0.3)), 60),
        jpeg.through_jpeg(tf.constant(images, tf.float32), 60),
    )
