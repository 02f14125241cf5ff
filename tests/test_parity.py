"""The parity table: what it says of artifacts that equal Keras, and of one that doesn't."""

import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import card, intake, parity, thumbnet
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import pipeline, sources


@pytest.fixture(scope="module")
def parts(tiny_run):
    """Returns the run's models, its test split and its configuration."""
    cfg = tiny_run.config().resolved()
    models = thumbnet.deployed(tiny_run.load_model("thumbnet", "shipped"), tiny_run.load_model("original", "teacher"))
    return models, sources.load(cfg, ("test",)).splits["test"], cfg


def test_saved_model_equals_keras_over_the_whole_split(exported, tiny_run):
    split = sources.load(tiny_run.config().resolved(), ("test",)).splits["test"]
    rows = [
        row
        for row in read_rows(exported / "parity.csv")
        if row["artifact"] == "thumbnet" and row["variant"].startswith("saved_model")
    ]
    assert [(row["variant"], row["threads"]) for row in rows] == [
        ("saved_model", "1"),
        ("saved_model", "2"),
        ("saved_model_pixels", "1"),
        ("saved_model_pixels", "2"),
    ]
    logits = np.load(tiny_run.method("thumbnet") / "logits_test.npy")
    top1 = f"{np.mean(logits.argmax(-1) == split.labels):.6f}"
    size = sum(f.stat().st_size for f in [exported / "saved_model.pb", *(exported / "variables").iterdir()])
    for row in rows:
        assert set(row) == set(parity.COLUMNS)
        assert (row["top1"], row["keras_top1"], row["agreement"]) == (top1, top1, "1.000000")
        assert int(row["examples"]) == split.num_examples == len(logits)
        assert float(row["max_score_diff"]) < 1e-5
        assert 0 < float(row["latency_ms_p50"]) <= float(row["latency_ms_p95"])
        assert int(row["bytes"]) == size
    titles, lines = card.parity_cells(rows)
    assert [line[:2] for line in lines] == [("thumbnet", "saved_model"), ("thumbnet", "saved_model_pixels")]
    assert all(len(line) == len(titles) for line in lines)
    text = card.parity_text(rows).splitlines()
    assert len(text) == 3
    assert text[1].split()[:2] == ["thumbnet", "saved_model"]


def test_row_counts_what_differs():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    expected = np.array([[0.8, 0.2], [0.6, 0.4], [0.6, 0.4], [0.3, 0.7]])
    labels, times = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 3.0, 10.0])

    class Any(parity.Subject):
        num_bytes = 5

    row = parity._row(Any("thumbnet", "int8", None), scores, expected, labels, times, 1)
    # right: artifact 1st and 4th, Keras 1st, 2nd and 4th; the answers differ in the 2nd, by 0.8 - 0.4
    assert (row["top1"], row["keras_top1"], row["agreement"]) == ("0.500000", "0.750000", "0.750000")
    assert (row["max_score_diff"], row["latency_ms_p50"], row["bytes"]) == ("0.4", "2.500", 5)
    assert row["median_score_diff"] == "0.05"  # of 0.1, 0.4, 0 and 0


def test_an_artifact_that_cannot_run_is_one_line(parts, tmp_path):
    models, split, cfg = parts
    (tmp_path / "broken.tflite").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"an exported tflite can't be run \(ValueError: .*; export it again or leave"):
        parity.compare([parity.Subject("thumbnet", "int8", tmp_path / "broken.tflite")], models, split, cfg, (1,))


def test_what_a_saved_model_says_of_a_file_is_told(exported, tmp_path):
    served = parity.Subject("thumbnet", parity.SAVED_MODEL, exported, "serving_default")
    parity._write_files(tmp_path / "originals.files", iter([b"no image"]))
    with pytest.raises(UserError, match=r"must be whole images \(JPEG, .* at positions\] \[0\]\); export it again$"):
        parity.run(tmp_path, parity.SAVED_MODEL, [served], 1, 1)


def test_images_that_a_server_refuses_are_left_out_and_named(exported, parts, monkeypatch, caplog):
    models, split, cfg = parts
    served = [parity.Subject("thumbnet", parity.SAVED_MODEL, exported, name) for name in ("serving_default", "pixels")]
    first = next(pipeline.encoded_images(split))
    monkeypatch.setattr(intake, "is_small_enough", lambda data: data != first)
    of_files, of_pixels = parity.compare(served, models, split, cfg, (1,))
    assert (of_files["examples"], of_pixels["examples"]) == (split.num_examples - 1, split.num_examples)
    assert of_files["agreement"] == of_pixels["agreement"] == "1.000000"
    assert float(of_files["max_score_diff"]) < 1e-5
    assert "1 test images have more than 50 million pixels or 100 scans, which a server refuses" in caplog.text
    assert caplog.text.rstrip().endswith(f"such as {split.names[0]}")
    monkeypatch.setattr(intake, "is_small_enough", lambda data: data == "")
    with pytest.raises(
        UserError, match="at least one test image must have no more than 50 million pixels or 100 scans"
    ):
        parity.compare(served, models, split, cfg, (1,))


def test_small_enough_is_what_a_server_takes(monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    files = [tf.io.encode_png(image), tf.io.encode_jpeg(image)]
    for limit, expected in ((30 * 40, True), (30 * 40 - 1, False)):
        monkeypatch.setattr(intake, "MAX_PIXELS", limit)
        assert [bool(intake.is_small_enough(file)) for file in files] == [expected, expected]
    monkeypatch.setattr(intake, "MAX_SCANS", 0)
    monkeypatch.setattr(intake, "MAX_PIXELS", 30 * 40)
    assert [bool(intake.is_small_enough(file)) for file in files] == [True, False]


def test_a_worker_that_is_killed_is_not_the_artifact_s_fault(tmp_path, monkeypatch):
    killed = tmp_path / "worker.py"
    killed.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.setattr(parity.parity_worker, "__file__", str(killed))
    with pytest.raises(UserError, match=r"was ended from outside, as happens when memory is short.*Received: signal 9"):
        parity.run(tmp_path, "tflite", [], 1, 1)


def test_files_come_back_as_they_were_written(tmp_path):
    from thumbnet_tf import parity_worker

    files = [b"a", b"", bytes(range(256)), b"last"]
    parity._write_files(tmp_path / "x.files", iter(files))
    read = parity_worker._inputs(str(tmp_path / "x.files"))
    assert [read[i] for i in range(len(read))] == files


def test_a_file_reaches_a_saved_model_with_the_zeros_that_it_ends_with(tmp_path):
    from thumbnet_tf import parity_worker

    class Lengths(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "file")])
        def count(self, file):
            return {"bytes": tf.strings.length(file)}

    module = Lengths()
    tf.saved_model.save(module, str(tmp_path), signatures=module.count)
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    spec = {"path": str(tmp_path), "signature": "serving_default", "result": "bytes", "threads": threads}
    assert parity_worker._saved_model(spec)(b"BM\x01\x00\x00") == 5


def test_figure_has_a_bar_for_each_artifact():
    rows = [
        {"artifact": a, "variant": v, "threads": t, "top1": "0.5", "keras_top1": "0.6", "bytes": 2_000_000}
        | {"latency_ms_p50": "1.5", "examples": 9}
        for a, v in (("thumbnet", "int8"), ("teacher", "float32"))
        for t in (1, 2)
    ]
    figure = card.parity_figure(rows)
    widths = [[patch.get_width() for patch in axes.patches] for axes in figure.axes]
    np.testing.assert_allclose(widths, [[10, 10], [2, 2], [1.5, 1.5]])
