"""Measures what thumbnails save on this machine, and how fast they are learned.

  python -m thumbnet_tf.benchmark                                  # inference: random ResNet-18 and -50 at 224 px
  python -m thumbnet_tf.benchmark --run_dir=runs/quickstart        # the models of a finished run
  python -m thumbnet_tf.benchmark --what=training                  # the training step, its parts and others' loops
  python -m thumbnet_tf.benchmark --quick                          # a first impression within a minute

All cases take turns in one process, so that what counts, their ratio, holds on a busy machine too. Writes
`benchmark_<what>.csv` and `benchmark_<what>.png`.
"""

import dataclasses

from thumbnet_tf import benchmark_inference, benchmark_training, distribution, flags
from thumbnet_tf.config import FlagError, check_options, option

# what can be measured -> the function that does it; each writes benchmark_<what>.csv and .png
WHAT = {"inference": benchmark_inference.run, "training": benchmark_training.run}


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    what: str = option("inference", "what to measure", choices=tuple(WHAT))
    run_dir: str = option("", "run directory made by thumbnet_tf.train; default: random models at 224 px")
    method: str = option("", "finished method of the run; default thumbnet, or a finished run's last")
    out: str = option(
        "",
        "folder of the results; default benchmark in <run_dir>/<method>, for training in <run_dir>, else in runs",
    )
    rounds: int = option(7, "turns that each case takes", minimum=1, maximum=1000)
    intra_op_threads: int = option(0, "as in thumbnet_tf.train", minimum=0)
    inter_op_threads: int = option(0, "as in thumbnet_tf.train", minimum=0)
    quick: bool = option(False, "fewer cases: at 224 px ResNet-18 at ratio 4 alone; training at 128 px alone")

    def __post_init__(self) -> None:
        check_options(self)
        if self.method and not (self.run_dir and self.what == "inference"):
            raise FlagError(
                f"--method goes with --run_dir and --what=inference. Received: {self.method}, with "
                f"--run_dir={self.run_dir} --what={self.what}"
            )

    @property
    def folder(self) -> str:
        """Where the results go, but those of a run's method."""
        return self.out or f"{self.run_dir or 'runs'}/benchmark"


def main(options: Options) -> None:
    """Measures and prints the table."""
    distribution.set_threads(options.intra_op_threads, options.inter_op_threads)
    WHAT[options.what](options)


if __name__ == "__main__":
    flags.run(main, Options)
