"""The states that a training resumes from."""

import logging
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from thumbnet_tf.config import UserError
from thumbnet_tf.distribution import Job
from thumbnet_tf.files import MACHINE_LOST, saving

_UNREADABLE = (tf.errors.OpError, IndexError, ValueError)  # what TensorFlow raises of a damaged state

_NONE = -1

_log = logging.getLogger(__name__)


class Checkpoints:
    """The states of one training, written beside and renamed by TensorFlow; the last two are kept.

    Of several machines all save and restore at the same time, but only the chief's states are kept.
    """

    def __init__(self, folder: pathlib.Path, objects: Mapping[str, Any], job: Job) -> None:
        """Takes the place and what changes while training.

        Args:
            folder: where the states lie.
            objects: what a state holds, by name.
            job: the machines that train.
        """
        self.folder = folder
        self._job = job
        self._checkpoint = tf.train.Checkpoint(**objects)
        arguments = (self._checkpoint, str(folder), 2)
        try:
            self._manager = tf.train.CheckpointManager(*arguments, checkpoint_name="ckpt")
        except ValueError:  # its list of states is empty or damaged; they are found without it
            (folder / "checkpoint").unlink(missing_ok=True)  # several machines may find it so
            self._manager = tf.train.CheckpointManager(*arguments, checkpoint_name="ckpt")

    def restore(self) -> bool:
        """Restores the last state that can be read; on all machines the one that the chief could read.

        Returns:
            Whether there was one; False on a fresh start.

        Raises:
            UserError: when there are states and none can be read.
        """
        number = self._job.from_chief(self._last_readable() if self._job.is_chief else _NONE)
        if number == _NONE:
            return False
        path = self.folder / f"ckpt-{number}"
        try:  # together: to restore the running means, TensorFlow adds them up over the machines
            self._checkpoint.restore(str(path)).assert_consumed()
        except MACHINE_LOST:
            raise
        except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
            raise UserError(
                f"a checkpoint doesn't fit this training ({_line(error)}); delete its folder to train this method "
                f"from its start. Received: {path}"
            ) from error
        return True

    def _last_readable(self) -> int:
        """Returns the number of the last state whose every value can be read and agrees with its checksum."""
        # not by the manager's list: it leaves out states of a clock that was ahead of today's
        numbers = sorted((int(path.stem.rpartition("-")[2]) for path in self.folder.glob("ckpt-*.index")), reverse=True)
        for number in numbers:
            path = str(self.folder / f"ckpt-{number}")
            try:
                for file in self.folder.glob(f"ckpt-{number}.*"):  # TensorFlow doesn't say why it can't read one
                    file.open("rb").close()
                _read(path)
                return number
            except OSError as error:
                raise UserError(
                    f"a checkpoint can't be read ({error.strerror}); mend that and give the same command again. "
                    f"Received: {path}"
                ) from error
            except _UNREADABLE as error:
                _log.warning("checkpoint %s is unreadable (%s); trying the one before", path, _line(error))
        if numbers:
            raise UserError(
                f"no checkpoint in {self.folder} can be read; delete that folder to train this method from its start"
            )
        return _NONE

    def save(self, step: int) -> None:
        """Writes a state; of one that can't be written nothing is left, for the next start to find the one before."""
        with saving(self.folder):
            if self._job.is_chief:
                try:
                    self._manager.save(checkpoint_number=step)
                except (OSError, tf.errors.OpError):
                    self._remove_if_half_written(step)
                    raise
                return
            # reading the running means adds them up over the machines, so all must save; theirs is thrown away
            with tempfile.TemporaryDirectory() as elsewhere:
                self._checkpoint.write(f"{elsewhere}/ckpt")

    def _remove_if_half_written(self, step: int) -> None:
        try:
            _read(str(self.folder / f"ckpt-{step}"))
        except _UNREADABLE:
            for path in self.folder.glob(f"ckpt-{step}.*"):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.folder / f"ckpt-{step}_temp", ignore_errors=True)


def _read(path: str) -> None:
    """Reads every value of a state, which agrees with its checksum, or raises one of `_UNREADABLE`."""
    reader = tf.train.load_checkpoint(path)
    for name in reader.get_variable_to_shape_map():
        reader.get_tensor(name)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
