"""T's outputs on disk: what is read is what T says of the very view shown; what isn't right is made anew."""

import dataclasses
import json
import resource
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from cache_helpers import OUTPUTS, files_of, open_caches, prepare, random_teacher
from keras import layers
from train_helpers import assert_same, interrupt_at, rows, state_of

from thumbnet_tf import loop, teacher_cache
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import UserError
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.train import train


@pytest.mark.parametrize("changes", [{}, {"memory_limit_gb": 0.0}, {"mixup_alpha": 1.0}])
def test_what_is_read_is_what_the_teacher_says_of_the_view_shown(cached, changes):
    cfg, _, teacher = cached
    cfg = dataclasses.replace(cfg, **changes)
    dataset = sources.load(cfg, ("train", "validation"))
    caches = prepare(cfg, dataset, teacher)
    train_split, validation = dataset.splits["train"], dataset.splits["validation"]
    seen = set()
    batches = pipeline.train_batches(train_split, cfg, epochs=3, views=2)
    for batch in caches["train"].attach(batches).as_numpy_iterator():
        expected = teacher(batch["image"].astype(np.float32), training=False)
        np.testing.assert_allclose(batch["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch["stage1"], expected["stage1"], rtol=2e-3, atol=1e-3)
        assert (batch["logits"].dtype, batch["stage1"].dtype) == (np.float32, np.float16)
        seen |= set(zip(batch["id"].tolist(), batch["view"].tolist(), strict=True))
    assert {view for _, view in seen} == {0, 1}
    assert len(seen) > 40  # of 27 examples in two views
    found = list(caches["validation"].attach(pipeline.eval_batches(validation, cfg)).as_numpy_iterator())
    logits = np.concatenate([batch["logits"][batch["mask"] > 0] for batch in found])
    images = np.concatenate([batch["image"][batch["mask"] > 0] for batch in found])
    expected = teacher(images.astype(np.float32), training=False)["logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["all", pytest.param("logits", marks=pytest.mark.slow)])
def test_training_from_the_cache_equals_training_with_the_teacher(config, direct_run, what):
    # without augmentation the one view is what the teacher sees without a cache, too
    common = {"augment": "none", "optimizer": "sgd", "teacher": str(direct_run.path), "methods": ("thumbnet",)}
    off, run = train(config("off", **common)), train(config(what, teacher_cache=what, **common))
    for name in ("student", "downscaler"):
        one, two = (keras.models.load_model(r.path / "thumbnet" / f"{name}.keras") for r in (off, run))
        for a, b in zip(one.variables, two.variables, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3, err_msg=a.path)
    a, b = (rows(r.path / "thumbnet" / "metrics.csv")[-1] for r in (off, run))
    for term in ("cl", "kd", "fm", "mm", "agreement", "val_kd", "val_fm", "val_agreement"):
        assert float(a[term]) == pytest.approx(float(b[term]), rel=1e-3, abs=1e-5), term


def test_a_cached_step_runs_no_teacher(cached):
    cfg, dataset, teacher = cached
    caches = prepare(cfg, dataset, teacher)
    batches = caches["train"].attach(pipeline.train_batches(dataset.splits["train"], cfg, views=2))
    trainer = build_trainer("thumbnet", cfg, 3, teacher)
    trainer.compile(optimizer=build_optimizer(cfg, 1e-3, 10, trainer.trainable_variables))
    trainer.optimizer.build(trainer.trainable_variables)

    teacher_weights = {id(v.value) for v in trainer.teacher.variables}

    def of_teacher(given: tuple[str, ...]) -> int:
        def step_of(batch: dict) -> None:
            trainer.train_step(({name: batch[name] for name in given}, batch["label"], batch["mask"]))

        step = tf.function(step_of, autograph=False)
        used = {id(v) for v in step.get_concrete_function(batches.element_spec).variables}
        return len(used & teacher_weights)

    assert of_teacher(("image",)) == len(teacher_weights) > 10
    assert of_teacher(("image", *OUTPUTS)) == 0


def test_methods_seeds_and_view_counts_share_a_cache(cached):
    cfg, dataset, teacher = cached
    caches = prepare(cfg, dataset, teacher, ("logits",))
    first = files_of(caches)
    assert len(first) == 2 * 4 + 1  # 27 examples in files of 8, two views; 3 validation images
    for other in ({"seed": 5}, {"methods": ("bicubic_kd",)}, {"w_kd": 0.5}, {"batch_size": 3}, {"cached_views": 1}):
        assert files_of(prepare(dataclasses.replace(cfg, **other), dataset, teacher, ("logits",))) == first
    more = files_of(prepare(cfg, dataset, teacher))  # the maps are added
    assert {path: more[path] for path in first} == first
    assert len(more) == 2 * len(first)
    wider = dataclasses.replace(cfg, cached_views=5, epochs=3)  # three epochs can't show more than three views
    assert len(files_of(prepare(wider, dataset, teacher, ("logits",)))) == 2 * len(first) + 4


def test_another_teacher_view_seed_or_preprocessing_is_another_cache(cached, folder):
    cfg, dataset, teacher = cached
    first = {cache.folder for cache in open_caches(cfg, dataset, teacher).values()}
    assert {c.folder for c in open_caches(cfg, dataset, random_teacher(cfg, 4)).values()}.isdisjoint(first)
    for other in ({"view_seed": 1}, {"augment": "crop"}, {"random_crop_min_area": 0.5}, {"mixup_alpha": 0.2}):
        caches = open_caches(dataclasses.replace(cfg, **other), dataset, teacher)
        assert caches["train"].folder not in first, other
        assert caches["validation"].folder in first  # what evaluation shows depends on none of these
    mixed = dataclasses.replace(cfg, augment="none", mixup_alpha=0.2)  # whose partners the seed chooses
    seeds = (dataclasses.replace(mixed, view_seed=seed) for seed in (0, 1))
    assert len({open_caches(each, dataset, teacher)["train"].folder for each in seeds}) == 2
    path = folder / "train" / "red" / "3.png"
    data = bytearray(path.read_bytes())
    other = tf.io.encode_png(255 - tf.io.decode_png(bytes(data))).numpy()
    path.write_bytes(other)
    changed = open_caches(cfg, sources.load(cfg, ("train", "validation")), teacher)
    assert {cache.folder for cache in changed.values()}.isdisjoint(first)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "unlisted", "manifest"])
def test_what_is_not_right_is_made_anew(cached, damage, caplog):
    cfg, dataset, teacher = cached
    caches = prepare(cfg, dataset, teacher)
    before = {path: path.read_bytes() for path in files_of(caches)}
    path = caches["train"].path("stage1", 1, 2)
    manifest = caches["train"].folder / "manifest.json"
    if damage == "flip":
        data = bytearray(before[path])
        data[len(data) // 2] ^= 4
        path.write_bytes(bytes(data))
    elif damage == "cut":
        path.write_bytes(before[path][:-10])
    elif damage == "gone":
        path.unlink()
    elif damage == "unlisted":  # killed between the file and the manifest
        known = json.loads(manifest.read_text())
        del known[f"stage1/{path.name}"]
        manifest.write_text(json.dumps(known))
    else:
        manifest.write_text("{ half")
    times = files_of(caches)
    with caplog.at_level("WARNING", "thumbnet_tf"):
        again = prepare(cfg, dataset, teacher)
    after = files_of(again)
    assert {path: path.read_bytes() for path in after} == before
    changed = {path for path in before if after[path] != times.get(path)}
    of_train = {p for p in before if p.is_relative_to(caches["train"].folder)}
    assert changed == (of_train if damage == "manifest" else {path})
    assert ("damaged or unfinished" in caplog.text) == (damage != "gone")


def test_a_cache_that_goes_before_it_is_opened_is_one_line(cached):
    cfg, dataset, teacher = cached
    caches = prepare(cfg, dataset, teacher)
    for path in caches["train"].folder.rglob("0*"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(UserError, match=f"{teacher_cache.UNREADABLE}; give the same command again"):
        caches["train"].attach(pipeline.train_batches(dataset.splits["train"], cfg, views=2))


@pytest.mark.slow
def test_a_cache_that_goes_while_training_ends_it_with_one_line(config, monkeypatch):
    def damaged(source, places):
        raise RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch")

    options = {"teacher_cache": "all", "augment": "none"}
    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache.ArrayRecordDataSource, "__getitems__", damaged)
        with pytest.raises(UserError, match=r"thumbnet, step 0: .*T's cache can't be read any more: .* made anew"):
            train(config(**options))
    assert train(config(**options)).is_done("thumbnet")


def test_a_full_disk_while_caching_leaves_what_was_finished(cached, tmp_path):
    cfg, dataset, teacher = cached
    whole = {p.name: p.read_bytes() for p in files_of(prepare(cfg, dataset, teacher))}
    shutil.rmtree(teacher_cache.folder_of(cfg))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, limits[1]))  # logits of 8 examples fit, their maps don't
    try:
        with pytest.raises(UserError, match=r"can't be written \(.*File too large.*; what was saved before is intact"):
            prepare(cfg, dataset, teacher)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(teacher_cache.folder_of(cfg).rglob("*.partial"))
    assert {p.name: p.read_bytes() for p in files_of(prepare(cfg, dataset, teacher))} == whole


