"""The recipes that are noted beside results: those of today's flagfiles, whatever options are added."""

import dataclasses

from experiments import origins, run
from thumbnet_tf.config import Config
from thumbnet_tf.csv_files import read_rows


def test_what_is_noted_of_options_is_what_flagfiles_say_today():
    noted = 0
    for of_set in sorted({run.set_of(row) for row in run.names()}):
        for each in read_rows(run.RESULTS / f"{of_set}.csv"):
            if each.get("options"):
                cfg = run.config_of(each["row"])
                found = [dataclasses.replace(cfg, teacher=teacher) for teacher in ("train", "given")]
                assert each["options"] in {origins.options_digest(cfg.resolved()) for cfg in found}, each["row"]
                noted += 1
    assert noted > 50


def test_an_option_that_is_added_leaves_recipes_as_they_were(monkeypatch):
    before = origins.options_digest(Config(epochs=7))
    fields = [field for field in dataclasses.fields(Config) if field.name != "temperature"]  # as if it came today
    with monkeypatch.context() as older:
        older.setattr(origins.dataclasses, "fields", lambda _: fields)
        without = origins.options_digest(Config(epochs=7))
    monkeypatch.setattr(origins, "LATER", ("temperature",))
    assert origins.options_digest(Config(epochs=7)) == without != before
    assert origins.options_digest(Config(epochs=7, temperature=2.0)) != without
