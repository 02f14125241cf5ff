"""The inference benchmark, on tiny models: what it counts, compares, writes and draws, however fast they are."""

import csv
import types

import numpy as np
import pytest
from matplotlib import image as pngs
from model_helpers import normalisations

from thumbnet_tf import benchmark, benchmark_inference, benchmark_report, costs, peak_memory
from thumbnet_tf.config import Config, FlagError, UserError


@pytest.mark.slow
def test_a_run_is_measured(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        peak_memory, "measure", lambda models, batch, dtype: [800, 100, 50] if dtype == "float32" else [900, 300, 50]
    )
    options = benchmark.Options(run_dir=str(tiny_run.path), rounds=1, out=str(tmp_path / "new" / "out"))
    benchmark.main(options)
    with open(tmp_path / "new" / "out" / "benchmark_inference.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == benchmark_inference.COLUMNS
    by_key = {(row["case"], row["model"]): row for row in rows}
    assert set(by_key) == {(case, model) for case in benchmark_report.CASES for model in benchmark_inference.MODELS}
    shipped = tiny_run.load_model("thumbnet", "shipped")
    assert int(by_key["macs", "thumbnet"]["median"]) == costs.macs(shipped)
    assert by_key["peak_memory", "thumbnet"]["teacher_over_it"] == "8.00"
    assert (by_key["peak_memory", "student"]["unit"], by_key["peak_memory", "student"]["median"]) == ("bytes", "50")
    assert by_key["frozen_throughput", "student"]["batch"] == "32"
    assert {row["ratio"] for row in rows if row["model"] != "teacher"} == {"2"}
    for row in rows:
        assert float(row["p10"]) <= float(row["median"]) <= float(row["p90"]) <= float(row["p95"])
        assert row["model"] != "teacher" or row["teacher_over_it"] == "1.00"
    assert benchmark_report.markdown(rows) in capsys.readouterr().out
    picture = pngs.imread(tmp_path / "new" / "out" / "benchmark_inference.png")
    assert picture.shape[0] > 300 and picture[..., :3].std() > 0.05


def test_ratio_is_of_costs_not_of_rates():
    values = {("macs", "teacher", 1): np.array([9]), ("macs", "thumbnet", 4): np.array([3])}
    values |= {
        ("frozen_throughput", "teacher", 1): np.array([400.0, 100.0, 200.0]),
        ("frozen_throughput", "thumbnet", 4): np.array([50.0, 40.0, 100.0]),
    }
    key = ("frozen_throughput", "thumbnet", 4)
    subject = types.SimpleNamespace(cfg=Config(image_size=32), backbone="resnet18")
    row = benchmark_inference._row(key, values[key], values, subject)
    assert (row["unit"], row["median"], row["teacher_over_it"]) == ("images/s", "640.000", "4.00")  # 32 in 50 ms
    assert row["macs"] == 3


def test_random_models_hide_nothing():
    cfg = Config(image_size=32, ratio=2, width=0.125, downscaler_width=4)
    subject = benchmark_inference.random_subject(cfg, 3)
    for model in subject.by_name.values():
        for name in normalisations(model):
            layer = model.get_layer(name)
            assert np.abs(layer.gamma.numpy()).min() > 0.4 and np.abs(layer.beta.numpy()).max() > 0
    assert list(subject.by_name["teacher"].output) == ["logits"]


def test_random_models_are_those_that_are_told(monkeypatch):
    monkeypatch.setattr(benchmark_inference, "random_subject", lambda *given: given)
    found = list(benchmark_inference.random_subjects(quick=False))
    assert [(cfg.backbone, cfg.ratio, cfg.image_size, count) for cfg, count in found] == [
        ("resnet18", 2, 224, 1000),
        ("resnet18", 4, 224, 1000),
        ("resnet50", 2, 224, 1000),
        ("resnet50", 4, 224, 1000),
    ]
    assert list(benchmark_inference.random_subjects(quick=True)) == [(Config(image_size=224, ratio=4), 1000)]


def test_table_of_several_models():
    def row(case, model, ratio, median, unit, times):
        return {
            "case": case,
            "backbone": "resnet18",
            "image_size": "224",
            "model": model,
            "ratio": ratio,
            "median": median,
            "unit": unit,
            "teacher_over_it": times,
        }

    rows = []
    for case in benchmark_report.CASES:
        unit = {"macs": "multiply-adds", "peak_memory": "bytes"}.get(case, "ms")
        rows += [row(case, "teacher", "1", "1048576", unit, "1.0"), row(case, "thumbnet", "4", "524288", unit, "2.0")]
        rows += [row(case, "thumbnet", "2", "262144", unit, "4.0")]
    lines = benchmark_report.markdown(rows).splitlines()
    assert (
        lines[0] == "| backbone, px | measured | T | E + S, ratio 4 (times cheaper) | E + S, ratio 2 (times cheaper) |"
    )
    assert "| 1.0 MiB | 0.5 MiB (2.0x) | 0.2 MiB (4.0x) |" in lines[3]
    assert lines[2].endswith("| 1 M | 1 M (2.0x) | 0 M (4.0x) |")


@pytest.mark.slow
def test_memory_of_larger_maps_is_larger():
    cfg = Config(image_size=64, ratio=4, width=0.25)
    models = benchmark_inference.random_subject(cfg, 3).by_name
    teacher, student = peak_memory.measure([models["teacher"], models["student"]], 32)
    stem = 32 * 32 * 32 * 16 * 4  # float32 bytes of T's first map, which must be held
    assert stem <= teacher < 8 * stem
    assert student < teacher / 4


def test_mistakes_are_named(run_copy, monkeypatch):
    with pytest.raises(FlagError, match="--what must be one of inference, training. Received: 'speed'"):
        benchmark.Options(what="speed")
    for name in ("direct", "bicubic", "thumbnet"):
        (run_copy.path / name / "done.json").unlink()
    with pytest.raises(UserError, match="reads thumbnails; train one first. Received: original of .*copy"):
        benchmark.main(benchmark.Options(run_dir=str(run_copy.path), method="original"))
    with pytest.raises(UserError, match="--method must be one finished in this run: original. Received: 'thumbnet'"):
        benchmark.main(benchmark.Options(run_dir=str(run_copy.path), method="thumbnet"))
    monkeypatch.setattr(peak_memory.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="Linux only. Received"):
        peak_memory.measure([], 1)


def test_results_lie_in_the_run():
    assert benchmark.Options(run_dir="runs/x").folder == "runs/x/benchmark"
    assert benchmark.Options().folder == "runs/benchmark"
    for values in ({}, {"run_dir": "runs/x", "what": "training"}):
        with pytest.raises(FlagError, match="--method goes with --run_dir and --what=inference. Received: bicubic"):
            benchmark.Options(method="bicubic", **values)
