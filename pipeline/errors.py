"""The exceptions a user can meet, one small tree; each carries the exit code of the command line.

Every message says what was required, what was found and where, and what to do. Lower layers raise;
only :mod:`pipeline.cli` prints.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = [
    "ConfigError",
    "DeprecatedName",
    "HeadroomError",
    "InputError",
    "ResourceError",
    "SingularGramError",
    "did_you_mean",
    "enumerate_words",
    "printable",
    "require_kind",
]


class HeadroomError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message, with what a terminal would obey in names of files shown as escapes."""
        return printable(super().__str__())


class InputError(HeadroomError):
    """The user's files or arguments are not what is required (exit code 2)."""

    exit_code = 2


class ConfigError(InputError):
    """A setting is unknown, missing or out of range (exit code 2)."""


class SingularGramError(InputError):
    """A ridge system has no unique solution at the given penalty (exit code 2)."""


class ResourceError(HeadroomError):
    """The environment cannot do the work: disk, memory or cluster (exit code 3)."""

    exit_code = 3


class DeprecatedName(FutureWarning):
    """A name still works and will not work for ever; the message says what to write instead."""


def printable(text: str) -> str:
    """Return text with control characters and undecodable bytes as escapes: names of files can hold any of them."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def enumerate_words(words: Sequence[str], last: str = "and") -> str:
    """Return words as people list them: ``a``, ``a and b``, ``a, b and c``; or with another word before the last."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def require_kind(name: str, value: object, kinds: type | tuple[type, ...], what: str) -> None:
    """Refuse an argument of a public function that is something else than is due.

    Parameters
    ----------
    name
        The argument's.
    value
        What was given.
    kinds
        What it may be.
    what
        The same in words, in the singular.

    Raises
    ------
    ConfigError
        Saying what is required and what was found.
    """
    if not isinstance(value, kinds):
        text, kind = repr(value), type(value).__name__
        found = f"{text} ({kind})" if len(text) <= _SHOWN_LETTERS else f"an object of type {kind}"
        raise ConfigError(f"{name}: {what} is required, found {found}")


#: A longer value is told by its type alone.
_SHOWN_LETTERS: Final = 60


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known word, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
