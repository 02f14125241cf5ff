"""One machine of a job, as `python -m thumbnet_tf.train`, with a backbone of two blocks and short waits.

The environment variable PAUSE names a file; where it is given, this process makes it before its step PAUSE_STEP and
waits there for as long as the file exists.
"""

import os
import pathlib
import time

from thumbnet_tf import backbones, distribution, flags, loop
from thumbnet_tf.config import Config
from thumbnet_tf.train import main

backbones.RESNETS["resnet18"] = ((1, 1), False)
distribution.SHARED_SECONDS = 3.0


def pause_at(step: int, path: pathlib.Path) -> None:
    """Makes the training stand still before a step of this process."""
    compiled, taken = loop._compiled, []

    def wrapped(*args):
        run_step, run_test = compiled(*args)

        def waiting_step(batch):
            if len(taken) == step:
                path.touch()
                while path.exists():
                    time.sleep(0.05)
            taken.append(1)
            run_step(batch)

        return waiting_step, run_test

    loop._compiled = wrapped


if __name__ == "__main__":
    if "PAUSE" in os.environ:
        pause_at(int(os.environ["PAUSE_STEP"]), pathlib.Path(os.environ["PAUSE"]))
    flags.run(main, Config)
