"""Export from end to end: what lies in a version, what is refused, and mistakes."""

import dataclasses
import itertools
import types

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import interpreter
from PIL import Image
from run_helpers import CLASSES, IMAGE_SIZE, export_options

from thumbnet_tf import card, export, parity, publish, qat, serving, tflite, thumbnet, variants, warmup
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.stages import METHODS

FILES = {
    "README.md",
    "labels.txt",
    "manifest.json",
    "parity.csv",
    "parity.png",
    "saved_model.pb",
    "variables/variables.index",
    warmup.FILE,
}


def test_a_version_holds_all_that_its_user_needs(exported, tiny_run):
    assert exported.name == "1"
    found = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert found >= FILES
    lite = {name for name in found if name.endswith(".tflite")}
    models = ("thumbnet", "downscaler", "classifier")
    assert lite == {f"tflite/{m}_{v}.tflite" for m in models for v in ("float32", "int8")} | {
        "tflite/teacher_float32.tflite"
    }
    assert (exported / "labels.txt").read_text() == "".join(f"{name}\n" for name in CLASSES)
    manifest = publish.read_manifest(exported)
    assert set(manifest["files"]) == found - {"manifest.json"}
    assert manifest["labels"] == list(CLASSES)
    assert manifest["preprocessing"]["image_size"] == IMAGE_SIZE
    assert manifest["preprocessing"]["crop_fraction"] == 0.875
    assert manifest["signatures"]["thumbnail"]["inputs"] == {"thumbnail_bytes": {"dtype": "string", "shape": [None]}}
    with Image.open(exported / "parity.png") as figure:
        assert figure.width > 800


def test_the_parity_table_covers_all_that_was_published(exported, tiny_run):
    rows = read_rows(exported / "parity.csv")
    assert list(rows[0]) == list(parity.COLUMNS)
    names = {(row["artifact"], row["variant"], row["threads"]) for row in rows}
    lite = {(m, v) for m in ("thumbnet", "downscaler", "classifier") for v in ("float32", "int8")}
    saved = {("thumbnet", "saved_model"), ("thumbnet", "saved_model_pixels")}
    saved |= {("teacher", "saved_model"), ("classifier", "saved_model")}
    assert names == {(*name, t) for name in lite | saved | {("teacher", "float32")} for t in "12"}
    top1 = {row["method"]: row["top1"] for row in read_rows(tiny_run.path / "results.csv") if row["split"] == "test"}
    for row in rows:
        assert row["keras_top1"] == top1["original" if row["artifact"] == "teacher" else "thumbnet"]
        assert float(row["agreement"]) >= (1 if row["variant"] != "int8" else 0.7)
        assert float(row["max_score_diff"]) < (0.01 if row["variant"] != "int8" else 0.2)
        path = exported / "tflite" / f"{row['artifact']}_{row['variant']}.tflite"
        assert row["variant"].startswith("saved_model") or int(row["bytes"]) == path.stat().st_size


def test_the_card_says_what_was_measured(exported, tiny_run):
    text = (exported / "README.md").read_text()
    lines = text.splitlines()
    times = {}
    for row in read_rows(exported / "parity.csv"):
        times.setdefault((row["artifact"], row["variant"]), {})[row["threads"]] = row
    for key, found in times.items():
        row = found["1"]
        percent = [f"{100 * float(row[name]):.2f}" for name in ("top1", "keras_top1", "agreement")]
        latency = [found[threads]["latency_ms_p50"] for threads in "12"]
        cells = [*key, f"{int(row['bytes']) / 1000:.0f}", *percent, row["max_score_diff"], *latency]
        assert f"| {' | '.join(cells)} |" in lines
    for row in read_rows(tiny_run.path / "results.csv"):
        if row["split"] == "test":
            top1, agrees = (f"{100 * float(row[name]):.1f}" for name in ("top1", "teacher_agreement"))
            macs, extra = (f"{int(row[name]) / 1e6:.1f}" for name in ("macs", "macs_downscaler"))
            about = METHODS[row["method"]].about
            assert f"| `{row['method']}` | {about} | {top1} | {agrees} | {macs} (+ {extra}) |" in lines
    assert f"into 3 classes ({', '.join(CLASSES)}) from one thumbnail of 16 x 16 pixels" in text
    assert publish.read_manifest(exported)["weights_sha256"] in text


def test_teacher_and_classifier_lie_beside_under_the_same_version(exported):
    for other in ("teacher", "classifier"):
        folder = exported.parent.parent / f"thumbnet_{other}" / "1"
        assert warmup.replay(folder, tf.saved_model.load(str(folder))) == len(warmup.BATCH_SIZES) * 2
        manifest = publish.read_manifest(folder)
        assert manifest["name"] == f"thumbnet_{other}"
        assert set(manifest["signatures"]) == {"serving_default", "pixels" if other == "teacher" else "thumbnail"}
        assert manifest["weights_sha256"] != publish.read_manifest(exported)["weights_sha256"]