def test_a_large_split_has_few_files(cached, monkeypatch):
    cfg, dataset, teacher = cached
    monkeypatch.setattr(teacher_cache, "BLOCK", 1)
    caches = prepare(cfg, dataset, teacher, ("logits",))
    assert len(files_of(caches)) == 2 * 14 + 3  # 27 examples in files of ceil(27 / 16) = 2, two views; 3 of validation


def test_one_pass_over_the_images_makes_all_files_of_a_view(cached, monkeypatch):
    cfg, dataset, teacher = cached
    starts = []
    view_batches = pipeline.view_batches
    monkeypatch.setattr(
        pipeline, "view_batches", lambda split, cfg, *rest: starts.append(rest[:2]) or view_batches(split, cfg, *rest)
    )
    caches = prepare(cfg, dataset, teacher)
    assert starts == [(None, 0), (0, 0), (1, 0)]
    caches["train"].path("stage1", 1, 2).unlink()
    prepare(cfg, dataset, teacher)
    assert starts[3:] == [(1, 16)]


@pytest.mark.slow
def test_interrupted_and_resumed_from_the_cache_is_bit_equal(config, monkeypatch):
    options = {"teacher_cache": "all", "cached_views": 2, "augment": "crop_flip", "epochs": 3}
    whole = state_of(train(config("whole", **options)))
    for step in (8, 5):  # in the student's second and third epoch
        with monkeypatch.context() as patch:
            interrupt_at(patch, step, signal.SIGTERM)
            with pytest.raises(loop.Interrupted):
                train(config(**options))
    assert_same(whole, state_of(train(config(**options))))


