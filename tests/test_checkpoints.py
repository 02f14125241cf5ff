"""States of a training: the newest that can be read is restored, and none is given up unsaid."""

import pytest
import tensorflow as tf

from thumbnet_tf import checkpoints
from thumbnet_tf.config import UserError
from thumbnet_tf.distribution import Job, Task


def states(folder, value: tf.Variable) -> checkpoints.Checkpoints:
    """Returns the states of a training whose only variable is given."""
    return checkpoints.Checkpoints(folder, {"value": value}, Job(tf.distribute.get_strategy(), Task()))


@pytest.fixture
def folder(tmp_path):
    """A folder with states of the steps 10 and 20, in which the variable is 1 and 2."""
    value = tf.Variable(1.0)
    saved = states(tmp_path, value)
    saved.save(10)
    value.assign(2.0)
    saved.save(20)
    return tmp_path


def restored(folder) -> tuple[float, list[str]]:
    """Returns what is restored, and what is said on the way."""
    said, value = [], tf.Variable(0.0)
    assert states(folder, value).restore(said.append)
    return float(value), said


def test_the_newest_state_is_restored(folder, tmp_path_factory):
    assert restored(folder) == (2.0, [])
    assert not states(tmp_path_factory.mktemp("fresh"), tf.Variable(0.0)).restore(print)


@pytest.mark.parametrize("text", [None, "", "no list of states {"])
def test_states_are_found_without_tensorflows_list_of_them(folder, text):
    (folder / "checkpoint").unlink()
    if text is not None:
        (folder / "checkpoint").write_text(text)
    assert restored(folder) == (2.0, [])


def test_a_damaged_state_gives_way_to_the_one_before(folder):
    (folder / "ckpt-20.index").write_bytes(b"")
    value, said = restored(folder)
    assert value == 1.0
    assert len(said) == 1 and "ckpt-20 is unreadable" in said[0] and said[0].endswith("trying the one before")
    (folder / "ckpt-10.data-00000-of-00001").write_bytes(b"\0")
    with pytest.raises(UserError, match=f"no checkpoint in {folder} can be read; delete that folder to train this"):
        restored(folder)


def test_a_state_of_another_training_is_refused(folder):
    with pytest.raises(UserError, match="a checkpoint doesn't fit this training .* Received: .*ckpt-20"):
        states(folder, tf.Variable([0.0, 0.0])).restore(print)


def test_no_state_is_given_up_for_what_the_user_can_mend(folder, monkeypatch):
    def refuse(path):
        raise tf.errors.PermissionDeniedError(None, None, f"{path}.index; Permission denied")

    monkeypatch.setattr(tf.train, "load_checkpoint", refuse)
    with pytest.raises(UserError, match=r"can't be read \(.*Permission denied.*\); mend that and give"):
        restored(folder)