def test_a_version_of_other_labels_is_refused_unless_allowed(quick, tiny_run, tmp_path):
    folder = tmp_path / "thumbnet" / "4"
    folder.mkdir(parents=True)
    publish.write_labels(folder, ["cat", "dog"])
    with pytest.raises(UserError, match=r"has other labels \(cat, dog, \.\.\.\); choose another --name"):
        export.export(export_options(tiny_run, tmp_path))
    assert publish.versions(tmp_path / "thumbnet") == [4]
    allowed, _ = export.export(export_options(tiny_run, tmp_path, allow_new_labels=True))
    assert allowed.name == "5" and publish.read_labels(allowed) == list(CLASSES)


def test_a_variant_that_lost_too_much_is_not_published(quick, tiny_run, tmp_path, capsys):
    chosen = export_options(tiny_run, tmp_path, variants=("float32", "dynamic", "int8"))
    with pytest.raises(UserError, match=r"not everything was published in .*thumbnet/1: thumbnet int8 lost 50\.00"):
        export.main(chosen)
    folder = tmp_path / "thumbnet" / "1"
    assert {path.name for path in (folder / "tflite").iterdir()} == {
        "thumbnet_float32.tflite",
        "thumbnet_dynamic.tflite",
    }
    assert (
        "Not published, judged on the test split: thumbnet int8 lost 50.00 points" in (folder / "README.md").read_text()
    )
    assert any(row["variant"] == "int8" for row in read_rows(folder / "parity.csv"))
    assert "tflite/thumbnet_int8.tflite" not in publish.read_manifest(folder)["files"]
    assert "int8" in capsys.readouterr().out


def test_what_a_variant_may_lose_unless_told(tmp_path):
    points = {"float32": 0.2, "float16": 0.2, "dynamic": 0.5, "int8": 1, "int8_qat": 0.5, "pruned": 2, "clustered": 2}
    for variant, limit in points.items():
        path = tmp_path / f"student_{variant}.tflite"
        for lost in (limit, limit + 0.01):
            path.write_bytes(b"model")
            row = {"artifact": "student", "variant": variant, "keras_top1": "0.9", "top1": f"{0.9 - lost / 100:.6f}"}
            refused = export._judge([row], export.FAIL_UNDER, tmp_path)
            assert (len(refused), path.exists()) == ((0, True) if lost == limit else (1, False)), variant


def test_thresholds_can_be_set(quick, tiny_run, tmp_path):
    loose = export_options(tiny_run, tmp_path, variants=("dynamic", "int8"), fail_under=("int8:50",))
    assert export.export(loose)[1] == []
    strict = export_options(tiny_run, tmp_path, variants=("dynamic", "int8"), fail_under=("int8:50", "dynamic:0.3"))
    folder, refused = export.export(strict)
    assert folder.name == "2"
    assert [line.split(" of ")[0] for line in refused] == ["thumbnet dynamic lost 0.40 points"]


def test_a_saved_model_may_differ_by_what_rounding_in_another_order_does():
    row = {"artifact": "thumbnet", "examples": "400", "agreement": "1", "median_score_diff": "1e-6"}
    for largest, agreement, equal in (("0.04", "1", True), ("0.06", "1", False), ("0.04", "0.995", True)):
        assert export._equals_keras(row | {"max_score_diff": largest, "agreement": agreement}) is equal
    assert not export._equals_keras(row | {"max_score_diff": "0.04", "agreement": "0.9925"})  # 3 of 400; 2 may
    assert not export._equals_keras(row | {"max_score_diff": "0.04", "median_score_diff": "2e-5"})
    few = row | {"examples": "8", "max_score_diff": "0.04"}
    assert export._equals_keras(few | {"agreement": "0.875"}) and not export._equals_keras(few | {"agreement": "0.75"})
    teacher = row | {"artifact": "teacher"}  # rounds nothing
    assert export._equals_keras(teacher | {"max_score_diff": "0.000009"})
    assert not export._equals_keras(teacher | {"max_score_diff": "0.0001"})


@pytest.mark.parametrize("change", [{"agreement": "0.7"}, {"median_score_diff": "0.0001"}], ids=str)
def test_nothing_is_published_when_the_saved_model_differs(change, quick, tiny_run, tmp_path, monkeypatch):
    inner = parity.compare
    monkeypatch.setattr(
        parity, "compare", lambda *a: [{**r, **change} if "saved" in r["variant"] else r for r in inner(*a)]
    )
    with pytest.raises(UserError, match="nothing is published, for thumbnet saved_model doesn't equal Keras"):
        export.export(export_options(tiny_run, tmp_path))
    assert publish.versions(tmp_path / "thumbnet") == []


