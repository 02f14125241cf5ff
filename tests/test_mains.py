"""What the command of training does around the training: where it lies, what it prints, how it ends."""

import signal
import sys

import pytest

from thumbnet_tf import train as module  # the module, which is callable
from thumbnet_tf.config import Config
from thumbnet_tf.loop import Interrupted
from thumbnet_tf.runs import RunDir


@pytest.fixture
def trained(monkeypatch) -> list[Config]:
    """Returns the growing list of the configurations that would have been trained."""
    found: list[Config] = []

    def train(cfg: Config) -> RunDir:
        found.append(cfg)
        return RunDir(cfg.run_dir)

    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "table", lambda run: f"the table of {run.path}")
    return found


@pytest.mark.parametrize(
    ("arguments", "values", "run_dir"),
    [
        (["--flagfile=a/mine.flags"], {}, "runs/mine"),
        (["--flagfile", "mine.v2.flags"], {}, "runs/mine.v2"),
        (["--flagfile=a/mine.flags"], {"run_dir": "elsewhere"}, "elsewhere"),
        ([], {}, Config.run_dir),
    ],
)
def test_a_run_lies_where_its_flagfile_is_named(arguments, values, run_dir, trained, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    assert module.main(Config(**values)) == 0
    assert [cfg.run_dir for cfg in trained] == [run_dir]
    assert capsys.readouterr().out == (
        f"the table of {run_dir}\n\nmodels, logs and results: {run_dir}\n"
        f"  python -m thumbnet_tf.predict --run_dir={run_dir} FILE...\n"
        f"  python -m thumbnet_tf.plots   --run_dir={run_dir}\n"
    )


def test_a_run_lies_where_run_dir_says_even_if_that_is_the_default(trained, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--flagfile=a/mine.flags", f"--run_dir={Config.run_dir}"])
    monkeypatch.setattr(module.flags, "is_given", lambda name: name == "run_dir")
    assert module.main(Config()) == 0
    assert [cfg.run_dir for cfg in trained] == [Config.run_dir]


@pytest.mark.parametrize(
    ("stop", "said"),
    [
        (Interrupted(signal.SIGINT), "interrupted by SIGINT; the state is saved. The same command goes on.\n"),
        (KeyboardInterrupt(), "interrupted; what was finished is kept. The same command goes on.\n"),
    ],
)
def test_an_interruption_ends_with_130(stop, said, monkeypatch, capsys):
    def train(cfg: Config) -> RunDir:
        raise stop

    monkeypatch.setattr(module, "train", train)
    assert module.main(Config()) == 130
    assert capsys.readouterr() == ("", said)


def test_several_ratios_end_with_the_recommendation(trained, monkeypatch, capsys):
    monkeypatch.setattr(module, "train_ratios", lambda cfg: f"recommended at {','.join(cfg.ratios)}")
    monkeypatch.setattr(sys, "argv", ["train", "--flagfile=both.flags"])
    assert module.main(Config(ratios=("2", "4"))) == 0
    assert trained == []
    places = "runs/both/ratio2, runs/both/ratio4"
    assert capsys.readouterr().out == f"recommended at 2,4\n\na run directory each: {places}\n"


def test_a_machine_that_is_not_the_first_prints_no_table(trained, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}')
    monkeypatch.setattr(sys, "argv", ["train"])
    assert module.main(Config(run_dir="shared")) == 0
    assert capsys.readouterr().out == "done; the first machine has written models, logs and results to shared\n"
