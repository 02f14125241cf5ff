"""Experiments that measure a row's networks as TFLite: what they build, and what they say of it."""

import pathlib

import pytest

from experiments import row_latency, tflite_latency
from thumbnet_tf import costs


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)


@pytest.mark.parametrize(
    ("row", "artifact", "millions", "outputs"),
    [  # multiply-adds as in the table of the rows
        ("original", "teacher", 157.7, {"logits"}),
        ("slim", "teacher", 14.1, {"logits"}),
        ("narrow_thumbnet", "thumbnet", 9.1 + 4.8, {"thumbnail", "logits"}),
    ],
)
def test_a_rows_network_is_the_one_of_its_flags(row, artifact, millions, outputs):
    kind, model = row_latency.network(f"flowers_32_{row}")
    assert kind == artifact
    assert costs.macs(model) / 1e6 == pytest.approx(millions, abs=0.06)
    assert set(model.output) == outputs
    assert model.input.shape[1] == 128


@pytest.mark.slow
def test_rows_are_measured_beside_their_teacher(monkeypatch):
    monkeypatch.setattr(tflite_latency, "IMAGES", 8)
    networks = {name: row_latency.network(f"flowers_32_{name}") for name in ("original", "slim")}
    found = tflite_latency.measured([(name, kind, "float32", model) for name, (kind, model) in networks.items()])
    assert [(row["model"], row["variant"]) for row in found] == [("original", "float32"), ("slim", "float32")]
    assert found[0]["teacher_over_it_p50"] == "1.00"
    assert float(found[1]["teacher_over_it_p50"]) > 1
    assert found[0]["bytes"] > 10 * found[1]["bytes"]
    assert (
        0 < float(found[1]["latency_ms_p10"]) <= float(found[1]["latency_ms_p50"]) <= float(found[1]["latency_ms_p95"])
    )


def test_rows_that_are_none_are_told(capsys):
    assert row_latency.main(["flowers_32", "thumbnet", "thumbnail"]) == 1
    assert "--list shows. Received: ['flowers_32_thumbnail']" in capsys.readouterr().err
    assert row_latency.main(["flowers_32"]) == 2
