"""One training step: frozen teacher, one student pass, right gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from trainer_helpers import CLASSES, config, make_trainer, values

from thumbnet_tf import graph, losses, thumbnet
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import UserError
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.trainer import Trainer


@pytest.mark.usefixtures("tiny_resnet")
def test_teacher_is_bit_equal_after_steps(photos):
    trainer = make_trainer("thumbnet", config())
    before = values(trainer.teacher.variables)
    student = values(trainer.student.trainable_variables)
    small = values(trainer.downscaler.trainable_variables)
    data = (photos(6, 32), np.array([0, 1, 2, 0, 1, 2]))
    trainer.fit(*data, batch_size=3, epochs=2, verbose=0)
    for old, new in zip(before, values(trainer.teacher.variables), strict=True):
        np.testing.assert_array_equal(old, new)
    assert trainer.teacher.trainable_variables == []
    for old, new in ((student, trainer.student), (small, trainer.downscaler)):
        moved = [np.abs(a - b).max() for a, b in zip(old, values(new.trainable_variables), strict=True)]
        assert min(moved) > 0, moved


@pytest.mark.usefixtures("tiny_resnet")
def test_batch_statistics_move_once_a_step(photos):
    trainer = make_trainer("thumbnet", config())
    images, norm = photos(4, 32), trainer.student.get_layer("stem_bn")
    before = norm.moving_mean.numpy()
    stem = keras.Model(trainer.student.input, trainer.student.get_layer("stem_conv").output)
    twin = make_trainer("thumbnet", config())  # its downscaler's statistics may move instead of the trainer's
    batch_mean = tf.reduce_mean(stem(twin.downscaler(images, training=True)), [0, 1, 2]).numpy()
    assert np.abs(batch_mean - before).max() > 0.01
    trainer.train_step((images, np.zeros(4, np.int64)))
    once = 0.9 * before + 0.1 * batch_mean
    np.testing.assert_allclose(norm.moving_mean.numpy(), once, rtol=1e-4, atol=1e-6)
    after = values(trainer.student.variables)
    trainer.test_step((images, np.zeros(4, np.int64)))
    for old, new in zip(after, values(trainer.student.variables), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.usefixtures("tiny_resnet")
def test_loss_is_the_weighted_mean_of_the_pure_losses(photos):
    cfg = config(w_cl=0.5, w_kd=2.0, w_fm=3.0, w_mm=4.0, temperature=3.0, mm_std_weight=0.5, label_smoothing=0.1)
    trainer = make_trainer("thumbnet", cfg)
    images, labels = photos(5, 32), np.array([0, 2, 1, 1, 0])
    weights = np.array([1, 1, 1, 0, 1], np.float32)  # the fourth example is padding
    logs = trainer.evaluate(tf.data.Dataset.from_tensors((images, labels, weights)), verbose=0, return_dict=True)
    thumbnails = trainer.downscaler(images, training=False)
    mine, theirs = trainer.student(thumbnails, training=False), trainer.teacher(images, training=False)
    terms = {
        "cl": losses.classification(tf.constant(labels), mine["logits"], 0.1),
        "kd": losses.distillation(theirs["logits"], mine["logits"], 3.0),
        "fm": losses.feature_mapping(theirs["stage1"], trainer.decoder(mine["stage1"])),
        "mm": losses.moment_matching(tf.constant(images), thumbnails, 0.5),
    }
    real = weights > 0
    means = {name: float(np.mean(value.numpy()[real])) for name, value in terms.items()}
    for name, mean in means.items():
        assert logs[name] == pytest.approx(mean, rel=1e-4), name
    assert logs["loss"] == pytest.approx(
        0.5 * means["cl"] + 2 * means["kd"] + 3 * means["fm"] + 4 * means["mm"], rel=1e-4
    )
    right = mine["logits"].numpy().argmax(-1) == labels
    assert logs["accuracy"] == pytest.approx(right[real].mean())
    agree = mine["logits"].numpy().argmax(-1) == theirs["logits"].numpy().argmax(-1)
    assert logs["agreement"] == pytest.approx(agree[real].mean())


@pytest.mark.usefixtures("tiny_resnet")
def test_mapping_first_trains_e_and_s_as_far_as_the_tap(photos):
    cfg = config(weight_decay=0.0, learning_rate=0.3, w_fm=3.0, w_mm=2.0)  # the tap is stage1
    trainer = make_trainer("thumbnet", cfg, mapping_steps=2)
    data = (photos(4, 32).astype(np.float32), np.array([0, 2, 1, 1]))

    def moved() -> dict[str, float]:
        """Takes a step and returns how far it moved each weight."""
        before = values(trainer.trainable_variables)
        logs.append(trainer.train_on_batch(*data, return_dict=True))
        after = zip(trainer.trainable_variables, before, strict=True)
        return {variable.path: float(np.abs(variable.numpy() - old).max()) for variable, old in after}

    logs = []
    first, second, third = moved(), moved(), moved()
    behind = [path for path in first if path.startswith(("stage2", "stage3", "stage4", "logits"))]
    as_far = [path for path in first if path.startswith(("stem", "stage1", "downscaler", "decoder"))]
    assert len(behind) > 3 and len(as_far) > 6 and len(behind) + len(as_far) == len(first)
    assert max(max(step[path] for path in behind) for step in (first, second)) == 0
    # a block's last scale starts at 0, so that its kernels move from the second step on
    assert all(max(first[path], second[path]) > 0 for path in as_far)
    assert min(third["logits/kernel"], third["logits/bias"], third["downscaler_1_conv/kernel"]) > 0
    assert logs[0]["loss"] == pytest.approx(3 * logs[0]["fm"] + 2 * logs[0]["mm"], rel=1e-5)
    assert logs[0]["cl"] > 0.1 and logs[0]["kd"] > 0  # measured all the same
    full = trainer.test_on_batch(*data, return_dict=True)  # validation counts all terms at any time
    assert full["loss"] == pytest.approx(full["cl"] + full["kd"] + 3 * full["fm"] + 2 * full["mm"], rel=1e-5)
    plain = make_trainer("supervised_kd", cfg, mapping_steps=2)  # no FM: nothing to learn first
    plain.train_on_batch(*data)
    assert plain.mapping_steps == 0 and np.abs(plain.student.get_layer("logits").bias.numpy()).max() > 0


@pytest.mark.usefixtures("tiny_resnet")
def test_adamw_begins_with_what_is_behind_the_tap_when_its_gradients_do(photos):
    data = (photos(4, 32).astype(np.float32), np.array([0, 2, 1, 1]))
    cfg = config(optimizer="adamw", weight_decay=0.0, learning_rate=0.01, clip_norm=0.0)
    trainer = make_trainer("thumbnet", cfg, steps=10**6, mapping_steps=3)
    kernel = trainer.student.get_layer("logits").kernel
    for _ in range(3):
        trainer.train_on_batch(*data)
    before = kernel.numpy()
    trainer.train_on_batch(*data)
    # Adam's first step moves by rate g / sqrt(g^2), the rate; counted from the start it would be the rate times
    # 0.1 / (1 - 0.9^4) / sqrt(0.001 / (1 - 0.999^4)) = 0.2908 / 0.5004 = 0.58 (1.3 after 200 steps, 2.9 after 2000)
    moved = np.abs(kernel.numpy() - before)
    assert moved.max() == pytest.approx(0.01, rel=1e-3)
    assert np.median(moved) == pytest.approx(0.01, rel=1e-2)


@pytest.mark.usefixtures("tiny_resnet")
def test_a_batch_of_padding_alone_changes_no_weight(photos):
    trainer = make_trainer("bicubic", config(weight_decay=0.0))
    before = values(trainer.trainable_variables)
    trainer.train_on_batch(photos(2, 32).astype(np.float32), np.array([0, 1]), sample_weight=np.zeros(2, np.float32))
    for old, new in zip(before, values(trainer.trainable_variables), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.usefixtures("tiny_resnet")
def test_logged_losses_are_running_means_not_the_last_batch(photos):
    trainer = make_trainer("bicubic", config(learning_rate=0.0))
    images, labels = photos(6, 32), np.array([0, 1, 2, 2, 1, 0])
    each = [trainer.test_on_batch(images[i : i + 2], labels[i : i + 2], return_dict=True)["loss"] for i in (0, 2, 4)]
    trainer.reset_metrics()
    logs = trainer.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    assert np.std(each) > 0
    assert np.isclose(logs["loss"], trainer.evaluate(images, labels, batch_size=6, verbose=0, return_dict=True)["loss"])


@pytest.mark.usefixtures("tiny_resnet")
def test_history_holds_only_what_was_measured(photos):
    trainer = make_trainer("bicubic", config())
    images, labels = photos(4, 32), np.array([0, 1, 2, 0])
    history = trainer.fit(images, labels, batch_size=4, validation_data=(images, labels), verbose=0).history
    assert {"loss", "cl", "accuracy", "val_agreement"} <= history.keys()
    assert "agreement" not in history  # T isn't run to train by labels alone
    with pytest.raises(UserError, match="a method must have a loss term of weight above 0"):
        make_trainer("supervised", config(w_cl=0.0, w_mm=0.0)).train_step((images, labels))


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_trainer_computes_as_its_configuration_says(policy):
    cfg = config(mixed_precision=policy)
    with graph.precision(policy):
        teacher = thumbnet.build_teacher(cfg, CLASSES)
    trainer = build_trainer("thumbnet", cfg, CLASSES, teacher)
    half = policy.removeprefix("mixed_")
    for model, layer in ((trainer.student, "stem_conv"), (trainer.downscaler, "downscaler_1_conv")):
        assert model.get_layer(layer).compute_dtype == half
    assert keras.config.dtype_policy().name == "float32"
    trainer.compile(optimizer="sgd")
    scaled = isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


@pytest.mark.usefixtures("tiny_resnet")
def test_a_teacher_of_other_classes_is_refused():
    for method in ("thumbnet", "slim"):
        with pytest.raises(UserError, match="as many classes as there are. Received: a T of 3 classes for 4$"):
            build_trainer(method, config(), CLASSES + 1, thumbnet.build_teacher(config(), CLASSES))


@pytest.mark.usefixtures("tiny_resnet")
def test_t_itself_is_trained_anew_beside_another_t():
    alone = build_trainer("original", config(), CLASSES, None).student
    beside = build_trainer("original", config(), CLASSES, thumbnet.build_teacher(config(), CLASSES)).student
    for ours, theirs in zip(beside.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("tiny_resnet")
def test_clipping_bounds_the_whole_gradient(photos):
    # plain SGD with rate 1: the step is the clipped gradient
    trainer = make_trainer("bicubic", config(clip_norm=0.01))
    trainer.compile(optimizer=keras.optimizers.SGD(1.0))
    before = values(trainer.trainable_variables)
    trainer.train_step((photos(4, 32), np.array([0, 1, 2, 0])))
    step = [a - b for a, b in zip(before, values(trainer.trainable_variables), strict=True)]
    assert np.sqrt(sum((s**2).sum() for s in step)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_thumbnails_and_logits_in_float32(policy, photos):
    keras.config.set_dtype_policy(policy)
    cfg = config(mixed_precision=policy, clip_norm=1.0)
    trainer = make_trainer("thumbnet", cfg)
    trainer.run_eagerly = policy != "mixed_float16"  # in a graph, a step with too large gradients is left out otherwise
    images, labels = photos(4, 32), np.array([0, 1, 2, 0])
    before = values(trainer.student.trainable_variables)
    trainer.fit(images, labels, batch_size=2, verbose=0)
    after = values(trainer.student.trainable_variables)
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 0
    assert all(np.isfinite(v).all() for v in after)
    outputs = trainer(images)
    assert outputs["logits"].dtype == outputs["thumbnail"].dtype == tf.float32
    np.testing.assert_array_equal(outputs["thumbnail"], np.rint(outputs["thumbnail"]))
    assert trainer.student.get_layer("stem_conv").compute_dtype == policy.removeprefix("mixed_")
    between = 0.9 * images.astype(np.float32) + 0.3  # levels that half precision would round
    np.testing.assert_array_equal(trainer(between)["thumbnail"], trainer.downscaler(between))


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize(("optimizer", "decay"), [("sgd", 0.1), ("adamw", 0.1), ("sgd", 0.0)])
def test_weight_decay_leaves_biases_and_batch_normalisation_alone(optimizer, decay):
    cfg = config(optimizer=optimizer, weight_decay=decay, learning_rate=0.5)
    trainer = make_trainer("bicubic", cfg, steps=10**6)
    before = {v.path: v.numpy() for v in trainer.trainable_variables}
    trainer.optimizer.apply([tf.zeros(v.shape) for v in trainer.trainable_variables], trainer.trainable_variables)
    for variable in trainer.trainable_variables:
        # a zero gradient: only decay moves, w (1 - rate decay)
        factor = 1 - 0.5 * decay if variable.path.endswith("kernel") else 1.0
        np.testing.assert_allclose(variable.numpy(), factor * before[variable.path], rtol=1e-5, atol=1e-7)


def test_learning_rate_warms_up_and_decays():
    rate = build_optimizer(config(warmup_fraction=0.1, learning_rate=1.0), 1.0, 100, [])._learning_rate
    # 10 of 100 steps rise from a tenth: 0.1 + 0.9 * 5 / 10; then (1 + cos(pi (step - 10) / 90)) / 2, whose cosine is
    # 0 at step 55 and -1 at step 100
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(55), rate(100)], [0.1, 0.55, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_resnet")
def test_labels_are_class_numbers_in_a_row_or_a_column_or_probabilities(photos):
    images, labels = photos(4, 32).astype(np.float32), np.array([0, 2, 1, 2])
    losses = [
        make_trainer("thumbnet", config()).test_on_batch(images, given, return_dict=True)["cl"]
        for given in (labels, labels[:, None], labels.astype(np.float32), np.eye(CLASSES)[labels])
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    trainer = make_trainer("thumbnet", config())
    trainer.run_eagerly = False
    with pytest.raises(UserError, match=r"or probabilities \(B, 3\). Received: the shape \(4, 4\)"):
        trainer.train_on_batch(images, np.eye(CLASSES + 1)[labels])
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"labels must be class numbers from 0 to {CLASSES - 1}"):
        trainer.train_on_batch(photos(2, 32), np.array([0, -1]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"labels must be class numbers from 0 to {CLASSES - 1}"):
        trainer.test_on_batch(images, labels + CLASSES)


def test_trained_models_are_saved_and_loaded_without_the_trainers_layers(photos, tmp_path):
    trainer = make_trainer("thumbnet", config())
    trainer.train_on_batch(photos(4, 32).astype(np.float32), np.array([0, 1, 2, 0]))
    small, student = trainer.trained()
    assert {type(layer).__module__.split(".")[0] for layer in student.layers} == {"keras"}
    for model, own, side in ((small, trainer.downscaler, 32), (student, trainer.student, 16)):
        model.save(tmp_path / "model.keras")
        images = photos(2, side).astype(np.float32)
        found, expected = keras.saving.load_model(tmp_path / "model.keras")(images), own(images, training=False)
        for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_missing_parts_are_named():
    with pytest.raises(ValueError, match="loss term kd needs a teacher"):
        Trainer(None, loss_weights={"kd": 1.0})
    with pytest.raises(ValueError, match="terms kd, fm, mm, cl. Received: 'xx'"):
        Trainer(None, loss_weights={"xx": 1.0})


def test_adamw_is_that_of_keras():
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(0, 1, (3, 3, 2, 4)), "bias": rng.normal(0, 1, 4)}
    gradients = [[rng.normal(0, 0.1, value.shape).astype(np.float32) for value in start.values()] for _ in range(6)]
    cfg = config(optimizer="adamw", weight_decay=0.1, ema_momentum=0.5)
    after = []
    for kind in (None, keras.optimizers.AdamW):
        variables = [keras.Variable(value.astype(np.float32), name=name) for name, value in start.items()]
        optimizer = build_optimizer(cfg, 0.01, 6, variables)
        if kind:
            assert type(optimizer) is not kind
            optimizer = kind(optimizer._learning_rate, weight_decay=0.1, use_ema=True, ema_momentum=0.5)
            optimizer.exclude_from_weight_decay(var_list=variables[1:])
        for step in gradients:
            optimizer.apply_gradients(zip(map(tf.constant, step), variables, strict=True))
        after.append(values(variables) + values(optimizer._model_variables_moving_average))
    assert np.abs(after[0][0] - start["kernel"]).max() > 0.01
    for ours, theirs in zip(*after, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
