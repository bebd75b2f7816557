"""Read configurations from YAML files: find the file, read it safely, resolve its data paths, validate it.

Paths are relative to the file and may contain ``${VARIABLES}`` of the environment.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.base import read_file
from pipeline.config.settings import ExperimentConfig, NoSwitch, Section
from pipeline.errors import ConfigError, DeprecatedName, did_you_mean, enumerate_words

__all__ = [
    "ConfigSource",
    "describe_findings",
    "list_variables",
    "load_config",
    "packaged_configs",
    "parse_yaml",
    "read_yaml",
    "schema_file",
    "settle",
    "with_absolute_paths",
    "yaml_text",
]


SectionT = TypeVar("SectionT", bound=Section)


def packaged_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    folder = Path(str(resources.files("pipeline"))) / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def schema_file() -> Path:
    """Return the JSON schema of a configuration, which editors read; ``docs/generate.py`` writes it."""
    return Path(str(resources.files("pipeline"))) / "configs" / "experiment.schema.json"


#: What a configuration may be given as: a YAML file, a packaged name, the settings themselves, or what was loaded.
ConfigSource: TypeAlias = str | Path | Mapping[str, Any] | ExperimentConfig


def load_config(source: ConfigSource, variables: Mapping[str, str] | None = None) -> ExperimentConfig:
    """Read and validate a configuration.

    Parameters
    ----------
    source
        A YAML file, or the name of a packaged configuration (``demo``, ``oracle_noise1``). Or the settings as a
        dictionary, spelled as in the file; relative paths then start at the working folder. A configuration that was
        loaded before is returned as it is.
    variables
        Values of ``${NAME}`` in data paths; the environment by default.

    Returns
    -------
    ExperimentConfig
        With absolute data paths.

    Raises
    ------
    ConfigError
        If the file is missing or not YAML, a ``${VARIABLE}`` is not set, or a setting is unknown or wrong.
    """
    if isinstance(source, ExperimentConfig):
        return source
    variables = os.environ if variables is None else variables
    if isinstance(source, Mapping):
        content = _without_deprecated(_plain(source), "configuration")
        return _validate(content, "configuration", Path.cwd(), variables)
    if not isinstance(source, str | Path):
        raise ConfigError(
            "a configuration is a YAML file, a packaged name or a dictionary of settings, found "
            f"{type(source).__name__}"
        )
    path = Path(source).expanduser()
    if not path.exists():
        packaged = packaged_configs()
        if str(source) not in packaged:
            raise ConfigError(
                f"configuration {str(source)!r}: no such file, and no packaged configuration of that name "
                f"({', '.join(packaged)}){did_you_mean(str(source), packaged)}"
            )
        path = packaged[str(source)]
    content = read_yaml(path, "configuration")
    if not isinstance(content, dict):
        raise ConfigError(f"configuration {path}: a mapping of settings is required, such as 'target: log_g'")
    # Relative paths of a packaged file belong to the caller's folder, because no spectra lie beside that file.
    base = Path.cwd() if path in packaged_configs().values() else path.resolve().parent
    content = _without_deprecated(content, f"configuration {path}")
    return _validate(content, f"configuration {path}", base, variables)


def list_variables(source: str | Path) -> tuple[str, ...]:
    """Return the variables of the environment that the data paths of a configuration name, in their order.

    Parameters
    ----------
    source
        A YAML file or a packaged name. There are none in what cannot be read.
    """
    path = Path(source).expanduser()
    try:
        content = read_yaml(path if path.exists() else packaged_configs()[str(source)], "configuration")
    except (ConfigError, KeyError):
        return ()
    section = content.get("data") if isinstance(content, dict) else None
    paths = [section.get(key) for key in _PATHS] if isinstance(section, dict) else []
    entries = [entry for value in paths for entry in (value if isinstance(value, list) else [value])]
    found = [match for entry in entries if isinstance(entry, str) for match in _VARIABLE.finditer(entry)]
    return tuple(dict.fromkeys(match.group(1) or match.group(2) for match in found))


def _validate(content: dict[str, Any], name: str, base: Path, variables: Mapping[str, str]) -> ExperimentConfig:
    expanded = _expand_data_paths(content, base, name, variables)
    try:
        return ExperimentConfig.model_validate(_expand_cluster(expanded, base))
    except ValidationError as error:
        raise ConfigError(f"{name}: {describe_findings(error, ExperimentConfig)}") from None


def settle(kind: type[SectionT], value: SectionT | Mapping[str, Any] | None, name: str) -> SectionT:
    """Return a part of the configuration that may be given as a dictionary, or left out for its defaults.

    Parameters
    ----------
    kind
        Which.
    value
        It, or its settings.
    name
        How messages call it.

    Raises
    ------
    ConfigError
        If a setting is unknown or wrong.
    """
    if isinstance(value, kind):
        return value
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name}: a dictionary of settings is required, found {type(value).__name__}")
    try:
        return kind.model_validate(_plain(value or {}))
    except ValidationError as error:
        raise ConfigError(f"{name}: {describe_findings(error, kind)}") from None


def _plain(value: Any) -> Any:
    """Return settings as a YAML file would give them: paths as text, and NumPy's numbers and arrays as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list | tuple | range) else value


