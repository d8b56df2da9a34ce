"""Options of solvers: which a function takes, as typed text and as values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args, get_type_hints

from diffode.checks import flag, nearest, number, text, whole
from diffode.errors import InputError, shown

Options = dict[str, Any]


def keywords(function: Callable[..., Any]) -> dict[str, type]:
    """The keyword-only parameters of a function and their types, those of `**policy: Unpack[Policy]` among them."""
    known: dict[str, type] = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            known.update(get_type_hints(get_args(parameter.annotation)[0]) if get_args(parameter.annotation) else {})
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kinds = [kind for kind in get_args(parameter.annotation) or (parameter.annotation,) if kind is not type(None)]
            known[name] = kinds[0] if kinds[0] in (bool, int, float) else str
    return known


CHECKS: dict[type, Callable[[str, Any], Any]] = {bool: flag, int: whole, float: partial(number, finite=False), str: text}


def check(solver: str, known: Mapping[str, type], options: Mapping[str, Any]) -> Options:
    """The options, each of the type that the solver takes; InputError for one that is not, or that is not known, with those that
    are."""
    refuse_unknown(solver, known, options)
    return {option: CHECKS[known[option]](f"the option {option} of {solver}", value) for option, value in options.items()}


def refuse_unknown(solver: str, known: Mapping[str, type], options: Mapping[str, Any]) -> None:
    """InputError for an option that is not known, with those that are."""
    if unknown := [option for option in options if option not in known]:
        near = [f"did you mean {' or '.join(found)}? "] if (found := nearest(unknown[0], known)) else []
        raise InputError(f"{solver} has no option {shown(unknown[0])}: {''.join(near)}it has {', '.join(known) or 'none'}")


def parse(solver: str, known: Mapping[str, type], texts: Mapping[str, str]) -> Options:
    """Options typed as text, each as the type that the solver takes; InputError for one that is not."""
    refuse_unknown(solver, known, texts)
    values: Options = {}
    for option, typed in texts.items():
        kind = known[option]
        try:
            values[option] = {"true": True, "false": False}[typed.lower()] if kind is bool else kind(typed)
        except (ValueError, KeyError):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
            raise InputError(f"the option {option} of {solver} is {wanted}, not {shown(typed)}") from None
    return values
