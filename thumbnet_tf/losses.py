"""The four losses of ThumbNet: pure functions, one value per example.

Sources: distillation, Hinton et al. 2015 (https://arxiv.org/abs/1503.02531); hints from feature maps, Romero et
al. 2015 (https://arxiv.org/abs/1412.6550); the names CL, KD, FM, MM and what they act on, Zhao & Ghanem 2020
(https://arxiv.org/abs/1904.05034). The exact forms are this project's reading of them.
"""

import tensorflow as tf


def classification(labels: tf.Tensor, logits: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """CL, the cross-entropy  -sum_k q_k log softmax(z)_k  with q = (1 - s) onehot(y) + s / C.

    Args:
        labels: `(B,)` integer class indices, or `(B, C)` float class probabilities.
        logits: `(B, C)` float.
        label_smoothing: s in [0, 1).

    Returns:
        `(B,)` float32, in nats.
    """
    logits = tf.cast(logits, tf.float32)
    classes = logits.shape[-1]
    target = tf.one_hot(labels, classes) if len(labels.shape) == 1 else tf.cast(labels, tf.float32)
    target = (1.0 - label_smoothing) * target + label_smoothing / classes
    return -tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=-1)


def distillation(teacher_logits: tf.Tensor, student_logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """KD,  tau^2 sum_k p_k (log p_k - log q_k)  with p = softmax(z_T / tau), q = softmax(z_S / tau).

    Args:
        teacher_logits: `(B, C)` float.
        student_logits: `(B, C)` float.
        temperature: tau > 0.

    Returns:
        `(B,)` float32, at least 0.
    """
    log_p = tf.nn.log_softmax(tf.cast(teacher_logits, tf.float32) / temperature)
    log_q = tf.nn.log_softmax(tf.cast(student_logits, tf.float32) / temperature)
    return temperature**2 * tf.reduce_sum(tf.exp(log_p) * (log_p - log_q), axis=-1)


def feature_mapping(teacher_map: tf.Tensor, decoded_map: tf.Tensor) -> tf.Tensor:
    """FM,  mean (d - f)^2 / mean f^2  over one example's positions and channels: the unexplained share of T's map.

    Args:
        teacher_map: `(B, H, W, C)` float, a map f of T.
        decoded_map: `(B, H, W, C)` float, the decoder's d = D(map of S).

    Returns:
        `(B,)` float32; 0 for a perfect decoding, 1 for d = 0.
    """
    f, d = tf.cast(teacher_map, tf.float32), tf.cast(decoded_map, tf.float32)
    error = tf.reduce_mean(tf.square(d - f), axis=[1, 2, 3])
    return error / (tf.reduce_mean(tf.square(f), axis=[1, 2, 3]) + 1e-6)


def moment_matching(images: tf.Tensor, thumbnails: tf.Tensor, std_weight: float = 1.0) -> tf.Tensor:
    """MM,  sum_c (mean_c(t) - mean_c(x))^2 + lambda (std_c(t) - std_c(x))^2  over one example's pixels.

    Args:
        images: `(B, H, W, 3)` in [0, 255].
        thumbnails: `(B, h, w, 3)` in [0, 255].
        std_weight: lambda, at least 0.

    Returns:
        `(B,)` float32, in units of a pixel range of [0, 1].
    """
    mean_x, std_x = _moments(images)
    mean_t, std_t = _moments(thumbnails)
    return tf.reduce_sum(tf.square(mean_t - mean_x) + std_weight * tf.square(std_t - std_x), axis=-1)


def _moments(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the mean and standard deviation of each channel, `(B, 3)` each, in units of a pixel range of [0, 1].

    First those of each column, then of all: sums along the columns run over whole rows of memory, several times faster
    than sums over three colours at a time.
    """
    mean, variance = tf.nn.moments(tf.cast(images, tf.float32), axes=[1])
    mean, between = tf.nn.moments(mean, axes=[1])  # the variance is that within the columns and that between them
    variance = (tf.reduce_mean(variance, axis=1) + between) / 255.0**2
    return mean / 255.0, tf.sqrt(variance + 1e-8)  # the constant keeps the gradient finite on a flat image
