"""The training step: the only home of the gradient tape, of the combined loss and of its scaling over replicas."""

import math
from collections.abc import Mapping

import keras
import tensorflow as tf

from thumbnet_tf import jpeg, losses
from thumbnet_tf.config import UserError
from thumbnet_tf.stages import DECODED, MAPPING, TAUGHT
from thumbnet_tf.training_layers import plain


class Trainer(keras.Model):
    """Trains a student, and a learned downscaler with it, under any of ThumbNet's four losses.

    Works in `fit` and `evaluate`, alone or under `tf.distribute`, on batches `(images, labels[, weights])`: images
    `(B, H, W, 3)` in [0, 255], labels `(B,)` or `(B, 1)` integers or `(B, C)` probabilities, weights `(B,)` (0 for
    padding). In place of the images there may stand a dict of `image` and outputs of T for them by name, such as
    `logits` and `stage2`, which then needn't be computed: T runs only as far as an output that is needed and not given.

    Training T itself is the case without downscaler and teacher.

    Every replica must get an example: TensorFlow's convolutions refuse an empty batch. Where the last batch of a data
    set may have fewer than there are replicas, `batch(..., drop_remainder=True)` keeps it away from `fit`.
    """

    def __init__(
        self,
        student: keras.Model,
        *,
        downscaler: keras.Model | None = None,
        teacher: keras.Model | None = None,
        decoder: keras.Model | None = None,
        loss_weights: Mapping[str, float],
        temperature: float = 4.0,
        fm_tap: str = "stage2",
        mapping_steps: int = 0,
        mm_std_weight: float = 1.0,
        label_smoothing: float = 0.0,
        clip_norm: float = 0.0,
        thumbnail_jpeg: int = 0,
    ) -> None:
        """Takes the models and the loss.

        Args:
            student: model from (thumbnail) images to a dict with `logits` and taps.
            downscaler: model from images to the student's input; None feeds the images themselves.
            teacher: frozen model from images to a dict with `logits` and taps; needed by KD and FM, and
                for the agreement with it.
            decoder: model from the student's tap to the teacher's; needed by FM.
            loss_weights: weight of each term that is on, of cl, kd, fm, mm.
            temperature: tau of KD.
            fm_tap: name of FM's tap.
            mapping_steps: steps at the start in which CL and KD don't count, where there is FM: its gradients, and
                MM's, reach E, D and the student's layers as far as the tap (the layers behind it only decay).
            mm_std_weight: lambda of MM.
            label_smoothing: of CL.
            clip_norm: largest norm of the global gradient; 0 for no clipping.
            thumbnail_jpeg: JPEG quality that thumbnails pass through in training, not in evaluation; 0 for none.

        Raises:
            ValueError: when a term's model is missing.
        """
        # images stay as they are given: Keras would round them to half precision before a layer of float32 sees them
        super().__init__(name="trainer", autocast=False)
        needs = {"kd": {"teacher"}, "fm": {"teacher", "decoder"}, "mm": {"downscaler"}, "cl": set()}
        given = {"teacher": teacher, "decoder": decoder, "downscaler": downscaler}
        for term in loss_weights:
            if term not in needs:
                raise ValueError(f"loss_weights takes the terms {', '.join(needs)}. Received: {term!r}")
            for name in needs[term]:
                if given[name] is None:
                    raise ValueError(f"the loss term {term} needs a {name}. Received: {name}=None")
        self.student, self.downscaler, self.decoder = student, downscaler, decoder
        self.teacher = teacher
        if teacher is not None:
            teacher.trainable = False
        self.term_weights = dict(loss_weights)
        self.temperature, self.fm_tap, self.mm_std_weight = temperature, fm_tap, mm_std_weight
        self.label_smoothing, self.clip_norm = label_smoothing, clip_norm
        self.mapping_steps = mapping_steps if "fm" in loss_weights else 0
        self.thumbnail_jpeg = thumbnail_jpeg
        self.supports_jit = not thumbnail_jpeg  # XLA knows no JPEG
        names = ["loss", *loss_weights, "accuracy"] + (["agreement"] if teacher is not None else [])
        self.trackers = [keras.metrics.Mean(name=name) for name in names]

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Running means of the loss, of its terms, of the accuracy and of the agreement with T."""
        return list(self.trackers)

    @property
    def is_taught(self) -> bool:
        """Whether a training step needs the teacher's outputs, given or computed."""
        return bool(set(TAUGHT) & set(self.term_weights))

    def trained(self) -> tuple[keras.Model | None, keras.Model]:
        """Returns copies of E (or None) and S as they are by now, of layers that can be saved."""
        return self.downscaler and plain(self.downscaler), plain(self.student)

    def late_variables(self) -> list[keras.Variable]:
        """Returns the student's weights behind the tap, whose gradients are 0 in the mapping steps; none without."""
        if not self.mapping_steps:
            return []
        first = keras.Model(self.student.input, self.student.output[self.fm_tap])
        reached = {id(variable) for variable in first.trainable_variables}
        return [variable for variable in self.student.trainable_variables if id(variable) not in reached]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the student's outputs and the downscaler's `thumbnail`."""
        images = tf.cast(images, tf.float32)
        seen = thumbnail = images if self.downscaler is None else self.downscaler(images, training=training)
        if training and self.thumbnail_jpeg and self.downscaler is not None:
            seen = jpeg.through_jpeg(thumbnail, self.thumbnail_jpeg)
        return {**self.student(seen, training=training), "thumbnail": thumbnail}

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Takes one step on one replica's part of the batch and returns the running means."""
        images, given, labels, weights = self._unpacked(data)
        targets = self._teach(images, given) if self.is_taught else None
        with tf.GradientTape() as tape:
            outputs = self(images, training=True)
            terms = self._loss_terms(images, labels, outputs, targets)
            total = self._weighted(terms, self._is_past_mapping())
            # sum over the replica, divided once by the number of examples on all replicas: gradients are summed
            # over replicas by the optimizer, so every replica count and every uneven batch gives the same step
            count = _sum_over_replicas(tf.reduce_sum(weights))
            loss = tf.math.divide_no_nan(tf.reduce_sum(total * weights), count)
            scaled_loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_variables
        gradients = tape.gradient(scaled_loss, variables)
        if self.clip_norm > 0 or isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            gradients = self._clip(gradients)
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return self._track(total, terms, labels, outputs, targets, weights)

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """Evaluates one replica's part of a batch and returns the running means."""
        images, given, labels, weights = self._unpacked(data)
        targets = None if self.teacher is None else self._teach(images, given)
        outputs = self(images, training=False)
        terms = self._loss_terms(images, labels, outputs, targets)
        return self._track(self._weighted(terms), terms, labels, outputs, targets, weights)

    def _unpacked(self, data: tuple) -> tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor, tf.Tensor]:
        """Returns images, T's outputs as far as they are given, labels and weights.

        Raises:
            UserError: when labels are neither class numbers, `(B,)` or `(B, 1)`, nor probabilities `(B, C)`.
        """
        inputs, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        given = dict(inputs) if isinstance(inputs, Mapping) else {"image": inputs}
        images = tf.cast(given.pop("image"), tf.float32)
        weights = tf.ones(tf.shape(images)[:1]) if weights is None else tf.cast(weights, tf.float32)
        classes, labels = self.student.output["logits"].shape[-1], tf.convert_to_tensor(labels)
        if labels.shape.rank == 2 and labels.shape[-1] == 1:
            labels = labels[:, 0]
        if labels.shape.rank != 1 and labels.shape[-1] != classes:
            raise UserError(
                f"labels must be class numbers (B,) or probabilities (B, {classes}). Received: the shape {labels.shape}"
            )
        if labels.shape.rank == 1:
            labels = tf.cast(labels, tf.int64)
            message = f"labels must be class numbers from 0 to {classes - 1}"
            limit = tf.constant(classes, tf.int64)
            within = [
                tf.debugging.assert_non_negative(tf.reduce_min(labels), message),
                tf.debugging.assert_less(tf.reduce_max(labels), limit, message),
            ]
            with tf.control_dependencies(within):
                labels = tf.identity(labels)
        return images, given, labels, weights

    def _teach(self, images: tf.Tensor, given: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        needed = {"logits", *({self.fm_tap} if set(DECODED) & set(self.term_weights) else ())}
        targets = dict(given)
        if needed - targets.keys():  # what isn't used of T's graph is pruned from the step's
            targets = {**self.teacher(images, training=False), **targets}
        return {name: tf.stop_gradient(targets[name]) for name in needed}

    def _loss_terms(
        self, images: tf.Tensor, labels: tf.Tensor, outputs: dict[str, tf.Tensor], targets: dict[str, tf.Tensor] | None
    ) -> dict[str, tf.Tensor]:
        """Returns the unweighted loss terms that are on, `(B,)` float32 each."""
        terms = {}
        if "cl" in self.term_weights:
            terms["cl"] = losses.classification(labels, outputs["logits"], self.label_smoothing)
        if "kd" in self.term_weights:
            terms["kd"] = losses.distillation(targets["logits"], outputs["logits"], self.temperature)
        if "fm" in self.term_weights:
            decoded = self.decoder(outputs[self.fm_tap])
            terms["fm"] = losses.feature_mapping(targets[self.fm_tap], decoded)
        if "mm" in self.term_weights:
            terms["mm"] = losses.moment_matching(images, outputs["thumbnail"], self.mm_std_weight)
        return terms

    def _is_past_mapping(self) -> tf.Tensor | float:
        """Returns what CL and KD are multiplied by in this step: 0 while FM and MM act alone, then 1."""
        if not self.mapping_steps:
            return 1.0
        return tf.cast(tf.convert_to_tensor(self.optimizer.iterations) >= self.mapping_steps, tf.float32)

    def _weighted(self, terms: dict[str, tf.Tensor], classified: tf.Tensor | float = 1.0) -> tf.Tensor:
        if not terms:
            raise UserError(
                "a method must have a loss term of weight above 0 to be trained or evaluated. Received: none"
            )
        factors = {name: 1.0 if name in MAPPING else classified for name in terms}
        return tf.add_n([self.term_weights[name] * factors[name] * value for name, value in terms.items()])

    def _clip(self, gradients: list[tf.Tensor]) -> list[tf.Tensor]:
        """Scales the gradients so that their sum over all replicas has at most the norm `clip_norm`, if there is one.

        The optimizer's own clipping acts before the sum, on each replica's share, and so depends on their number. Where
        one replica's share overflows, all get NaN: loss scaling looks at one share only, and skips the step by it.
        """
        norm = tf.linalg.global_norm(_sum_over_replicas(gradients)) / self.optimizer.scale_loss(tf.constant(1.0))
        factor = tf.minimum(1.0, (self.clip_norm or math.inf) / (norm + 1e-12))
        factor = tf.where(tf.math.is_finite(norm), factor, math.nan)
        return [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]

    def _track(
        self,
        total: tf.Tensor,
        terms: dict[str, tf.Tensor],
        labels: tf.Tensor,
        outputs: dict[str, tf.Tensor],
        targets: dict[str, tf.Tensor] | None,
        weights: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        predicted = tf.argmax(outputs["logits"], axis=-1, output_type=tf.int64)
        likeliest = tf.argmax(labels, axis=-1, output_type=tf.int64) if len(labels.shape) == 2 else labels
        values = {"loss": total, **terms, "accuracy": predicted == tf.cast(likeliest, tf.int64)}
        if targets is not None:
            values["agreement"] = predicted == tf.argmax(targets["logits"], axis=-1, output_type=tf.int64)
        # the mean over all replicas, noted by each with its share of the weight: so every replica's tracker holds
        # the same numbers, and a checkpoint, which keeps their sum, restores them exactly
        count = _sum_over_replicas(tf.reduce_sum(weights))
        share = count / tf.distribute.get_replica_context().num_replicas_in_sync
        for tracker in self.trackers:
            if tracker.name in values:
                summed = _sum_over_replicas(tf.reduce_sum(tf.cast(values[tracker.name], tf.float32) * weights))
                tracker.update_state(tf.math.divide_no_nan(summed, count), sample_weight=share)
        return {tracker.name: tracker.result() for tracker in self.metrics if tracker.name in values}


def _sum_over_replicas(value):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)
