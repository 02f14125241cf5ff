"""The optimizer of a training, and AdamW whose update is one operator of TensorFlow instead of Keras' dozen."""

from collections.abc import Collection

import keras
import tensorflow as tf

from thumbnet_tf.config import Config


class AdamW(keras.optimizers.AdamW):
    """Keras' AdamW, computed by TensorFlow's own kernel, which reads and writes each weight once.

    The same formula: m and v are the running means of g and g^2, and
    w -= rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + epsilon), after w *= 1 - rate decay, where weights decay.
    """

    def begin_late(self, variables: Collection[keras.Variable], steps: int) -> None:
        """Counts t of some weights from a later step on: before it, their gradients are 0.

        Their v is as young as their first gradient; counted from the start, it would pass for a settled one, and the
        first steps would be several times too large.
        """
        self._late = {self._var_key(variable): steps for variable in variables}

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        if self.weight_decay and self._use_weight_decay(variable):
            variable.assign(variable * tf.cast(1 - learning_rate * self.weight_decay, variable.dtype))
        index = self._get_variable_index(variable)
        late = getattr(self, "_late", {}).get(self._var_key(variable), 0)
        step = tf.cast(tf.maximum(self.iterations.value + 1 - late, 1), tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        """Leaves the decay to `update_step`, where it is one product; here Keras goes over each weight three times."""


def build_optimizer(
    cfg: Config,
    peak_rate: float,
    total_steps: int,
    variables: list[keras.Variable],
    late: Collection[keras.Variable] = (),
    late_steps: int = 0,
) -> keras.Optimizer:
    """Builds the optimizer with its warm-up and cosine decay to 0.

    Args:
        cfg: the configuration.
        peak_rate: highest learning rate.
        total_steps: steps until the rate is 0.
        variables: all variables to train; weight decay leaves out biases and batch normalisation.
        late: those of them whose gradients are 0 in the first steps.
        late_steps: how many steps that are.
    """
    warmup = round(cfg.warmup_fraction * total_steps)
    rate = keras.optimizers.schedules.CosineDecay(
        peak_rate / warmup if warmup else peak_rate,
        max(total_steps - warmup, 1),
        warmup_target=peak_rate if warmup else None,
        warmup_steps=warmup,
    )
    common = {
        "weight_decay": cfg.weight_decay,
        "use_ema": cfg.ema_momentum > 0,
        "ema_momentum": cfg.ema_momentum or 0.99,
    }
    if cfg.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **common)
    else:
        optimizer = AdamW(rate, **common)
        optimizer.begin_late(late, late_steps)
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not v.path.endswith("kernel")])
    if cfg.mixed_precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
