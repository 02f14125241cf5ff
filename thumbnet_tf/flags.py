"""Command-line flags derived from an options dataclass; used by the mains only.

`--flagfile=FILE` reads flags from a file, one a line; a flag that stands later wins.
"""

import dataclasses
import logging
import os
import signal
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app
from absl import flags as absl_flags
from absl import logging as absl_logging

from thumbnet_tf.config import FlagError, UserError

USAGE_ERROR = 2


def run(main: Callable[[Any], int | None], options_type: type, positional: str | None = None) -> None:
    """Parses the command line into an `options_type` and calls `main` with it; never returns.

    `--help` shows the main's docstring. A user's mistake (an unknown or out-of-range flag, a `UserError` out of
    `main`) ends with one line on stderr and a non-zero exit code: 2 for a flag, 1 for anything found later.

    Args:
        main: called with the options; its result is the exit code, None for 0.
        options_type: a dataclass whose fields are made by `config.option`.
        positional: name of the field that takes the arguments which are no flags; None allows none.
    """
    package = logging.getLogger("thumbnet_tf")
    package.setLevel(logging.INFO)
    package.propagate = False  # absl's root handler would say it again
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package.addHandler(handler)
    logging.getLogger("__main__").parent = package  # the main's own logger, whose name hides that it is ours
    absl_logging.set_verbosity(absl_logging.WARNING)  # TFDS reports every file it opens
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    define(options_type, positional)

    def entry(argv: Sequence[str]) -> int | None:
        try:
            return main(parsed(options_type, argv[1:], positional))
        except UserError as error:
            return _fail(error, USAGE_ERROR if isinstance(error, FlagError) else 1)
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE

    try:
        app.run(entry, flags_parser=_parse)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def define(
    options_type: type, positional: str | None = None, flag_values: absl_flags.FlagValues = absl_flags.FLAGS
) -> None:
    """Defines one flag for each field of an options dataclass (but the positional one) as a key flag of the main."""
    hints = typing.get_type_hints(options_type)
    for field in dataclasses.fields(options_type):
        if field.name == positional:
            continue
        meta, kind = field.metadata, hints[field.name]
        # registered in the name of the main module: --help shows that module's flags
        common = {"flag_values": flag_values, "module_name": sys.argv[0]}
        if kind is bool:
            absl_flags.DEFINE_boolean(field.name, field.default, meta["help"], **common)
        elif kind is int:
            absl_flags.DEFINE_integer(
                field.name, field.default, meta["help"], meta["minimum"], meta["maximum"], **common
            )
        elif kind is float:
            absl_flags.DEFINE_float(field.name, field.default, meta["help"], meta["minimum"], meta["maximum"], **common)
        elif kind == tuple[str, ...]:
            absl_flags.DEFINE_list(field.name, list(field.default), meta["help"], **common)
        elif meta["choices"]:
            absl_flags.DEFINE_enum(field.name, field.default, list(meta["choices"]), meta["help"], **common)
        else:
            absl_flags.DEFINE_string(field.name, field.default, meta["help"], **common)


def parsed(
    options_type: type,
    arguments: Sequence[str],
    positional: str | None = None,
    flag_values: absl_flags.FlagValues = absl_flags.FLAGS,
) -> Any:
    """Returns the options that the parsed flags and the remaining arguments make.

    Raises:
        FlagError: on arguments that are no flags where none are allowed, and out of the dataclass' own checks.
    """
    if arguments and positional is None:
        raise FlagError(f"this command takes flags only, as --name=value. Received: {' '.join(arguments)}")
    hints = typing.get_type_hints(options_type)
    values = {}
    for field in dataclasses.fields(options_type):
        if field.name == positional:
            values[field.name] = tuple(arguments)
            continue
        value = flag_values[field.name].value
        if isinstance(value, str) and value.startswith("~/"):  # a shell expands it at the beginning of a word only
            value = os.path.expanduser(value)
        values[field.name] = tuple(value) if hints[field.name] == tuple[str, ...] else value
    return options_type(**values)


def is_given(name: str, flag_values: absl_flags.FlagValues = absl_flags.FLAGS) -> bool:
    """Returns whether a flag stood on the parsed command line, or in a flagfile that it named."""
    return name in flag_values and flag_values[name].present > 0


def flagfile_name(argv: Sequence[str]) -> str | None:
    """Returns the path of the last `--flagfile` on a command line, or None."""
    path = None
    for index, argument in enumerate(argv):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "flagfile":
            path = value or (argv[index + 1] if index + 1 < len(argv) else None)
    return path


def _parse(argv: Sequence[str]) -> Sequence[str]:
    try:
        return absl_flags.FLAGS(list(argv))
    except (absl_flags.Error, UnicodeDecodeError) as error:
        text = " ".join(str(error).split()).removeprefix("ERROR:: ")
        sys.exit(_fail(f"{text} (--help lists the flags)", USAGE_ERROR))


def _fail(error: object, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
