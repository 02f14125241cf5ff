"""How options are declared: dataclass fields with types, defaults, help and bounds, and the errors of a wrong value.

This module imports neither TensorFlow nor absl.
"""

import dataclasses
import math
import typing
from typing import Any


class UserError(ValueError):
    """A mistake that the user can mend; its message is one line and is shown without a traceback."""


class FlagError(UserError):
    """An option's value that can't be; the mains exit with 2."""


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    identity: bool = True,
) -> Any:
    """Declares one option of a configuration dataclass.

    Args:
        default: default value.
        help: one line for `--help`, with the unit where there is one.
        minimum: smallest allowed value, included.
        maximum: largest allowed value, included.
        choices: allowed strings; None allows any.
        identity: whether a run with another value is another run. Options that only say where or how fast
            things happen are not part of a run's identity and may change when it resumes.

    Returns:
        A `dataclasses.field`.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "identity": identity}
    return dataclasses.field(default=default, metadata=metadata)


def check_options(options: Any) -> None:
    """Checks type, bounds and choices of every field of an options dataclass.

    Raises:
        FlagError: with the option's name, what was received and what is allowed.
    """
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, kind = getattr(options, field.name), hints[field.name]
        meta = field.metadata
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
            object.__setattr__(options, field.name, value)
        if kind == tuple[str, ...] and isinstance(value, list):
            value = tuple(value)
            object.__setattr__(options, field.name, value)
        expected = tuple if kind == tuple[str, ...] else kind
        if not isinstance(value, expected) or (kind is int and isinstance(value, bool)):
            raise FlagError(
                f"--{field.name} must be of type {getattr(expected, '__name__', expected)}. Received: {value!r}"
            )
        if expected is tuple and not all(isinstance(item, str) for item in value):
            raise FlagError(f"--{field.name} must be a tuple of strings. Received: {value!r}")
        low, high = meta["minimum"], meta["maximum"]
        if kind is float and not math.isfinite(value):
            raise FlagError(f"--{field.name} must be a finite number. Received: {value}")
        if (low is not None and value < low) or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise FlagError(f"--{field.name} must be {allowed}. Received: {value}")
        if meta["choices"] is not None and value not in meta["choices"]:
            raise FlagError(f"--{field.name} must be one of {', '.join(meta['choices'])}. Received: {value!r}")


def to_flagfile(options: Any, header: str) -> str:
    """Returns the text of a flagfile that gives these options again.

    Args:
        options: an options dataclass.
        header: comment lines, without their `#`.
    """
    lines = [f"# {line}" for line in header.splitlines()]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if isinstance(value, tuple):
            value = ",".join(value)
        lines.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return "\n".join(lines) + "\n"
