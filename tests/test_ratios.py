"""Several ratios with one teacher: what is shared, what is recommended, what is refused."""

import json
import math
import pathlib

import keras
import numpy as np
import pytest
from keras import layers
from teacher_helpers import SIZE, teacher

from thumbnet_tf.compare import COLUMNS, compare, recommendation
from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.evaluate import COLUMNS as RESULTS
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


def measured(root: pathlib.Path, ratio: int, macs: int, right: dict[str, list[int]]) -> RunDir:
    """Writes what `compare` reads of a run whose label is always 0, and which of its answers are right."""
    run = RunDir(root / f"ratio{ratio}")
    run.path.mkdir()
    run.claim(Config(ratio=ratio, max_drop=0.5))
    for method, answers in right.items():
        run.method(method).mkdir()
        (run.method(method) / "done.json").touch()
        np.save(run.method(method) / "logits_validation.npy", np.eye(2)[1 - np.array(answers)])
    costs = {"original": (1, 2000, 0), "thumbnet": (ratio, macs, 7)}
    rows = [
        {"method": method, "split": split, "ratio": r, "macs": m, "macs_downscaler": extra}
        for split, factor in (("validation", 1), ("test", 99))  # the latter's are not to be read
        for method, (r, m, extra) in ((name, (r * factor, m, e)) for name, (r, m, e) in costs.items())
    ]
    write_rows(run.path / "results.csv", RESULTS, rows)
    return run


def test_losses_against_t_are_those_of_the_paired_answers(tmp_path):
    teacher = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    worse = [1, 1, 1, 1, 1, 0, 0, 0, 1, 0]
    runs = [
        measured(tmp_path, 2, 500, {"original": teacher, "thumbnet": teacher}),
        measured(tmp_path, 4, 100, {"original": teacher, "thumbnet": worse}),
    ]
    compare(str(tmp_path), runs, np.zeros(10, np.int64), 0.25)  # whatever the runs' own --max_drop is
    cheap, equal = read_rows(tmp_path / "ratios.csv")  # the cheapest first
    assert tuple(cheap) == COLUMNS
    assert [cheap[key] for key in COLUMNS[:5]] == ["4", "thumbnet", "107", "2000", "10"]
    assert [equal[key] for key in COLUMNS[:3]] == ["2", "thumbnet", "507"]
    # only T is right for 3, only S for 1: 3.5 against 1.5 of 12
    assert [float(cheap[key]) for key in ("top1", "teacher_top1", "drop")] == pytest.approx([0.6, 0.8, 0.2])
    error = math.sqrt(5 - 4 / 12) / 12
    assert float(cheap["drop_low"]) == pytest.approx(2 / 12 - 1.959964 * error, abs=1e-6)
    assert float(cheap["drop_high"]) == pytest.approx(2 / 12 + 1.959964 * error, abs=1e-6)
    # 0.25 is (0.25 - 2/12) / 0.18002 = 0.46291 standard errors above; 0.67829 of a standard normal lie below
    assert float(cheap["confidence"]) == pytest.approx(0.6783, abs=1e-4)
    # equal answers: 0.5 against 0.5 of 12, centre 0, error 1 / 12; 0.25 is 3 errors above
    assert [float(equal[key]) for key in ("drop", "drop_low", "drop_high")] == pytest.approx(
        [0, -1.959964 / 12, 1.959964 / 12], abs=1e-6
    )
    assert float(equal["confidence"]) == pytest.approx(0.9987, abs=5e-5)


def row(ratio: int, macs: int, top1: float, low: float, high: float, confidence: float) -> dict:
    common = {"method": "thumbnet", "teacher_macs": 2_000_000, "examples": 50, "teacher_top1": "0.9"}
    loss = {"drop": f"{0.9 - top1:.6f}", "drop_low": f"{low}", "drop_high": f"{high}", "confidence": f"{confidence}"}
    return {"ratio": ratio, "macs": macs, "top1": f"{top1}", **common, **loss}


def test_a_recommendation_says_how_sure_it_is():
    rows = [row(4, 100_000, 0.8, 0.05, 0.15, 0.03), row(2, 400_000, 0.88, 0.01, 0.03, 0.62)]
    lines = recommendation(rows, 0.03).splitlines()
    assert lines[1].split() == ["1", "original", "2.00", "90.00%", "-"]
    assert lines[2].split() == ["4", "thumbnet", "0.10", "80.00%", "10.00", "(5.00", "to", "15.00)", "points"]
    assert lines[3].split() == ["2", "thumbnet", "0.40", "88.00%", "2.00", "(1.00", "to", "3.00)", "points"]
    assert lines[4:] == [
        "recommended: ratio 2, thumbnet, the cheapest within 3 points of T's 90.00 % on validation (--max_drop), "
        "surely (the whole 95 % interval is); confidence 62 %; 5.0 times fewer multiply-adds than T"
    ]
    assert recommendation(rows, 0.1).splitlines()[4:] == [
        "recommended: ratio 4, thumbnet, the cheapest within 10 points of T's 90.00 % on validation (--max_drop), "
        "not surely: 50 images leave a loss of up to 15.00 points possible; confidence 3 %; "
        "20.0 times fewer multiply-adds than T"
    ]
    assert recommendation(rows, 0.01).splitlines()[4:] == [
        "none is within 1 points of T's 90.00 % on validation (--max_drop); ratio 2, thumbnet, comes nearest"
    ]
