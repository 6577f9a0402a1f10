"""Options with a closed list of values, declared as `Literal` fields of a codec's config."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from ..errors import FinloraError


@functools.cache
def choices(config: type) -> dict[str, tuple[Any, ...]]:
    """{field: its values} of the `Literal` fields of a config, in order."""
    hints = typing.get_type_hints(config)
    fields = [f.name for f in dataclasses.fields(config)]
    return {name: typing.get_args(hints[name]) for name in fields if typing.get_origin(hints[name]) is typing.Literal}


def check_choices(cfg: Any) -> None:
    """Raises FinloraError for a `Literal` field that holds none of its values."""
    for name, values in choices(type(cfg)).items():
        value = getattr(cfg, name)
        if not any(type(value) is type(one) and value == one for one in values):
            default = next(f.default for f in dataclasses.fields(cfg) if f.name == name)
            raise FinloraError(
                f"{name} must be one of {', '.join(map(str, values))}, got {value!r}", f"{default} is the usual choice"
            )