#: Settings of earlier versions, by section and name, and what to do about them.
DEPRECATED_SETTINGS: Final = {
    ("compute", "block_rows"): "it has no effect; leave it out (`compute.run_rows` is what memory depends on)",
}


def _without_deprecated(content: dict[str, Any], what: str) -> dict[str, Any]:
    """Return the settings without those of earlier versions, and warn of each."""
    for (section, name), remedy in DEPRECATED_SETTINGS.items():
        own = content.get(section)
        if isinstance(own, dict) and name in own:
            message = f"{what}: {section}.{name} is deprecated: {remedy}"
            warnings.warn(DeprecatedName(message), stacklevel=3)
            content = {**content, section: {key: value for key, value in own.items() if key != name}}
    return content


def read_yaml(path: Path, what: str) -> Any:
    """Return what a YAML text file holds, built of plain values only.

    Parameters
    ----------
    path
        The file.
    what
        How messages call it.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not YAML, or is nested too deeply.
    """
    try:
        loader = _Loader(read_file(path).decode("utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error}); give a YAML text file in UTF-8") from None
    except RecursionError:
        raise ConfigError(f"{what} {path}: nested too deeply for a {what}") from None
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).split()).replace('in "<unicode string>", ', "in ")  # the reader knows no file
        raise ConfigError(f"{what} {path}: not valid YAML: {said}") from None


def parse_yaml(text: str) -> Any:
    """Return the plain value that a text is in YAML 1.2, as it would be in a configuration.

    Raises
    ------
    ValueError
        If it is not YAML.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def yaml_text(content: Any) -> str:
    """Return plain values as YAML that :func:`read_yaml` reads back as they are, and so do other programs."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


#: What a plain word means in YAML 1.2 (its core schema), and the letters that such a word begins with. In YAML 1.1
#: ``0042`` is octal, ``yes`` and ``off`` are booleans, and ``1:30`` is 90.
_CORE_SCHEMA = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "null": (r"~|null|Null|NULL|", ("~", "n", "N", "")),
    "merge": (r"<<", "<"),
}


#: A configuration has some hundreds of values. Aliases of aliases can make billions of a few lines.
_MOST_ALIASED = 100_000


