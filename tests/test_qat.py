"""Fake quantisation of the tf_keras twin, and the fine-tuned TFLite files."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from model_helpers import shipped_model
from run_helpers import CLASSES, IMAGE_SIZE, RATIO

from thumbnet_tf import fake_quant, qat, twin
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline, sources

ROOT = pathlib.Path(__file__).parent.parent
PARTS = {"thumbnet": "image", "downscaler": "image", "classifier": "thumbnail"}
EPOCHS = 2


class TFLite:
    """A TFLite file with its one signature."""

    def __init__(self, content: bytes) -> None:
        self.interpreter = Interpreter(model_content=content, num_threads=1)
        self.interpreter.allocate_tensors()
        (self.name,) = self.interpreter.get_signature_list()
        signature = self.interpreter.get_signature_list()[self.name]
        (self.input,), (self.output,) = signature["inputs"], signature["outputs"]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        run = self.interpreter.get_signature_runner(self.name)
        return np.concatenate([run(**{self.input: image[None]})[self.output] for image in images])

    def kernels(self) -> list[np.ndarray]:
        """Returns the kernels of at least 256 weights: activations have 1 along their first axis."""
        details = self.interpreter.get_tensor_details()
        kernels = [detail["index"] for detail in details if detail["shape"].prod() >= 256 and detail["shape"][0] > 1]
        return [self.interpreter.get_tensor(index) for index in kernels]


@dataclasses.dataclass
class Trained:
    """The tiny run's models and what fine-tuning takes."""

    cfg: Config
    shipped: keras.Model
    batches: tf.data.Dataset
    calibration: np.ndarray

    def finetuned(self, variant: str, **values) -> dict[str, bytes]:
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return qat.finetuned(variant, **{**given, **values})

    def probabilities(self) -> np.ndarray:
        logits = self.shipped(tf.cast(self.calibration, tf.float32), training=False)["logits"]
        return tf.nn.softmax(logits).numpy()

    def thumbnails(self) -> np.ndarray:
        return self.shipped(tf.cast(self.calibration, tf.float32), training=False)["thumbnail"].numpy()


