"""Golden numbers with their arithmetic, and a slow NumPy reference, for each loss."""

import math

import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import losses


def softmax(z):
    e = [math.exp(value - max(z)) for value in z]
    return [value / sum(e) for value in e]


def test_classification_golden():
    # softmax([0, log 3]) = [1/4, 3/4]: label 0 costs log 4, label 1 costs log 4/3
    logits = tf.constant([[0.0, math.log(3)], [0.0, math.log(3)]])
    value = losses.classification(tf.constant([0, 1]), logits)
    np.testing.assert_allclose(value, [math.log(4), math.log(4 / 3)], rtol=1e-6)


def test_classification_label_smoothing_golden():
    # s = 0.2, C = 2: target [0.9, 0.1]: 0.9 log 4 + 0.1 log 4/3
    value = losses.classification(tf.constant([0]), tf.constant([[0.0, math.log(3)]]), 0.2)
    np.testing.assert_allclose(value, [0.9 * math.log(4) + 0.1 * math.log(4 / 3)], rtol=1e-6)
    # s = 0.3, C = 3: target [0.1, 0.1, 0.8], softmax [1/4, 1/4, 1/2]: 0.2 log 4 + 0.8 log 2
    value = losses.classification(tf.constant([2]), tf.constant([[0.0, 0.0, math.log(2)]]), 0.3)
    np.testing.assert_allclose(value, [0.2 * math.log(4) + 0.8 * math.log(2)], rtol=1e-6)


def test_classification_takes_probabilities():
    # a half-half target is the mean of both labels' losses
    logits = tf.constant([[0.0, math.log(3)]])
    value = losses.classification(tf.constant([[0.5, 0.5]]), logits)
    np.testing.assert_allclose(value, [(math.log(4) + math.log(4 / 3)) / 2], rtol=1e-6)


def test_distillation_golden():
    # tau = 2, z_T = [0, 2 log 3] -> p = [1/4, 3/4]; z_S = [0, 0] -> q = [1/2, 1/2]
    # 4 (1/4 log 1/2 + 3/4 log 3/2) = 4 (0.75 log 3 - log 2)
    value = losses.distillation(tf.constant([[0.0, 2 * math.log(3)]]), tf.constant([[0.0, 0.0]]), 2.0)
    np.testing.assert_allclose(value, [4 * (0.75 * math.log(3) - math.log(2))], rtol=1e-6)


def test_distillation_gradient_is_temperature_times_difference_of_probabilities():
    # d/dz_S of tau^2 KL = tau (q - p)
    teacher, student, tau = [[1.0, -2.0, 0.5]], tf.Variable([[0.3, 0.1, -1.0]]), 3.0
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(losses.distillation(tf.constant(teacher), student, tau))
    p = softmax([z / tau for z in teacher[0]])
    q = softmax([z / tau for z in student.numpy()[0].tolist()])
    np.testing.assert_allclose(
        tape.gradient(value, student)[0], [tau * (b - a) for a, b in zip(p, q, strict=True)], atol=1e-6
    )


def test_feature_mapping_golden():
    # f = [3, 4], d = [3, 2]: mean (d - f)^2 = 4/2, mean f^2 = 25/2, so 4/25
    f = tf.reshape(tf.constant([3.0, 4.0]), (1, 1, 1, 2))
    d = tf.reshape(tf.constant([3.0, 2.0]), (1, 1, 1, 2))
    np.testing.assert_allclose(losses.feature_mapping(f, d), [4 / 25], rtol=1e-5)
    np.testing.assert_allclose(losses.feature_mapping(f, tf.zeros_like(f)), [1.0], rtol=1e-5)


def test_moment_matching_golden():
    # red of the image: 0 and 255 -> mean 0.5, std 0.5; red of the thumbnail: 51 -> mean 0.2, std 0
    # green and blue equal. 0.3^2 + lambda 0.5^2 with lambda = 2: 0.09 + 0.5
    image = np.full((1, 1, 2, 3), 102.0, np.float32)
    image[0, 0, :, 0] = [0, 255]
    thumbnail = np.full((1, 1, 1, 3), 102.0, np.float32)
    thumbnail[..., 0] = 51
    value = losses.moment_matching(tf.constant(image), tf.constant(thumbnail), 2.0)
    np.testing.assert_allclose(value, [0.09 + 2 * 0.25], atol=2e-4)  # std has a floor of 1e-4


def test_moment_matching_has_finite_gradients_on_a_flat_thumbnail():
    thumbnail = tf.Variable(tf.fill((1, 2, 2, 3), 100.0))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(losses.moment_matching(tf.fill((1, 4, 4, 3), 90.0), thumbnail))
    assert np.isfinite(tape.gradient(value, thumbnail)).all()


@pytest.mark.parametrize("batch", [1, 5])
def test_all_against_slow_loops(batch, photos):
    rng = np.random.default_rng(batch)
    labels, classes, tau = rng.integers(0, 4, batch), 4, 2.5
    z_t, z_s = rng.normal(0, 3, (batch, classes)), rng.normal(0, 3, (batch, classes))
    f, d = rng.normal(size=(batch, 3, 3, 2)), rng.normal(size=(batch, 3, 3, 2))
    x, t = photos(batch, 8, 1), photos(batch, 4, 2)
    cl, kd, fm, mm = [], [], [], []
    for i in range(batch):
        cl.append(-math.log(softmax(z_s[i].tolist())[labels[i]]))
        p, q = softmax((z_t[i] / tau).tolist()), softmax((z_s[i] / tau).tolist())
        kd.append(tau**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        error = energy = 0.0
        for position in np.ndindex(3, 3, 2):
            error += (d[i][position] - f[i][position]) ** 2
            energy += f[i][position] ** 2
        fm.append(error / energy)
        total = 0.0
        for c in range(3):
            a, b = x[i, ..., c].ravel() / 255, t[i, ..., c].ravel() / 255
            mean_a, mean_b = sum(a) / a.size, sum(b) / b.size
            std_a = math.sqrt(sum((v - mean_a) ** 2 for v in a) / a.size)
            std_b = math.sqrt(sum((v - mean_b) ** 2 for v in b) / b.size)
            total += (mean_b - mean_a) ** 2 + 0.7 * (std_b - std_a) ** 2
        mm.append(total)
    np.testing.assert_allclose(losses.classification(tf.constant(labels), tf.constant(z_s)), cl, rtol=1e-4)
    np.testing.assert_allclose(losses.distillation(tf.constant(z_t), tf.constant(z_s), tau), kd, rtol=1e-4)
    np.testing.assert_allclose(losses.feature_mapping(tf.constant(f), tf.constant(d)), fm, rtol=1e-4)
    np.testing.assert_allclose(losses.moment_matching(tf.constant(x), tf.constant(t), 0.7), mm, rtol=1e-3, atol=1e-6)


def test_losses_are_float32_under_half_precision_inputs():
    logits = tf.cast(tf.constant([[1.0, 2.0], [5.0, -5.0]]), tf.bfloat16)
    assert losses.classification(tf.constant([0, 1]), logits).dtype == tf.float32
    assert losses.distillation(logits, logits, 1.0).dtype == tf.float32
    np.testing.assert_allclose(losses.distillation(logits, logits, 1.0), [0, 0], atol=1e-6)
