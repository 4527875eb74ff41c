"""Vector files: reading them, and unfolding their examples."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import attrs

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
Step: TypeAlias = dict[str, Json]

SPEC: Final = Path(__file__).resolve().parents[2] / "spec"
VECTORS: Final = SPEC / "vectors"
IGNORED_BY_DEFAULT: Final = ("lease.contended",)


@attrs.frozen
class Scenario:
    """One scenario, with its examples filled in: what one test plays."""

    topic: str
    title: str
    clauses: tuple[str, ...]
    steps: tuple[Step, ...]
    ignore: tuple[str, ...] = IGNORED_BY_DEFAULT
    given: tuple[tuple[str, Json], ...] = ()

    @property
    def id(self) -> str:
        return f"{self.topic}::{self.title}"


def files() -> list[Path]:
    """All vector files, sorted by name."""
    return sorted(path for path in VECTORS.glob("*.json") if path.name != "vector.schema.json")


def load_all() -> list[Scenario]:
    """Every scenario of every file, once for each of its examples."""
    return [scenario for path in files() for scenario in load(path)]


def load(path: Path) -> Iterator[Scenario]:
    """The scenarios of one file.

    Raises:
        ValueError: If the file is no vector file.
    """
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    top = as_object(content)
    for entry in as_list(top["scenarios"]):
        yield from unfold(as_text(top["topic"]), as_object(entry))


def unfold(topic: str, entry: dict[str, Json]) -> Iterator[Scenario]:
    """One scenario for each example; just one if there are none."""
    examples = [as_object(example) for example in as_list(entry.get("examples", []))]
    for number, example in enumerate(examples or [{}], start=1):
        suffix = f" [{number}]" if examples else ""
        yield Scenario(
            topic=topic,
            title=as_text(entry["title"]) + suffix,
            clauses=tuple(as_text(clause) for clause in as_list(entry["clauses"])),
            steps=tuple(as_object(exemplify(step, example)) for step in as_list(entry["steps"])),
            ignore=tuple(
                as_text(method) for method in as_list(entry.get("ignore", [*IGNORED_BY_DEFAULT]))
            ),
            given=tuple(sorted(as_object(entry.get("given", {})).items())),
        )


def exemplify(value: Json, example: dict[str, Json]) -> Json:
    """The value, with every ``{"$example": key}`` replaced by that member of the example."""
    match value:
        case {"$example": str(key), **rest} if not rest:
            return example[key]
        case dict():
            return {key: exemplify(member, example) for key, member in value.items()}
        case list():
            return [exemplify(element, example) for element in value]
        case _:
            return value


def as_object(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise ValueError(f"not an object: {value!r}")
    return value


def as_list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise ValueError(f"not a list: {value!r}")
    return value


def as_text(value: Json) -> str:
    if not isinstance(value, str):
        raise ValueError(f"not a string: {value!r}")
    return value


def as_int(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"not an integer: {value!r}")
    return value