@pytest.fixture(scope="module")
def trained(tiny_run) -> Trained:
    cfg = tiny_run.config()
    split = sources.load(cfg, ("train",)).splits["train"]
    shipped = tiny_run.load_model("thumbnet", "shipped")
    batch = next(iter(pipeline.eval_batches(split, cfg, batch_size=split.num_examples)))
    return Trained(cfg, shipped, pipeline.train_batches(split, cfg, epochs=EPOCHS), batch["image"].numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Returns where the fine-tuned weights are kept."""
    return tmp_path_factory.mktemp("qat") / "new"


@pytest.fixture(scope="module")
def files(trained, folder) -> dict[str, dict[str, bytes]]:
    """Returns the three files of each variant."""
    return {variant: trained.finetuned(variant, folder=folder) for variant in qat.VARIANTS}


def test_ranges_are_those_of_the_activations(trained):
    plain = twin.build(trained.shipped, rounded=False)
    model = fake_quant.quantise(plain, trained.calibration, batch_size=8)
    weights = {layer.name: fake_quant.weights_by_name(layer) for layer in model.layers}
    (name,) = (name for name in weights if name.startswith("quantize_layer"))
    assert weights[name][f"{name}_min"].numpy() == -1.0
    assert weights[name][f"{name}_max"].numpy() == 127 / 128
    for quantised, name, variable in (
        ("quant_stem_conv", "stem_relu", "post_activation"),
        ("quant_stage2_block1_shortcut_conv", "stage2_block1_shortcut_bn", "post_activation"),
        ("quant_stage1_block1_relu", "stage1_block1_relu", "output"),
        ("quant_logits", "logits", "post_activation"),
    ):
        probe = keras.Model(trained.shipped.input, trained.shipped.get_layer(name).output)
        seen = [
            probe(tf.cast(trained.calibration[i : i + 8], tf.float32), training=False).numpy()
            for i in range(0, len(trained.calibration), 8)
        ]
        low = min(np.mean([x.min() for x in seen]), 0)
        high = max(np.mean([x.max() for x in seen]), 0)
        assert weights[quantised][f"{variable}_min"].numpy() == pytest.approx(low, rel=1e-2, abs=1e-3), name
        assert weights[quantised][f"{variable}_max"].numpy() == pytest.approx(high, rel=1e-2, abs=1e-3), name
    kernel = plain.get_layer("stem_conv").kernel.numpy()
    np.testing.assert_allclose(
        weights["quant_stem_conv"]["kernel_max"].numpy(), np.abs(kernel).max(axis=(0, 1, 2)), rtol=1e-6
    )
    ranges = [w.numpy() for named in weights.values() for n, w in named.items() if n.endswith(("_min", "_max"))]
    assert not any(np.isin(np.abs(value), 6.0).any() for value in ranges)


@pytest.mark.parametrize("variant", qat.VARIANTS)
def test_files_keep_the_contract(files, variant):
    side = IMAGE_SIZE // RATIO
    for part, content in files[variant].items():
        model = TFLite(content)
        (given,), (made,) = model.interpreter.get_input_details(), model.interpreter.get_output_details()
        assert (model.name, model.input) == ("serving_default", PARTS[part])
        assert model.output == ("thumbnail" if part == "downscaler" else "probabilities")
        size = side if part == "classifier" else IMAGE_SIZE
        assert (given["dtype"], given["shape"].tolist()) == (np.uint8, [1, size, size, 3])
        shape = [1, side, side, 3] if part == "downscaler" else [1, len(CLASSES)]
        integer = part == "downscaler" or variant == "int8_qat"
        assert (made["dtype"], made["shape"].tolist()) == (np.uint8 if integer else np.float32, shape)
        if variant == "int8_qat":
            assert given["quantization"] == (1 / 128, 128)
            assert made["quantization"] == ((1 / 128, 128) if part == "downscaler" else (1 / 256, 0))
            types = {detail["dtype"] for detail in model.interpreter.get_tensor_details()}
            assert types == {np.uint8, np.int8, np.int32}
    assert set(files[variant]) == set(PARTS)


@pytest.mark.parametrize("variant", qat.VARIANTS)
def test_two_steps_equal_one_and_agree_with_keras(files, trained, variant):
    models = {part: TFLite(content) for part, content in files[variant].items()}
    thumbnails = models["downscaler"](trained.calibration)
    whole = models["thumbnet"](trained.calibration)
    np.testing.assert_array_equal(models["classifier"](thumbnails), whole)
    assert np.abs(thumbnails - trained.thumbnails()).mean() < 1  # of 255
    whole = whole / 256 if variant == "int8_qat" else whole
    np.testing.assert_allclose(whole.sum(-1), 1, atol=0.02)
    difference = np.abs(whole - trained.probabilities())
    assert difference.mean() < {"int8_qat": 0.02, "pruned": 0.06, "clustered": 0.02}[variant]


def test_stored_thumbnails_of_few_bits_are_read_as_the_levels_that_they_stand_for(trained):
    given = trained.calibration[:4]
    model = twin.build(shipped_model(dataclasses.replace(trained.cfg, thumbnail_bits=3).resolved()))
    models = {part: TFLite(content) for part, content in qat._converted(model, "pruned").items()}
    thumbnails = models["downscaler"](given)
    assert len(np.unique(thumbnails)) <= 8 and 36 in thumbnails  # stands for 255 / 7
    np.testing.assert_array_equal(models["classifier"](thumbnails), models["thumbnet"](given))


def test_pruned_and_clustered_kernels(files):
    kernels = {variant: TFLite(files[variant]["classifier"]).kernels() for variant in ("pruned", "clustered")}
    sparse = [np.mean(kernel == 0) for kernel in kernels["pruned"]]
    values = [len(np.unique(kernel)) for kernel in kernels["clustered"]]
    assert len(sparse) == len(values) == 3  # the stem and two of stage 2 are large enough
    assert sparse == pytest.approx([qat.SPARSITY] * 3, abs=0.01)
    assert all(2 < count <= qat.CLUSTERS for count in values)
    assert all(len(np.unique(kernel)) > qat.CLUSTERS for kernel in kernels["pruned"])
    spared = TFLite(files["pruned"]["downscaler"]).kernels()
    assert [np.mean(kernel == 0) for kernel in spared] == [0]


def test_fine_tuning_moves_all_layers(trained, folder, files):
    before, after = twin.build(trained.shipped), twin.build(trained.shipped)
    after.load_weights(folder / "clustered.weights.h5")
    for old, new in zip(before.weights, after.weights, strict=True):
        assert 0 < np.abs(old.numpy() - new.numpy()).max() < 0.1, old.name


@pytest.mark.slow
def test_kept_weights_are_used_again_and_only_for_the_same(files, trained, folder, monkeypatch):
    def no_training(*args, **kwargs):
        raise InterruptedError

    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{v}.weights.h5" for v in qat.VARIANTS)
    monkeypatch.setattr(qat, "_fit", no_training)
    for variant in qat.VARIANTS:
        again = trained.finetuned(variant, folder=folder)
        image = trained.calibration[:3]
        np.testing.assert_array_equal(
            TFLite(again["thumbnet"])(image), TFLite(files[variant]["thumbnet"])(image), err_msg=variant
        )
    other = keras.models.clone_model(trained.shipped)
    other.set_weights([value * 1.01 for value in trained.shipped.get_weights()])
    for values in (
        {"shipped": other},
        {"cfg": dataclasses.replace(trained.cfg, temperature=2.0)},
        {"batches": trained.batches.take(1)},
        {"learning_rate": 1e-6},
        {"folder": None},
    ):
        with pytest.raises(InterruptedError):
            trained.finetuned("pruned", **{"folder": folder, **values})
    (folder / "pruned.weights.h5").write_bytes(b"half a file")
    with pytest.raises(InterruptedError):
        trained.finetuned("pruned", folder=folder)


def test_mistakes(trained):
    with pytest.raises(UserError, match="must be one of int8_qat, pruned, clustered. Received: 'int4'"):
        trained.finetuned("int4")
    with pytest.raises(UserError, match="--thumbnail_bits=8, .* Received: --thumbnail_bits=4"):
        trained.finetuned("int8_qat", cfg=dataclasses.replace(trained.cfg, thumbnail_bits=4))
    with pytest.raises(UserError, match="Received: 0 batches to train on and 24 images"):
        trained.finetuned("pruned", batches=trained.batches.take(0))
    with pytest.raises(UserError, match="0 images to calibrate on"):
        trained.finetuned("int8_qat", calibration=trained.calibration[:0])
    area = shipped_model(Config(image_size=32, ratio=2, width=0.0625), "area")
    with pytest.raises(UserError, match="is for the learned downscaler; leave it out"):
        trained.finetuned("pruned", shipped=area)


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used(tmp_path):
    code = """
import os, sys
import thumbnet_tf.qat, thumbnet_tf.fake_quant, thumbnet_tf.twin
print([name for name in ("tensorflow_model_optimization", "tf_keras") if name in sys.modules])
thumbnet_tf.fake_quant.import_tfmot()
print("tensorflow_model_optimization" in sys.modules, os.environ.get("TF_USE_LEGACY_KERAS"))
import keras, numpy as np
x = keras.Input((4,))
model = keras.Model(x, keras.layers.Dense(2)(x))
model.compile("sgd", "mse")
model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
model.export(sys.argv[1], verbose=False)
print(keras.__version__[0], type(model).__module__.split(".")[0])
"""
    environment = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert run.stdout.splitlines() == ["[]", "True None", "3 keras"], run.stderr


@pytest.mark.slow
def test_int8_is_a_quarter_of_float32_at_real_size(photos):
    cfg = Config(image_size=128, ratio=4, width=0.5, batch_size=8)
    model = shipped_model(cfg)
    images = photos(16, 128)
    batches = tf.data.Dataset.from_tensor_slices({"image": images, "label": np.arange(16) % 5}).batch(8)
    sizes = {
        variant: len(qat.finetuned(variant, cfg, model, batches, images)["thumbnet"])
        for variant in ("int8_qat", "pruned")
    }
    assert sizes["int8_qat"] <= 0.28 * sizes["pruned"]
