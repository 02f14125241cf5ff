"""What a row's results came from: T, the images, the options and the precision; noted beside them, and compared."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal

from thumbnet_tf.config import Config, UserError
from thumbnet_tf.publish import digest_of
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL

ORIGINS = ("teacher", "data", "options", "precision")
# options that were added since recipes are noted (2026-11-30): where they have their default, a recipe is what it was
LATER: tuple[str, ...] = ()
_DIGITS = 12  # of a digest


def of_run(run: RunDir, teacher: Literal["given", "trained", "none"]) -> dict[str, str]:
    """Returns a run's origins.

    Args:
        run: a finished run directory.
        teacher: whether its T was given to it, is what it trained, or has no part in it.
    """
    cfg, facts = run.config(), run.data_facts()
    digest = facts.get("teacher_file", "") if teacher == "given" else ""
    if teacher == "trained":
        digest = digest_of(run.method(ORIGINAL) / "teacher.keras")
    found = digest[:_DIGITS], facts.get("fingerprint", "")[:_DIGITS], options_digest(cfg), cfg.mixed_precision
    return dict(zip(ORIGINS, found, strict=True))


def options_digest(cfg: Config) -> str:
    """Returns the first digits of the SHA-256 of the options that results hang on.

    Left out are the seed, T, the data and the precision, which have columns of their own, and what of `LATER` has its
    default.
    """
    apart = ("seed", "dataset", "teacher", "mixed_precision")
    values = {
        field.name: getattr(cfg, field.name)
        for field in dataclasses.fields(Config)
        if field.metadata["identity"]
        and field.name not in apart
        and not (field.name in LATER and getattr(cfg, field.name) == field.default)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def check(of_set: str, rows: Sequence[Mapping[str, str]], *, taught: bool = True) -> None:
    """Sees to it that a set's rows have the same images, those of one seed one T, and those of one name one recipe.

    Rows of before it was noted have no values: beside a T that is noted they had another one; else nothing is known.

    Args:
        of_set: the set's name, for the message.
        rows: of its CSV, and those of its T from another set's.
        taught: whether they have a T; if not, images are each row's own too.

    Raises:
        UserError: when they haven't.
    """
    noted = {row["seed"] for row in rows if row["row"].endswith(f"_{ORIGINAL}") and row.get("teacher")}
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for row in rows:
        name = f"{row['row']}, seed {row['seed']}"
        values = {("options", f"of {row['row']}"): row.get("options")}
        if taught:
            teacher = row.get("teacher") or ("not noted" if row["seed"] in noted else "")
            values |= {("T", f"with seed {row['seed']}"): teacher, ("images", f"of {of_set}"): row.get("data")}
        for key, value in values.items():
            if value:
                found.setdefault(key, {}).setdefault(value, set()).add(name)
    for (what, of), values in found.items():
        if len(values) > 1:
            groups = "; apart from them ".join(", ".join(sorted(group)) for group in values.values())
            raise UserError(
                f"the rows {of} must have the same {what}; delete the run directories of the older, and train them "
                f"anew by --again. Received: {groups}"
            )
