"""Results from answers that are there: the numbers, and what can't be evaluated."""

import types

import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import evaluate
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import sources
from thumbnet_tf.runs import RunDir, finish

LABELS = np.array([0, 1, 2, 6])


@pytest.fixture
def run(tmp_path) -> RunDir:
    """Returns a run of 7 classes, as far as evaluation reads it: T and a student answered four images of each split."""
    made = RunDir(tmp_path / "run")
    made.path.mkdir()
    made.claim(Config(seed=5))
    made.bind_data({"dataset": "hand-made"})
    ranks = {  # the classes, the most likely first
        "original": [[0, 1, 2, 3, 4, 5, 6], [2, 1, 0, 3, 4, 5, 6], [2, 1, 0, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]],
        "thumbnet": [[1, 2, 3, 4, 0, 5, 6], [2, 3, 4, 5, 6, 1, 0], [2, 1, 0, 3, 4, 5, 6], [6, 1, 2, 3, 4, 5, 0]],
    }
    for method, order in ranks.items():
        made.method(method).mkdir()
        (made.method(method) / "done.json").touch()
        for split in evaluate.SPLITS:
            np.save(made.method(method) / f"logits_{split}.npy", -np.argsort(order).astype(np.float32))
    return made


@pytest.fixture
def dataset(monkeypatch) -> types.SimpleNamespace:
    """Returns its data, without images; no model is there to be counted."""
    network = types.SimpleNamespace(output={"logits": np.zeros((4, 7))})
    monkeypatch.setattr(evaluate, "load_parts", lambda *_: (None, network))
    monkeypatch.setattr(evaluate, "_costs", lambda *_: {"ratio": 2, "macs": 30, "macs_downscaler": 4, "params": 5})
    splits = {name: sources.Split(name, LABELS, ("",) * 4, (), "", None) for name in evaluate.SPLITS}
    return types.SimpleNamespace(facts=lambda: {"dataset": "hand-made"}, splits=splits)


def test_shares_are_those_of_the_answers(run, dataset):
    evaluate.evaluate(run, dataset)
    rows = {(row["split"], row["method"]): row for row in read_rows(run.path / "results.csv")}
    assert list(rows) == [(split, method) for split in evaluate.SPLITS for method in ("original", "thumbnet")]
    for split in evaluate.SPLITS:
        assert rows[split, "original"] == {
            "method": "original",
            **{"split": split, "seed": "5", "examples": "4", "ratio": "2"},
            **{"top1": "0.500000", "top5": "0.750000", "teacher_agreement": "1.000000"},  # 0 and 2; not 6
            **{"macs": "30", "macs_downscaler": "4", "params": "5"},
        }
        own = rows[split, "thumbnet"]
        # first: 2 and 6; fifth: 0; sixth: 1; as T says of the second and third image
        assert [own[key] for key in ("top1", "top5", "teacher_agreement")] == ["0.500000", "0.750000", "0.500000"]
    lines = evaluate.table(run).splitlines()
    assert lines[2].split() == ["thumbnet", "50.00%", "75.00%", "50.00%", "0.00", "0.00", "0.00M"]
    assert lines[3] == "test split, 4 images"


def test_top_k_counts_ties_once():
    logits = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    labels = np.array([1, 2, 0])
    assert evaluate.top_k(logits, labels, 1) == pytest.approx(1 / 3)
    assert evaluate.top_k(logits, labels, 2) == 1.0


def test_missing_and_broken_answers_are_told_and_made_anew(run, dataset, monkeypatch):
    path = run.method("thumbnet") / "logits_test.npy"
    whole = np.load(path)
    monkeypatch.setattr(evaluate, "_evaluated", lambda *_: whole)
    for mistake in (path.unlink, lambda: path.write_bytes(b"\x93NUMPY half")):
        mistake()
        with pytest.raises(UserError, match=r"answers to the test images are missing or broken; .* Rec.*thumbnet/log"):
            run.logits("thumbnet", "test")
        evaluate.evaluate(run, dataset)
        np.testing.assert_array_equal(run.logits("thumbnet", "test"), whole)
    np.save(path, whole[:-1])  # of other images
    evaluate.evaluate(run, dataset)
    np.testing.assert_array_equal(run.logits("thumbnet", "test"), whole)


def test_a_run_whose_teacher_is_not_finished_is_refused(run, dataset):
    (run.method("original") / "done.json").unlink()
    with pytest.raises(UserError, match="must hold a finished teacher; finish thumbnet_tf.train first. Rec"):
        evaluate.evaluate(run, dataset)
    assert not (run.path / "results.csv").exists()


def test_answers_that_are_no_numbers_are_refused(run_copy):
    student = run_copy.load_model("direct", "student")
    student.get_layer("logits").bias.assign([0.0, np.nan, 0.0])
    student.save(run_copy.method("direct") / "student.keras")
    (run_copy.method("direct") / "logits_test.npy").unlink()
    with pytest.raises(UserError, match="direct gives NaN or infinite logits on test; train it anew in a new"):
        evaluate.evaluate(run_copy, sources.load(run_copy.config(), evaluate.SPLITS))
    assert not (run_copy.method("direct") / "logits_test.npy").exists()


def test_what_was_measured_goes_with_a_method_that_is_trained_anew(run, dataset):
    evaluate.evaluate(run, dataset)
    folder = run.method("thumbnet")
    (folder / "wire.csv").write_text("bytes\n1\n")
    (folder / "benchmark").mkdir()
    (folder / "benchmark" / "benchmark_inference.csv").write_text("case\nlatency\n")
    finish(folder, {})
    assert [path.name for path in folder.iterdir()] == ["done.json"]
    assert {row["method"] for row in read_rows(run.path / "results.csv")} == {"original"}
    assert len(list(run.method("original").glob("logits_*.npy"))) == 2


def test_padding_of_the_last_batch_counts_for_nothing(monkeypatch):
    batches = [
        {"id": tf.constant(ids), "mask": tf.constant(mask), "image": tf.cast(ids, tf.float32)}
        for ids, mask in (([0, 1], [1.0, 1.0]), ([2, -1], [1.0, 0.0]))
    ]
    monkeypatch.setattr(evaluate.pipeline, "eval_batches", lambda *_: batches)
    split = types.SimpleNamespace(name="test", num_examples=3)
    found = evaluate._evaluated(lambda image: tf.stack([image, image], 1), 2, "direct", split, Config())
    assert found[:, 0].tolist() == [0, 1, 2]  # the padding has the index -1, which is the last one's too
