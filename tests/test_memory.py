"""The warning of a batch that may not fit: what is counted, and that it is near to what a step takes."""

import json
import logging
import subprocess
import sys

import keras
import pytest
import tensorflow as tf
from keras import layers

from thumbnet_tf import memory
from thumbnet_tf.config import Config

_STEP = """
import json, sys
import keras, tensorflow as tf
from thumbnet_tf import backbones, memory, peak_memory, training_layers
from thumbnet_tf.trainer import Trainer
size, batch, width = 96, 192, 0.5
student = training_layers.for_training(backbones.build("resnet18", size, 5, width))
trainer = Trainer(student, loss_weights={"cl": 1.0})
trainer.compile(optimizer=keras.optimizers.AdamW(1e-3))
trainer.optimizer.build(trainer.trainable_variables)
images = tf.random.stateless_uniform((batch, size, size, 3), (1, 2), 0, 255)
labels = tf.range(batch, dtype=tf.int64) % 5
step = tf.function(trainer.train_step)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = peak_memory._status("VmRSS")
for _ in range(2):
    step((images, labels))
print(json.dumps([peak_memory._status("VmHWM") - before, memory.step_bytes([student], batch)]))
"""


@pytest.fixture
def model() -> keras.Model:
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, 2, padding="same")(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(image, {"logits": layers.Dense(2)(layers.GlobalAveragePooling2D()(x)), "stage": x})


def test_outputs_of_all_layers_are_counted_in_their_own_precision(model):
    # three maps of 4 x 4 x 4, the pooled 4 and the logits 2, of 4 bytes each
    assert memory.step_bytes([model], 1) == 4 * (3 * 64 + 4 + 2)
    assert memory.step_bytes([model, model], 10) == 20 * memory.step_bytes([model], 1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        image = keras.Input((8, 8, 3))
        half = keras.Model(image, layers.Conv2D(4, 3, padding="same")(image))
    finally:
        keras.config.set_dtype_policy("float32")
    assert memory.step_bytes([half], 1) == 2 * 8 * 8 * 4


def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert memory.free_bytes() is None  # as where the system tells nothing
    (tmp_path / "meminfo").write_text("MemTotal:  4000 kB\nMemAvailable:  3000 kB\nHugePages_Total:   0\n")
    assert memory.free_bytes() == 3000 * 1024
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() == 3000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    assert memory.free_bytes() == 1000000 - 900000 + 300000


def test_a_batch_that_may_not_fit_is_foretold(model, monkeypatch, caplog):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    cfg = Config(batch_size=1000, image_size=16, width=0.5)
    needed = memory.step_bytes([model], 1000)
    with caplog.at_level(logging.WARNING, memory.__name__):
        for free in (None, needed):
            monkeypatch.setattr(memory, "free_bytes", lambda free=free: free)
            memory.warn_of_large_batch(cfg, [model])
        memory.warn_of_large_batch(cfg, [model], machines=2)
        assert not caplog.records
        monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
        memory.warn_of_large_batch(cfg, [model], machines=2)
        assert not caplog.records
        memory.warn_of_large_batch(cfg, [model])
    (record,) = caplog.records
    assert "lower --batch_size (and --learning_rate with it)" in record.message
    assert "Received: --batch_size=1000 --image_size=16 --width=0.5" in record.message


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the largest resident memory is Linux' record")
def test_the_estimate_is_near_to_what_a_step_takes():
    done = subprocess.run([sys.executable, "-c", _STEP], capture_output=True, text=True, check=True)
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    assert 0.5 < measured / estimated < 1.5
