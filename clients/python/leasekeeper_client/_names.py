"""Names of leases that are made of a call's arguments."""

from collections.abc import Callable
from inspect import signature
from string import Formatter
from typing import ParamSpec

P = ParamSpec("P")


def name_maker(template: str, function: Callable[P, object]) -> Callable[P, str]:
    """Return what makes the name for a call of `function`.

    Args:
        template: A format string over the function's parameters.
        function: What is called.

    Raises:
        ValueError: The template names a parameter that the function does not have.
    """
    shape = signature(function)

    def make_name(*args: P.args, **kwargs: P.kwargs) -> str:
        bound = shape.bind(*args, **kwargs)
        bound.apply_defaults()
        return template.format_map(bound.arguments)

    fields = {field.split(".")[0].split("[")[0] for field in _fields(template)}
    unknown = fields - set(shape.parameters)
    if unknown:
        raise ValueError(f"{template!r} names {sorted(unknown)}, which are no parameters")
    return make_name


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]