class _Loader(yaml.SafeLoader):
    """Reads YAML 1.2: plain values only, every key once, and aliases that stand for no more than a file could hold."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the root of the document; refuse keys that stand twice, and aliases of themselves or of too much."""
        root: yaml.Node | None = super().get_single_node()
        if root is not None:
            sizes: dict[int, int] = {}
            self._measure(root, sizes)
            written = len(sizes)
            if (count := sizes[id(root)]) - written > _MOST_ALIASED:
                raise yaml.YAMLError(
                    f"its aliases make {count:,} values of {written:,}, and {_MOST_ALIASED:,} more are the most"
                )
        return root

    def _measure(self, node: yaml.Node, sizes: dict[int, int]) -> int:
        """Return how many values a node stands for; ``sizes`` holds those of the nodes below, and 0 of those above."""
        if id(node) not in sizes:
            sizes[id(node)] = 0
            if isinstance(node, yaml.MappingNode):
                self._require_single_keys(node)
            inner = node.value if isinstance(node, yaml.CollectionNode) else ()
            pairs = (one if isinstance(one, tuple) else (one,) for one in inner)
            sizes[id(node)] = 1 + sum(self._measure(one, sizes) for pair in pairs for one in pair)
        elif not sizes[id(node)]:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: an alias stands within what it names")
        return sizes[id(node)]

    def _require_single_keys(self, node: yaml.MappingNode) -> None:
        """Refuse keys that stand twice as they are written: what is merged may stand in several mappings."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                word = key.value if key.tag == "tag:yaml.org,2002:merge" else self.construct_object(key)
                line = key.start_mark.line + 1
                if word in lines:
                    raise yaml.YAMLError(f"{word!r} stands twice, in lines {lines[word]} and {line}; keep one of them")
                lines[word] = line

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""


_Loader.yaml_implicit_resolvers = {}  # those of version 1.1 go
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
for _name, (_pattern, _first) in _CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})\\Z"), list(_first))


def with_absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """Return a configuration with absolute data paths; relative ones belong to this process's folder."""
    data = config.data
    paths = {
        "train": tuple(map(os.path.abspath, data.train)),
        "test": tuple(map(os.path.abspath, data.test)),
        "stores": os.path.abspath(data.stores),
    }
    return config.model_copy(update={"data": data.model_copy(update=paths)})