@pytest.mark.slow
def test_the_default_export_makes_all_variants_and_fine_tunes_once(run_copy, tmp_path, monkeypatch):
    options = export_options(
        run_copy,
        tmp_path,
        variants=export.Options.variants,
        finetune_epochs=1,
        calibration_images=8,
        fail_under=tuple(f"{name}:100" for name in variants.VARIANTS),  # eight test images: one is 12 points
    )
    folder, refused = export.export(options)
    assert refused == []
    made = {("teacher", "float32"), *itertools.product(("thumbnet", "downscaler", "classifier"), variants.VARIANTS)}
    sizes = {path.name: path.stat().st_size for path in (folder / "tflite").iterdir()}
    assert set(sizes) == {f"{artifact}_{variant}.tflite" for artifact, variant in made}
    rows = read_rows(folder / "parity.csv")
    saved = {("thumbnet", "saved_model"), ("thumbnet", "saved_model_pixels")}
    assert {(row["artifact"], row["variant"]) for row in rows} == made | saved
    assert len(rows) == 2 * len(made | saved)  # of one thread and of two
    for row in rows:
        name = f"{row['artifact']}_{row['variant']}.tflite"
        assert (row["artifact"], row["variant"]) in saved or int(row["bytes"]) == sizes[name]
    kept = {path.name for path in (run_copy.path / "thumbnet" / "export").iterdir()}
    assert kept == {f"{variant}.weights.h5" for variant in qat.VARIANTS}
    monkeypatch.setattr(qat, "_fit", lambda *_, **__: pytest.fail("fine-tuned again"))
    again, _ = export.export(dataclasses.replace(options, variants=qat.VARIANTS))
    assert again.name == "2"
    answers = ("top1", "agreement", "max_score_diff")
    first, second = (
        {(row["artifact"], row["variant"]): [row[key] for key in answers] for row in table if row["threads"] == "1"}
        for table in (rows, read_rows(again / "parity.csv"))
    )
    assert {variant for _, variant in second} >= set(qat.VARIANTS)
    assert second.items() <= first.items()


@pytest.mark.slow
def test_unrounded_thumbnails_are_compared_with_those_of_files(train_tiny, tmp_path):
    run = train_tiny(methods=("thumbnet",), teacher_epochs=1, thumbnail_bits=0)
    folder, refused = export.export(export_options(run, tmp_path, also=("classifier",), variants=("float32",)))
    assert refused == []
    rows = {(row["artifact"], row["variant"]): row for row in read_rows(folder / "parity.csv")}
    assert float(rows["classifier", "saved_model"]["max_score_diff"]) < 1e-5
    assert {float(row["agreement"]) for row in rows.values()} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"mixed_precision": "mixed_bfloat16"}, {"strategy": "mirrored"}], ids=str)
def test_models_trained_otherwise_export_alike(change, train_tiny, tmp_path, photos):
    """Mixed precision, and two replicas: what ships computes in float32, and its exports equal it."""
    run = train_tiny(methods=("thumbnet",), teacher_epochs=1, **change)
    cfg = run.config().resolved()
    models = thumbnet.deployed(run.load_model("thumbnet", "shipped"), run.load_model("original", "teacher"))
    for model in dataclasses.astuple(models):
        assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    images = photos(3, cfg.image_size)
    trained = run.load_model("original", "teacher")(images.astype(np.float32), training=False)["logits"]
    np.testing.assert_allclose(models.teacher(images.astype(np.float32))["logits"], trained, rtol=0.05, atol=0.05)
    expected = tf.nn.softmax(models.shipped(images.astype(np.float32), training=False)["logits"])
    serving.save(tmp_path / "saved", models.shipped, serving.thumbnet_endpoints(cfg, CLASSES, models))
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures["pixels"](pixels=tf.constant(images))
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-5)
    lite = interpreter.Interpreter(model_content=tflite.convert(models.shipped, "thumbnet", "float32"))
    run_lite = lite.get_signature_runner("serving_default")
    for image, scores in zip(images, expected, strict=True):
        np.testing.assert_allclose(run_lite(image=image[None])["probabilities"][0], scores, atol=0.01)


def test_card_writes_shapes_and_percentages():
    assert card._tensors({"a": {"dtype": "uint8", "shape": [None, None, 3]}}) == "`a` uint8 [N, ?, 3]"
    row = {"artifact": "a", "variant": "v", "bytes": "1500", "top1": "0.5", "keras_top1": "0.75", "agreement": "0.9"}
    row |= {"max_score_diff": "0.1", "latency_ms_p50": "2.5", "threads": "1"}
    _, lines = card.parity_cells([row, {**row, "threads": "2", "latency_ms_p50": "1.5"}])
    assert lines == [("a", "v", "2", "50.00", "75.00", "90.00", "0.1", "2.5", "1.5")]


def test_calibration_images_are_spread_over_the_split(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(variants.pipeline, "eval_images", lambda split, cfg, ids: asked.extend(ids))
    monkeypatch.setattr(variants, "_files", lambda *_: iter(()))
    split = types.SimpleNamespace(num_examples=100)
    options = {"cfg": None, "classes": (), "models": None, "train": split, "cache": None, "epochs": 0, "lenient": False}
    variants.write(tmp_path / "tflite", ("int8",), calibration_images=4, **options)
    assert asked == [0, 33, 66, 99]  # of all classes, which lie one behind the other
