"""Saved states that can't be restored: what is told, and that an older one is taken where there is one."""

import errno
import pathlib

import pytest
import tensorflow as tf

from thumbnet_tf.checkpoints import Checkpoints
from thumbnet_tf.config import UserError
from thumbnet_tf.distribution import Job


def checkpoints(folder, **values) -> tuple[Checkpoints, dict[str, tf.Variable]]:
    variables = {name: tf.Variable(value) for name, value in values.items()}
    return Checkpoints(folder, variables, Job(tf.distribute.get_strategy())), variables


@pytest.fixture
def states(tmp_path):
    """Returns a folder with the states of steps 2 and 3, of one value each; that of step 1 was deleted."""
    saved, variables = checkpoints(tmp_path / "run", value=[0.0, 0.0])
    for step in (1, 2, 3):
        variables["value"].assign([step, 10 * step])
        saved.save(step)
    assert sorted(path.name for path in saved.folder.glob("*.index")) == ["ckpt-2.index", "ckpt-3.index"]
    return saved.folder


def told(caplog) -> list[str]:
    """Returns what our own code said; TensorFlow may say more."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("thumbnet_tf")]


def break_state(folder, step: int) -> None:
    [path] = folder.glob(f"ckpt-{step}.data*")
    path.write_bytes(path.read_bytes()[:4])


def test_the_last_state_that_can_be_read_is_restored(states, caplog):
    found, variables = checkpoints(states, value=[0.0, 0.0])
    assert found.restore() and told(caplog) == []
    assert variables["value"].numpy().tolist() == [3, 30]
    break_state(states, 3)
    assert found.restore() and variables["value"].numpy().tolist() == [2, 20]
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"checkpoint {states}/ckpt-3 is unreadable (")
    assert record.getMessage().endswith("; trying the one before")


def test_a_folder_without_states_is_a_fresh_start(tmp_path, caplog):
    found, variables = checkpoints(tmp_path / "run", value=[1.0])
    assert not found.restore() and variables["value"].numpy().tolist() == [1]
    assert told(caplog) == []


def test_no_readable_state_is_one_line(states, caplog):
    for step in (2, 3):
        break_state(states, step)
    with pytest.raises(UserError) as error:
        checkpoints(states, value=[0.0, 0.0])[0].restore()
    assert str(error.value) == (
        f"no checkpoint in {states} can be read; delete that folder to train this method from its start"
    )
    assert [line.split(" is ")[0] for line in told(caplog)] == [f"checkpoint {states}/ckpt-{step}" for step in (3, 2)]


@pytest.mark.parametrize("other", [{"value": [0.0, 0.0, 0.0]}, {"another": [0.0, 0.0]}], ids=["shape", "name"])
def test_a_state_of_another_training_is_one_line(states, other, caplog):
    with pytest.raises(UserError) as error:
        checkpoints(states, **other)[0].restore()
    text = str(error.value)
    assert text.startswith("a checkpoint doesn't fit this training (") and "\n" not in text
    assert text.endswith(f"; delete its folder to train this method from its start. Received: {states}/ckpt-3")
    assert told(caplog) == []


@pytest.mark.parametrize("text", [None, "", "no list of states {"])
def test_states_are_found_without_tensorflows_list_of_them(states, text, caplog):
    (states / "checkpoint").unlink()
    if text is not None:
        (states / "checkpoint").write_text(text)
    found, variables = checkpoints(states, value=[0.0, 0.0])
    assert found.restore() and variables["value"].numpy().tolist() == [3, 30]
    assert told(caplog) == []


def test_no_state_is_given_up_for_what_the_user_can_mend(states, monkeypatch, caplog):
    def refuse(path, mode):  # these tests may run as root, who may read all
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(UserError, match=r"can't be read \(Permission denied\); mend that and give .*: .*ckpt-3$"):
        checkpoints(states, value=[0.0, 0.0])[0].restore()
    assert told(caplog) == []
