"""Every option of a run: one frozen dataclass with types, defaults, help and bounds.

The command-line flags (`flags.py`), the files in a run directory (`runs.py`) and the Python API are all
derived from these fields. This module imports neither TensorFlow nor absl.
"""

import dataclasses
import json

from thumbnet_tf import config_checks
from thumbnet_tf.config_checks import APPLICATIONS as APPLICATIONS
from thumbnet_tf.config_checks import AUTO as AUTO
from thumbnet_tf.options import FlagError as FlagError
from thumbnet_tf.options import UserError as UserError
from thumbnet_tf.options import check_options as check_options
from thumbnet_tf.options import option as option
from thumbnet_tf.options import to_flagfile as to_flagfile


@dataclasses.dataclass(frozen=True)
class Config:
    """All that defines a training run. `resolved()` replaces every `auto`."""

    # --- run
    run_dir: str = option(
        "runs/default", "run directory; default runs/<flagfile's name>, else runs/default", identity=False
    )
    seed: int = option(
        0,
        "seed of initial weights, data order and augmentation (that of cached views: view_seed)",
        minimum=0,
        maximum=2**31 - 1,
    )
    methods: tuple[str, ...] = option(
        ("direct", "bicubic", "thumbnet"),
        "comma-separated methods to train and compare (see stages.py)",
        identity=False,
    )

    # --- data
    dataset: str = option(
        "fine_detail", "fine_detail, fine_detail/hard, folder:PATH, or a TFDS name such as tf_flowers"
    )
    data_dir: str = option(
        "", "where TFDS sets are looked for and prepared; default ~/tensorflow_datasets", identity=False
    )
    image_size: int = option(96, "side of the full-size square input of T and E, pixels", minimum=16, maximum=4096)
    crop_fraction: float = option(
        0.0,
        "evaluation crop: side of the central square over the short side; 0 = auto (1 for fine_detail, else 0.875)",
        minimum=0.0,
        maximum=1.0,
    )
    augment: str = option(
        AUTO,
        "train augmentation; auto = none for fine_detail, else crop_flip",
        choices=(AUTO, "none", "crop", "crop_flip"),
    )
    random_crop_min_area: float = option(
        0.35, "smallest share of the image's area in a random resized crop", minimum=0.01, maximum=1.0
    )
    mixup_alpha: float = option(
        0.0,
        "MixUp in training E and S: images are mixed by shares of a Beta(alpha, alpha) distribution; 0 = not at all, "
        "1 = uniform shares",
        minimum=0.0,
        maximum=100.0,
    )
    on_bad_image: str = option("error", "what to do with an image that can't be decoded", choices=("error", "skip"))
    memory_limit_gb: float = option(
        4.0,
        "decoded images are kept in memory up to this size, else decoded anew each epoch",
        minimum=0.0,
        identity=False,
    )

    # --- models
    backbone: str = option(
        "resnet18", "architecture of T, and of S", choices=("resnet18", "resnet34", "resnet50", "vgg11")
    )
    width: float = option(1.0, "multiplier of the backbone's channels", minimum=0.03125, maximum=4.0)
    teacher: str = option(
        "train",
        "where T comes from: train = --backbone, trained by this run; a finished run directory (or its teacher.keras); "
        "FILE.keras, a functional or sequential Keras classifier of this dataset's classes, used as it is; "
        f"{APPLICATIONS}NAME (such as MobileNetV2), that network without its top, with average pooling and a new "
        "classifier, trained by this run for --teacher_epochs",
    )
    teacher_input: str = option(
        AUTO,
        "what a FILE.keras or keras.applications T expects of its input: RGB in 0..255 (T scales it), 0..1 or -1..1, "
        "these behind bgr_ for colours in OpenCV's order, or the modes caffe and torch of keras.applications; auto = "
        "0..255 for a file, what the network's preprocess_input gives for keras.applications",
        choices=(AUTO, "0..255", "0..1", "-1..1", "bgr_0..255", "bgr_0..1", "bgr_-1..1", "caffe", "torch"),
    )
    teacher_weights: str = option(
        "none",
        "what the network of --teacher=keras.applications:NAME starts from: none (random), imagenet (downloaded, or "
        "taken from ~/.keras/models), or a weights file of it without its top",
    )
    ratio: int = option(4, "the thumbnail's side is image_size / ratio: 2 (4x fewer pixels) or 4 (16x fewer)")
    ratios: tuple[str, ...] = option(
        (),
        "train at several ratios, such as 2,4, each in run_dir/ratioN with one T, and recommend the cheapest",
        identity=False,
    )
    max_drop: float = option(
        0.01,
        "with --ratios: the most validation accuracy, as a share, that a recommended ratio may lose against T",
        minimum=0.0,
        maximum=1.0,
        identity=False,
    )
    slim_width: float = option(
        0.125, "--width of the network that the method slim trains on full images", minimum=0.03125, maximum=4.0
    )
    student_width: float = option(
        0.0,
        "--width of S; 0 = T's. Layers of other shapes than T's start from random weights: with another width, all",
        minimum=0.0,
        maximum=4.0,
    )
    student_stem_stride: int = option(
        4,
        "how many times smaller than the thumbnail's the sides of S's first maps are: 4 = as in T; 2 = S's first "
        "convolution is 3 x 3 of stride 1; 1 = that one, and no pooling behind it (ResNets; each step makes S 4 times "
        "dearer, which half the width makes up for)",
    )
    downscaler_width: int = option(16, "channels inside the learned downscaler E", minimum=1, maximum=256)
    downscaler_residual: float = option(
        0.3, "how strongly E departs from area downscaling before training; 0 = not at all", minimum=0.0, maximum=2.0
    )
    downscaler_filters: str = option(
        "band",
        "E's first filters start on the band of frequencies that averaging loses, or at random",
        choices=("band", "random"),
    )
    thumbnail_bits: int = option(8, "bits a thumbnail's channel is rounded to; 0 = no rounding", minimum=0, maximum=8)
    thumbnail_jpeg: int = option(
        0, "JPEG quality that thumbnails pass through on their way to S in training; 0 = none", minimum=0, maximum=100
    )

    # --- losses
    w_cl: float = option(1.0, "weight of the classification loss CL", minimum=0.0)
    w_kd: float = option(1.0, "weight of the distillation loss KD", minimum=0.0)
    w_fm: float = option(0.1, "weight of the feature-mapping loss FM", minimum=0.0)
    w_mm: float = option(0.1, "weight of the moment-matching loss MM", minimum=0.0)
    temperature: float = option(4.0, "temperature of KD", minimum=0.1, maximum=100.0)
    fm_tap: str = option(
        AUTO,
        "the map of T that FM decodes from the same map of S: stage1 to stage4 (VGG-11: stage5), or the name of a "
        "layer of your own T; auto = stage2, of your own T the deepest layer at an eighth of the input's side",
    )
    mapping_epochs: int = option(
        0, "epochs at the start in which methods with FM learn by FM and MM alone: E, and S up to the tap", minimum=0
    )
    mm_std_weight: float = option(1.0, "lambda, the weight of the standard deviations in MM", minimum=0.0)
    label_smoothing: float = option(0.0, "label smoothing in CL", minimum=0.0, maximum=0.9)

    # --- cache of T's outputs
    teacher_cache: str = option(
        "all",
        "what of T is computed once and read from disk while training: nothing, its logits, or all that the losses use",
        choices=("off", "logits", "all"),
    )
    cached_views: int = option(
        8, "views (augmentations) of an image that the cache holds and the epochs go through in turn", minimum=1
    )
    view_seed: int = option(
        0,
        "seed of the cached views; runs of any method and seed that share it, T and the data share the cache. Where it "
        "is T's --seed, the views are the crops that T was trained on",
        minimum=0,
        maximum=2**31 - 1,
    )
    cache_dir: str = option("", "folder of caches; default teacher_cache beside the run directory", identity=False)
    cache_limit_gb: float = option(
        10.0,
        "largest size of all caches in cache_dir together, GiB; what would be larger is refused before it is begun",
        minimum=0.0,
        identity=False,
    )

    # --- optimisation
    batch_size: int = option(32, "images a step, over all replicas", minimum=1)
    teacher_epochs: int = option(10, "epochs that T is trained for", minimum=1)
    epochs: int = option(10, "epochs that every method is trained for", minimum=1)
    optimizer: str = option("adamw", "optimizer", choices=("adamw", "sgd"))
    teacher_learning_rate: float = option(1e-3, "peak learning rate of T", minimum=0.0)
    learning_rate: float = option(3e-3, "peak learning rate of E and S", minimum=0.0)
    warmup_fraction: float = option(
        0.1, "share of the steps with a linearly rising rate; cosine decay after it", minimum=0.0, maximum=0.9
    )
    weight_decay: float = option(
        0.05, "decoupled weight decay of kernels; not of biases and batch normalisation", minimum=0.0
    )
    clip_norm: float = option(1.0, "largest global gradient norm; 0 = no clipping", minimum=0.0)
    ema_momentum: float = option(
        0.0, "momentum of an exponential moving average of the weights; 0 = none", minimum=0.0, maximum=0.99999
    )
    mixed_precision: str = option(
        "float32", "compute precision of training", choices=("float32", "mixed_bfloat16", "mixed_float16")
    )

    # --- machine
    strategy: str = option(
        "auto",
        "auto = multi_worker where TF_CONFIG names several machines, else mirrored over several local accelerators, "
        "none on one device; multi_worker = the machines in TF_CONFIG, which must share the storage of run_dir",
        choices=("auto", "none", "mirrored", "multi_worker"),
    )
    cpu_devices: int = option(
        1, "logical CPU devices; more than 1 tries MirroredStrategy without a GPU", minimum=1, maximum=64
    )
    intra_op_threads: int = option(
        0, "threads that share one operation; 0 = TensorFlow's choice, all cores", minimum=0, identity=False
    )
    inter_op_threads: int = option(
        0, "operations that run side by side; 0 = TensorFlow's choice, all cores", minimum=0, identity=False
    )
    checkpoint_seconds: float = option(60.0, "seconds between checkpoints; 0 = every step", minimum=0.0, identity=False)
    tensorboard: bool = option(True, "write a TensorBoard log", identity=False)

    def __post_init__(self) -> None:
        check_options(self)
        config_checks.check(self)

    @property
    def thumbnail_size(self) -> int:
        """Side of the thumbnail in pixels."""
        return self.image_size // self.ratio

    @property
    def varies_student(self) -> bool:
        """Whether S is another network than T."""
        return self.student_width not in (0, self.width) or self.student_stem_stride != 4

    @property
    def trains_teacher(self) -> bool:
        """Whether the run trains T itself."""
        return self.teacher == "train" or self.teacher.startswith(APPLICATIONS)

    def resolved(self) -> "Config":
        """Returns a copy with every `auto` replaced by its value for this dataset."""
        own = self.dataset.split("/")[0] == "fine_detail"
        return dataclasses.replace(
            self,
            augment=("none" if own else "crop_flip") if self.augment == AUTO else self.augment,
            fm_tap="stage2" if self.fm_tap == AUTO and self.teacher == "train" else self.fm_tap,
            crop_fraction=(1.0 if own else 0.875) if self.crop_fraction == 0 else self.crop_fraction,
        )

    def to_json(self) -> str:
        """Returns all options as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "config.json") -> "Config":
        """Reads what `to_json` wrote.

        Raises:
            UserError: when the text is no JSON object or names an unknown option.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not valid JSON ({error}); restore it or start a new run directory") from None
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            unknown = sorted(set(values) - known) if isinstance(values, dict) else type(values).__name__
            raise UserError(f"{where} holds options this version doesn't know. Received: {unknown}")
        if "teacher_input" not in values and values.get("teacher", "train") != "train" and "fm_tap" in values:
            values |= {"fm_tap": AUTO} if values["fm_tap"] == "stage2" else {}  # it was the default by name
        # a run of before there was a cache trained without one
        return cls(**{"teacher_cache": "off", **values})
