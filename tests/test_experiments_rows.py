"""The flagfiles of the experiments' rows: each is a configuration that its name and its set's promise."""

import pathlib

import pytest
from absl import flags as absl_flags

from experiments import run
from thumbnet_tf import flags, stages
from thumbnet_tf.config import Config


@pytest.mark.parametrize("row", run.names())
def test_every_row_is_a_configuration_with_its_sets_sizes(row, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parent.parent)
    monkeypatch.setattr(run, "bfloat16_pays", lambda: True)
    values = absl_flags.FlagValues()
    absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
    flags.define(Config, flag_values=values)
    arguments = values(["train", *run.command(row, "0", run.Options(rows=(row,)))[3:]])
    cfg = flags.parsed(Config, arguments[1:], flag_values=values)
    students = stages.students(cfg)
    alone = run.set_of(row).startswith(run.ALONE)
    assert len(students) == (0 if alone or row.endswith("_original") else 1)
    assert alone or run.set_of(row).endswith(f"_{cfg.thumbnail_size}")
    if not cfg.dataset.startswith("fine_detail") and students and not row.endswith("_cl"):
        assert (cfg.w_cl == 0) == ("kd" in stages.METHODS[students[0]].losses or not stages.METHODS[students[0]].losses)
    assert cfg.mixup_alpha == (0 if cfg.dataset.startswith("fine_detail") else 1)  # of the base that photographs share
