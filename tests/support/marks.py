"""Marks on some cases of a test."""

from collections.abc import Collection, Iterable

import pytest


def with_mark(
    cases: Iterable[str], mark: pytest.MarkDecorator, only: Collection[str] = (), but: Collection[str] = ()
) -> list:
    """Cases for parametrize, of which `only` these have a mark, or all `but` these; a name that is no case is an error,
    so that one that is renamed does not lose its mark."""
    cases = list(cases)
    if unknown := {*only, *but} - {*cases}:
        raise ValueError(f"Expected some of {', '.join(cases)}, got {', '.join(sorted(unknown))}: correct the name.")
    return [pytest.param(case, marks=mark if (case not in but if but else case in only) else ()) for case in cases]
