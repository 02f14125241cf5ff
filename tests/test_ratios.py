"""Several ratios with one teacher: what is shared, what is recommended, what is refused."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers
from teacher_helpers import SIZE, teacher

from thumbnet_tf.compare import recommendation
from thumbnet_tf.config import FlagError, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.runs import RunDir
from thumbnet_tf.train import train_ratios


def test_ratios_share_one_teacher_and_recommend(own):
    cfg = own(teacher("0..255"), ratios=("2", "4"), image_size=SIZE, methods=("bicubic",), max_drop=0.2)
    text = train_ratios(cfg)
    runs = [RunDir(f"{cfg.run_dir}/ratio{ratio}") for ratio in (2, 4)]
    assert [run.config().ratio for run in runs] == [2, 4]
    a, b = (np.load(run.path / "original" / "logits_test.npy") for run in runs)
    np.testing.assert_array_equal(a, b)
    assert "recommended: ratio 4, bicubic, the cheapest within 20 points of T's" in text
    rows = {int(row["ratio"]): row for row in read_rows(pathlib.Path(cfg.run_dir) / "ratios.csv")}
    saves = int(rows[4]["teacher_macs"]) / int(rows[4]["macs"])
    assert saves > 11
    assert text.endswith(f"; {saves:.1f} times fewer multiply-adds than T")
    dear = [row | {"macs": int(row["teacher_macs"]) + 1} for row in rows.values()]
    assert recommendation(dear, 0.2).endswith("; which saves no multiply-adds: T costs less")
    assert len(list(pathlib.Path(cfg.run_dir).glob("teacher_cache/validation-*"))) == 1  # of both ratios
    with pytest.raises(FlagError, match="--ratios takes a list of 2 and 4. Received: 2,3"):
        own(ratios=("2", "3"))


def test_ratios_that_can_be_compared_by_no_one_are_told_at_once(own, monkeypatch):
    with pytest.raises(FlagError, match="--ratios needs a method to compare at them"):
        train_ratios(own(teacher(), ratios=("2", "4"), methods=()))
    workers = {"cluster": {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
    with pytest.raises(FlagError, match="--ratios works on one machine"):
        train_ratios(own(ratios=("2", "4"), strategy="auto"))


def test_a_ratio_that_is_too_much_for_t_is_told_before_the_first_is_trained(own):
    image = keras.Input((SIZE, SIZE, 3))
    x = layers.Conv2D(4, 3, 2)(layers.Conv2D(4, 3, 2)(image))  # 7 x 7; of 16 px 3 x 3, of 8 px 1 x 1
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x))
    cfg = own(keras.Model(image, layers.Dense(3)(x)), ratios=("2", "4"))
    with pytest.raises(UserError, match="can't be laid on a thumbnail of 8 pixels; raise --image_size, lower --rat"):
        train_ratios(cfg)
    assert not (pathlib.Path(cfg.run_dir) / "ratio2" / "config.json").exists()
