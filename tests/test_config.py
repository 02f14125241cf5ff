"""The options: bounds, choices, round trips."""

import dataclasses

import pytest

from thumbnet_tf import stages
from thumbnet_tf.config import Config, FlagError, UserError, to_flagfile

BACKBONES = next(field for field in dataclasses.fields(Config) if field.name == "backbone").metadata["choices"]


def test_json_round_trip_keeps_every_option():
    cfg = Config(dataset="folder:x", methods=("direct", "no_mm"), seed=3, w_kd=0.5, tensorboard=False)
    assert Config.from_json(cfg.to_json()) == cfg


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 3}, "--ratio must be 2 or 4. Received: 3"),
        ({"run_dir": "runs/exp[1]"}, "can't have *, ?, [ or ] in it; choose another name. Received: runs/exp[1]"),
        ({"ratio": 8}, "--ratio must be 2 or 4. Received: 8"),
        ({"thumbnail_bits": 1}, "--thumbnail_bits must be 0 (no rounding) or 2 to 8. Received: 1"),
        ({"image_size": 100}, "--image_size must be a multiple of 16 at ratio 4. Received: 100"),
        ({"image_size": 104, "ratios": ("2", "4")}, "--image_size must be a multiple of 16 at ratio 4. Received: 104"),
        (
            {"teacher": "keras.applications:MobileNetV2", "mixed_precision": "mixed_bfloat16"},
            "--mixed_precision must be float32 with a teacher of your own. Received: mixed_bfloat16",
        ),
        (
            {"teacher_weights": "imagenet"},
            "--teacher_weights goes with --teacher=keras.applications:NAME only. Received: 'imagenet' with "
            "--teacher=train",
        ),
        (
            {"teacher": "runs/x", "teacher_input": "0..1"},
            "--teacher_input goes with a --teacher of your own only. Received: '0..1' with --teacher=runs/x",
        ),
        ({"student_stem_stride": 3}, "--student_stem_stride must be 1, 2 or 4. Received: 3"),
        ({"student_width": 0.03}, "--student_width must be 0 or 0.03125 to 4.0. Received: 0.03"),
        (
            {"student_width": 0.5, "teacher": "keras.applications:MobileNetV2"},
            "go with a T of --backbone only; leave them out. Received: 0.5 and 4 with --teacher=keras.applications:Mob",
        ),
        ({"width": 0.0}, "--width must be 0.03125 to 4.0. Received: 0.0"),
        ({"w_kd": -1.0}, "--w_kd must be at least 0.0. Received: -1.0"),
        (
            {"backbone": "resnet19"},
            f"--backbone must be one of {', '.join(BACKBONES)}. Received: 'resnet19'",
        ),
        ({"w_cl": 0.0, "w_kd": 0.0}, "can't both be 0"),
        ({"mapping_epochs": 10}, "below --epochs and goes with --w_fm above 0. Received: 10 with --epochs=10"),
        ({"mapping_epochs": 2, "w_fm": 0.0}, "Received: 2 with --epochs=10 --w_fm=0"),
        ({"epochs": 1.5}, "--epochs must be of type int. Received: 1.5"),
        ({"temperature": float("nan")}, "--temperature must be a finite number"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(values, message):
    with pytest.raises(UserError) as error:
        Config(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_image_size_is_checked_at_the_ratios_in_use():
    assert Config(image_size=104, ratios=("2",)).image_size == 104


def test_json_with_an_unknown_option_or_broken_is_refused():
    with pytest.raises(UserError, match=r"options this version doesn't know. Received: \['colour'\]"):
        Config.from_json('{"colour": 1}')
    with pytest.raises(UserError, match="not valid JSON"):
        Config.from_json('{"seed": ')


def test_every_option_has_help_and_a_legal_default():
    for field in dataclasses.fields(Config):
        assert len(field.metadata["help"]) > 5, field.name
    assert Config.from_json(Config().to_json()) == Config()


def test_auto_depends_on_the_dataset():
    own, photos = Config(dataset="fine_detail/hard").resolved(), Config(dataset="folder:x").resolved()
    assert (own.augment, own.crop_fraction) == ("none", 1.0)
    assert (photos.augment, photos.crop_fraction) == ("crop_flip", 0.875)
    assert Config(dataset="folder:x", augment="none", crop_fraction=0.5).resolved().crop_fraction == 0.5


def test_flagfile_has_a_line_for_each_option():
    text = to_flagfile(Config(methods=("direct",), tensorboard=False), "first\nsecond")
    lines = text.splitlines()
    assert lines[:2] == ["# first", "# second"]
    assert "--methods=direct" in lines
    assert "--tensorboard=false" in lines
    assert len(lines) == 2 + len(dataclasses.fields(Config))


def test_methods_are_checked():
    assert stages.students(Config(methods=("original", "no_mm"))) == ("no_mm",)
    with pytest.raises(UserError, match="Received: 'bicubik'"):
        stages.students(Config(methods=("bicubik",)))
    with pytest.raises(UserError, match="'direct' 2 times"):
        stages.students(Config(methods=("direct", "direct")))
    for method in ("bicubic", "supervised", "no_kd"):
        with pytest.raises(FlagError, match=f"--methods={method} needs a classification or distillation loss"):
            stages.students(Config(methods=("direct", method), w_cl=0.0))
    assert stages.students(Config(methods=("thumbnet",), w_cl=0.0)) == ("thumbnet",)


def test_rows_of_the_ablation():
    cfg = Config(w_cl=1.0, w_kd=2.0, w_fm=3.0, w_mm=4.0)
    assert stages.loss_weights("thumbnet", cfg) == {"cl": 1.0, "kd": 2.0, "fm": 3.0, "mm": 4.0}
    assert stages.loss_weights("no_kd", cfg) == {"cl": 1.0, "fm": 3.0, "mm": 4.0}
    assert stages.loss_weights("no_fm", cfg) == {"cl": 1.0, "kd": 2.0, "mm": 4.0}
    assert stages.loss_weights("bicubic_kd", cfg) == {"cl": 1.0, "kd": 2.0}
    assert stages.loss_weights("direct", cfg) == {}
    assert stages.loss_weights("original", Config(w_cl=0.0)) == {"cl": 1.0}
    assert stages.loss_weights("thumbnet", Config(w_fm=0.0)).keys() == {"cl", "kd", "mm"}


def test_runs_from_before_the_cache_have_none():
    assert Config.from_json('{"seed": 1}').teacher_cache == "off"  # there was none


def test_runs_from_before_own_teachers_keep_their_tap():
    for text, tap in (
        ('"teacher": "runs/t", "fm_tap": "stage2"', "auto"),
        ('"teacher": "runs/t", "fm_tap": "stage3"', "stage3"),
        ('"fm_tap": "stage2"', "stage2"),
    ):
        assert Config.from_json(f"{{{text}}}").fm_tap == tap


def test_methods_are_what_they_say():
    words = {"cl": "CL", "kd": "KD", "fm": "FM", "mm": "MM"}
    for name, row in stages.METHODS.items():
        if ", CL" in row.about:
            assert {"none": "on full images"}.get(row.downscaler, row.downscaler) in row.about
            assert row.about.endswith(", " + " + ".join(words[t] for t in row.losses)), name
        elif "without" in row.about:
            gone = row.about.split("without ")[1][:2].lower()
            assert set(stages.METHODS["thumbnet"].losses) - set(row.losses) == {gone} and row.downscaler == "learned"