def test_another_crop_is_another_cache(cached):
    cfg, dataset, teacher = cached
    first = {cache.folder for cache in open_caches(cfg, dataset, teacher).values()}
    assert open_caches(dataclasses.replace(cfg, crop_fraction=0.5), dataset, teacher)["validation"].folder not in first


def test_the_same_weights_in_another_network_are_another_cache(cached):
    cfg, dataset, teacher = cached
    first = {cache.folder for cache in open_caches(cfg, dataset, teacher).values()}

    def copy(layer):  # the same weights behind another scaling of the input
        own = layers.Rescaling(1 / 255, name=layer.name) if layer.name == "rescaling" else None
        return own or layer.from_config(layer.get_config())

    scaled = keras.models.clone_model(teacher, clone_function=copy)
    scaled.set_weights(teacher.get_weights())
    assert {cache.folder for cache in open_caches(cfg, dataset, scaled).values()}.isdisjoint(first)


def test_what_float16_can_not_hold_is_its_largest_number(cached):
    cfg, dataset, teacher = cached
    for layer in teacher.layers:
        if layer.name.startswith("stage1") and isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(layer.gamma * 1e5)
    caches = prepare(cfg, dataset, teacher)
    batches = caches["validation"].attach(pipeline.eval_batches(dataset.splits["validation"], cfg))
    assert next(batches.as_numpy_iterator())["stage1"].max() == 65504