def _expand_cluster(content: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make the path of a cluster profile absolute; a word without a suffix is the name of a packaged profile."""
    cluster = content.get("cluster")
    if not isinstance(cluster, str) or not ("/" in cluster or cluster.endswith((".yaml", ".yml"))):
        return content
    return {**content, "cluster": str(base / os.path.expanduser(cluster))}


#: Settings of ``data`` that are paths, and a variable within one.
_PATHS: Final = ("train", "test", "stores")
_VARIABLE: Final = re.compile(r"\$\{(\w+)\}|\$(\w+)")


def _expand_data_paths(content: dict[str, Any], base: Path, name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    section = content.get("data")
    if not isinstance(section, dict):
        return content

    def expand(text: Any) -> Any:
        if not isinstance(text, str):
            return text
        expanded = os.path.expanduser(_VARIABLE.sub(substitute, text))
        return expanded if os.path.isabs(expanded) else str(base / expanded)

    def substitute(match: re.Match[str]) -> str:
        variable = match.group(1) or match.group(2)
        if variable not in variables:
            raise ConfigError(
                f"{name}: the environment variable {variable} is not set; "
                f"set it first, for example: export {variable}=/path/to/spectra"
            )
        return variables[variable]

    expanded = dict(section)
    expanded.setdefault("stores", "stores")
    for key in _PATHS:
        value = expanded.get(key)
        expanded[key] = [expand(entry) for entry in value] if isinstance(value, list) else expand(value)
        if value is None:
            del expanded[key]
    return {**content, "data": expanded}


# --- Messages about a wrong configuration: one line for each setting, with the spelling of the YAML file.

#: Internal names of the kinds of values that a setting takes; they are no part of a setting's name.
_KINDS = ("number", "word", "rule", "choice", "edges", "parts")


def describe_findings(error: ValidationError, settings: type[BaseModel]) -> str:
    """Turn pydantic's findings about ``settings`` into one line per setting, with the spelling of the YAML file."""
    lines = []
    reported: list[list[str]] = []
    for finding in error.errors():
        location = [str(part) for part in finding["loc"] if part not in _KINDS]
        if any(earlier[: len(location)] == location for earlier in reported):
            continue  # a consequence of what is already said about a part of this setting
        reported.append(location)
        kind, found = finding["type"], _shorten(finding.get("input"))
        name = ".".join(location) or "settings"
        if kind == "extra_forbidden":
            known = _known_keys(settings, location[:-1])
            line = f"unknown setting {name!r}{did_you_mean(location[-1], known)}; known here: {', '.join(known)}"
        elif (
            kind == "missing" and len(_kinds_at(settings, location[:-1])) > 1 and not _has_known_key(settings, finding)
        ):
            line = f"{'.'.join(location[:-1])}: Input should be {_allowed(settings, location[:-1])}, found {found}"
        elif kind == "missing":
            line = f"the setting {name!r} is required"
        elif kind == "too_short":
            line = f"{name}: at least {finding['ctx']['min_length']} item is required, found {found}"
        elif isinstance(no_switch := finding.get("ctx", {}).get("error"), NoSwitch):
            line = f"{name}: {no_switch}; it takes {_allowed(settings, location)}"
        elif _is_of_wrong_kind(kind) and _needs_words(_kinds_at(settings, location)):
            line = f"{name}: Input should be {_allowed(settings, location)}, found {found}"
        else:
            message = finding["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")  # as YAML says
            line = f"{name}: {message}" + ("" if kind == "value_error" else f", found {found}")
        lines.append(line)
    return "; ".join(lines)


#: Letters of a value that a message shows.
_SHOWN_LETTERS: Final = 200


def _shorten(value: object) -> str:
    """Return what was found as it is written in Python: of long text and lists the beginning, of others the type."""
    text = repr(value)
    if len(text) <= _SHOWN_LETTERS:
        return text
    is_plain = isinstance(value, str | list | tuple | dict)
    return f"{text[:_SHOWN_LETTERS]}…" if is_plain else f"an object of type {type(value).__name__}"


def _has_known_key(settings: type[BaseModel], finding: Any) -> bool:
    location = [str(part) for part in finding["loc"] if part not in _KINDS]
    return not set(finding["input"]).isdisjoint(_known_keys(settings, location[:-1]))


def _is_of_wrong_kind(kind: str) -> bool:
    """Whether pydantic says that a value is no number, no list …; not that it is a wrong one."""
    return kind.endswith(("_type", "_parsing")) or kind in ("int_from_float", "literal_error")


def _needs_words(kinds: list[Any]) -> bool:
    """Whether pydantic names one of several kinds only, or a class of ours."""
    return len(kinds) > 1 or any(_is_section(kind) or get_origin(kind) is dict or kind is bool for kind in kinds)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kinds_at(settings: type[BaseModel], location: Sequence[str]) -> list[Any]:
    """Return all types that a setting takes, such as ``int`` and ``Literal["auto"]``."""
    kinds: list[Any] = [settings]
    for part in location:
        inner = []
        for kind in kinds:
            if _is_section(kind):
                inner += [annotation] if (annotation := _fields(kind).get(part)) is not None else []
            elif get_origin(kind) in (dict, tuple):
                inner.append(get_args(kind)[get_origin(kind) is dict])
        kinds = [one for annotation in inner for one in _split_union(annotation)]
    return kinds


def _split_union(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _split_union(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in _split_union(part)]
    return [annotation]


_PLAIN_KINDS: Final = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}


def _allowed(settings: type[BaseModel], location: Sequence[str]) -> str:
    """Say in the words of a YAML file what a setting takes: ``a whole number, 'auto' or 'all'``."""
    words = [word for kind in _kinds_at(settings, location) for word in _name_kind(kind)]
    return enumerate_words(words, "or")


def _name_kind(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [repr(word) for word in get_args(kind)]
    if get_origin(kind) is tuple:
        [(inner, *_)] = [_split_union(get_args(kind)[0])]
        return [f"a list of {_PLAIN_KINDS[inner].split(' ', 1)[1]}s" if inner in _PLAIN_KINDS else "a list"]
    if _is_section(kind):
        required = [info.alias or name for name, info in kind.model_fields.items() if info.is_required()]
        if len(required) == 1:
            return [f"{{{required[0]}: …}}"]
        return ["a mapping of settings" if required else "a mapping of settings ({} takes the defaults)"]
    return [_PLAIN_KINDS.get(kind, "a mapping")]


def _known_keys(settings: type[BaseModel], location: list[str]) -> list[str]:
    """Return the settings that are allowed at a place; if it takes several kinds, the settings of all kinds."""
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
