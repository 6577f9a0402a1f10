"""How one value of a spec is declared, read and judged; the same rules serve the sections and every member's config.

A field is declared with its default, a line of help and its range:

    lr: float = setting(2e-4, "peak learning rate", above=0.0, high=10.0)

`read_fields` reads a table into a dataclass's arguments and adds to a list of problems, each of which names the value,
what was expected and the place. A config that declares plain dataclass fields is read by their types alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import FinloraError, unknown


def setting(default: Any, help: str, *, result: bool = True, added: bool = False, **limits: Any) -> Any:
    """A dataclass field with help and limits: low, high (inclusive), above, below (exclusive), choices, match, filled.

    result: False for a field that does not change what a run computes, which keeps it out of the digest. added: True for a
    field that came after runs were made without it: at its default it stays out of the digest too, so that those resume.
    """
    meta = {"help": help, "result": result, "added": added, "limits": limits}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=meta)
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Text:
    """A value given as text on the command line: `raw` as typed, `value` as TOML reads it."""

    raw: str
    value: Any

    @classmethod
    def parse(cls, raw: str, place: str, problems: list[FinloraError]) -> Text:
        """`16` is a number, `true` a truth value, `[\"a\"]` a list; what is not TOML is text."""
        try:
            read = tomllib.loads(f"value = {raw}") if "\n" not in raw else {}
            return cls(raw, read["value"] if set(read) == {"value"} else raw)
        except tomllib.TOMLDecodeError:
            if raw[:1] in ("[", "{"):
                problems.append(
                    FinloraError(
                        f"cannot read the value of the override `{place}={raw}`", 'quote the text inside: ["a", "b"]'
                    )
                )
            return cls(raw, raw)


def bare(value: Any) -> Any:
    """`value` with every `Text` inside replaced by what it reads as, tuples by lists."""
    if isinstance(value, Text):
        return bare(value.value)
    if isinstance(value, Mapping):
        return {key: bare(inner) for key, inner in value.items()}
    return [bare(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def fields_of(kind: type) -> tuple[dataclasses.Field, ...]:
    """The fields of a dataclass type."""
    return dataclasses.fields(kind)


def read_fields(
    kind: type, table: Mapping[str, Any], section: str, where: str, problems: list[FinloraError]
) -> dict[str, Any]:
    """The arguments of dataclass `kind` in `table`; what is wrong is left out and appended to `problems`."""
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields_of(kind)}
    values = {}
    for key, value in table.items():
        if key not in known:
            error = unknown("key", f"{section}.{key}", [f"{section}.{name}" for name in known])
            hint = error.hint if known else "it has no options"
            problems.append(FinloraError(f"{error.message}{where}", hint))
            continue
        try:
            value = convert(value, hints[key], f"{section}.{key}", where)
            if trouble := broken(value, known[key].metadata.get("limits", {})):
                choices = known[key].metadata.get("limits", {}).get("choices") and "not a choice" or "out of range"
                problems.append(
                    FinloraError(f"{section}.{key} = {shown(value)}{where} is {choices}", f"it must be {trouble}")
                )
                continue
            values[key] = value
        except FinloraError as error:
            problems.append(error)
    return values


def convert(value: Any, kind: Any, name: str, where: str) -> Any:
    """`value` as the annotated type `kind`: whole numbers become floats where floats go, one text a list of one.

    Raises: FinloraError naming the value, what was expected and the place.
    """
    raw = value.raw if isinstance(value, Text) else None
    value = value.value if isinstance(value, Text) else value
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if str in options and raw is not None and not isinstance(value, (str, list)) and type(value) not in options:
        return raw  # `--set run.out=2024` means the text
    for option in options:
        home = typing.get_origin(option) or option
        if home is typing.Any or (home is type(None) and value is None):
            return value
        if home is float and type(value) in (int, float):
            return float(value)
        if home in (int, bool, str) and type(value) is home:
            return value
        if home is dict and isinstance(value, Mapping):
            return bare(value)
        if home is typing.Literal and value in typing.get_args(option):
            return value
        if home in (tuple, list) and isinstance(value, (list, tuple)):
            return home(_item(inner, option, name, where) for inner in value)
        if home in (tuple, list) and isinstance(value, str) and str not in options:
            return home([value])
    expected = " or ".join(_named(option) for option in options)
    raise FinloraError(
        f"{name} = {shown(value)}{where} is {_kind_of(value, options)}",
        f"it must be {expected}{_example(value, options)}",
    )


def broken(value: Any, limits: Mapping[str, Any]) -> str:
    """What `value` must be, when it is outside its limits; empty when it is fine."""
    numbers = [value] if type(value) in (int, float) else []
    low, high, above, below = (limits.get(key) for key in ("low", "high", "above", "below"))
    for number in numbers:
        fine = (low is None or number >= low) and (high is None or number <= high)
        fine = fine and (above is None or number > above) and (below is None or number < below)
        if not (fine and math.isfinite(number)):
            parts = [f"{word} {limit:g}" if isinstance(limit, float) else f"{word} {limit}"
                     for word, limit in (("at least", low), ("above", above), ("at most", high), ("below", below)) if limit is not None]  # fmt: skip
            return "a finite number " * (not parts) + " and ".join(parts)
    if limits.get("filled") and value in ("", ()):
        return "filled in, not empty"
    for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
        if "choices" in limits and text not in limits["choices"]:
            return f"one of {', '.join(limits['choices'])}"
        if "match" in limits and not re.fullmatch(limits["match"], text):
            return "one of auto, cpu, mps, cuda, cuda:0"
    return ""


def shown(value: Any) -> str:
    """A value as it would be written in the file, shortened."""
    try:
        text = to_toml(value)
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def to_toml(value: Any) -> str:
    """One value as TOML.

    Raises: TypeError for a value that TOML cannot hold.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(to_toml(inner) for inner in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{to_key(str(key))} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    raise TypeError(f"TOML holds no {type(value).__name__}")


def to_key(key: str) -> str:
    """A key as TOML: bare where it may be, else quoted."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else to_toml(key)


def _item(value: Any, option: Any, name: str, where: str) -> Any:
    inner = [arg for arg in typing.get_args(option) if arg is not Ellipsis]
    return convert(value, inner[0], name, where) if inner else value


def _named(option: Any) -> str:
    home = typing.get_origin(option) or option
    if home is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(option)))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table",
             tuple: "a list", list: "a list", type(None): "absent"}  # fmt: skip
    inner = [arg for arg in typing.get_args(option) if arg is not Ellipsis]
    return (
        f"a list of {names.get(inner[0], 'values')}".replace("a list of text in quotes", "a list of texts")
        if home in (tuple, list) and inner
        else names.get(home, str(home))
    )


def _kind_of(value: Any, options: tuple[Any, ...]) -> str:
    if type(value) is float and int in options:
        return "not a whole number"
    names = {
        bool: "a truth value",
        int: "a whole number",
        float: "a number",
        str: "text",
        list: "a list",
        tuple: "a list",
        dict: "a table",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _example(value: Any, options: tuple[Any, ...]) -> str:
    if type(value) is float and int in options and value.is_integer():
        return f": {int(value)}"
    if isinstance(value, str) and value.lower() in ("true", "false") and bool in options:
        return f": {value.lower()}"
    if isinstance(value, str) and (int in options or float in options):
        try:
            return f", without quotes: {int(value) if int in options else float(value):g}"
        except ValueError:
            return ""
    return ""
