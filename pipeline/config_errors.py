"""What is wrong with a configuration, told one line per setting, in the words of the YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import did_you_mean

__all__ = ["describe_findings"]

#: Kinds of ``alpha`` and of cuts: an implementation detail, no part of the setting's name.
_KINDS = ("number", "rule", "choice", "edges", "parts")


def describe_findings(error: ValidationError, settings: type[BaseModel]) -> str:
    """Turn pydantic's findings about ``settings`` into one line per setting, in the words of the YAML file."""
    lines = []
    reported: list[list[str]] = []
    for finding in error.errors():
        location = [str(part) for part in finding["loc"] if part not in _KINDS]
        if any(earlier[: len(location)] == location for earlier in reported):
            continue  # a consequence of what is already said about a part of this setting
        reported.append(location)
        kind = finding["type"]
        if kind == "extra_forbidden":
            known = _known_keys(settings, location[:-1])
            line = (
                f"unknown setting {'.'.join(location)!r}{did_you_mean(location[-1], known)}; "
                f"known here: {', '.join(known)}"
            )
        elif kind == "missing":
            line = f"the setting {'.'.join(location)!r} is required"
        else:
            message = finding["msg"].removeprefix("Value error, ")
            shown = finding.get("input")
            found = "" if kind == "value_error" else f", found {shown!r}"
            line = f"{'.'.join(location) or 'settings'}: {message}{found}"
        lines.append(line)
    return "; ".join(lines)


def _known_keys(settings: type[BaseModel], location: list[str]) -> list[str]:
    """Return the settings that may stand at a place; where it may hold one of several kinds, those of all."""
    models = [settings]
    for part in location:
        inner = [annotation for model in models for annotation in [_fields(model).get(part)] if annotation is not None]
        sections = [item for annotation in inner for item in _flatten(annotation)]
        found = [item for item in sections if isinstance(item, type) and issubclass(item, BaseModel)]
        if not found:
            break
        models = found
    return list(dict.fromkeys(name for model in models for name in _fields(model)))


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _flatten(annotation: Any) -> Iterator[Any]:
    """Yield a type and, inside unions and annotations, the types it is made of."""
    yield annotation
    for part in get_args(annotation):
        yield from _flatten(part)
