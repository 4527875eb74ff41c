"""The vectors themselves: well-formed, and true to the clauses that they name."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Final

import pytest
from jsonschema import Draft202012Validator

from tests.conformance.vectors import SPEC, VECTORS, Json, Scenario, files, load, load_all

PROTOCOL: Final = (SPEC / "protocol.md").read_text(encoding="utf-8")
SCHEMA: Final = json.loads((VECTORS / "vector.schema.json").read_text(encoding="utf-8"))
CLAUSE: Final = re.compile(r"^- \*\*([A-Z]+-[1-9][0-9]*)\*\* ", re.MULTILINE)
CITED: Final = re.compile(r"\b[A-Z]{2,}-[1-9][0-9]*\b")
CLAUSES: Final = CLAUSE.findall(PROTOCOL)

# Clauses that no vector plays, and why none can. ADV-*, advice to clients, is excused as a whole.
EXCUSED: Final = {
    "VAL-2": "what is rounded is below the resolution of any peer's clock",
    "ERR-4": "speaks of clients, and of an outage that a vector cannot make",
    "ERR-5": "speaks of clients",
    "CLOSE-2": "speaks of codes that do not exist yet",
    "CLOSE-3": "needs megabytes of unread answers, and then nothing arrives that could be expected",
    "AUTH-4": "timing and logs are not on the wire",
    "LIVE-7": "takes three times heartbeat_ms, half a minute",
    "ACQ-14": "leaves it to the server",
    "ACQ-18": "leaves it to the server",
    "QUE-6": "needs a second server over the same store, and the death of one",
    "RES-5": "needs a second server over the same store",
    "SESS-8": "needs an outage of a part of the store",
    "LOST-3": "needs an outage of the store",
    "CACHE-7": "needs a store that loses data, and that comes back with less",
    "TAG-4": "needs more tags than a server remembers",
    "SET-5": "says what is not promised",
    "WT-9": "says what is not promised",
    "WRITE-3": "says what is not promised",
    "WRITE-22": "says what is not promised",
}


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_a_file_obeys_the_schema(path: Path) -> None:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    problems = [
        f"{problem.json_path}: {problem.message[:300]}"
        for problem in Draft202012Validator(SCHEMA).iter_errors(content)
    ]
    assert not problems
    assert isinstance(content, dict)
    assert content["topic"] == path.stem


def test_the_schema_refuses_what_is_none() -> None:
    step: Json = {"connect": "a"}
    scenario: dict[str, Json] = {"title": "t", "clauses": ["ACQ-1"], "steps": [step]}
    validator = Draft202012Validator(SCHEMA)
    assert validator.is_valid({"topic": "t", "scenarios": [scenario]})
    bad_steps: list[Json] = [
        {},
        {"conect": "a"},
        {"connect": "a", "call": "m"},
        {"on": "a", "call": "m"},
        {"on": "a", "call": "m", "result": 1, "error": 1},
        {"call": "m", "result": 1},
        {"on": "a", "sleep": 5},
        {"on": "a", "expect_close": []},
        {"on": "a", "send_tcp_hex": "zz"},
    ]
    for bad in bad_steps:
        assert not validator.is_valid({"topic": "t", "scenarios": [{**scenario, "steps": [bad]}]})
    assert not validator.is_valid({"topic": "t", "scenarios": [{**scenario, "clause": 1}]})


def test_the_example_of_the_readme_obeys_the_schema() -> None:
    readme = (VECTORS / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```json\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(block))


def test_titles_are_unique() -> None:
    repeated = [name for name, times in Counter(s.id for s in load_all()).items() if times > 1]
    assert not repeated


def test_clause_ids_are_unique() -> None:
    assert [clause for clause, times in Counter(CLAUSES).items() if times > 1] == []


def test_the_specification_cites_only_clauses_that_exist() -> None:
    known = {*CLAUSES, "RFC-2119", "UTF-8"}
    assert sorted({*CITED.findall(PROTOCOL)} - known) == []


def test_every_clause_has_a_vector_or_an_excuse() -> None:
    """Run with ``-s`` to see the list."""
    played = {clause for scenario in load_all() for clause in scenario.clauses}
    without = [c for c in CLAUSES if c not in played and not c.startswith("ADV-")]
    print("\nclauses without a vector:")
    for clause in without:
        print(f"  {clause}: {EXCUSED.get(clause, 'NO EXCUSE')}")
    assert sorted(played - {*CLAUSES}) == [], "vectors name clauses that do not exist"
    assert sorted({*without} - EXCUSED.keys()) == [], "neither vector nor excuse"
    assert sorted(EXCUSED.keys() - {*without}) == [], "excused, but played or gone"


@pytest.mark.parametrize("path", files(), ids=lambda path: path.name)
def test_steps_use_what_earlier_steps_made(path: Path) -> None:
    for scenario in load(path):
        assert loose_ends(scenario) == [], scenario.id


def loose_ends(scenario: Scenario) -> list[str]:
    """Connections, bindings and requests that a step uses before there are any."""
    made: set[str] = set()
    problems: list[str] = []
    for number, step in enumerate(scenario.steps, start=1):
        made |= {f"on {step[verb]}" for verb in ("connect", "reconnect") if verb in step}
        if "as" in step:
            made |= {f"finish {step['as']}", f"$id {step['as']}"}
        used = {f"{verb} {step[verb]}" for verb in ("on", "finish") if verb in step}
        refs, binds = set[str](), set[str]()
        collect(step, refs, binds)
        problems += [f"step {number}: {use}" for use in (used | refs) - made]
        made |= binds
    return problems


def collect(value: Json, refs: set[str], binds: set[str]) -> None:
    """The names that ``$ref`` and ``$id`` use, and those that ``$bind`` makes."""
    if isinstance(value, list):
        for element in value:
            collect(element, refs, binds)
    if isinstance(value, dict):
        for key, member in value.items():
            if key in ("$ref", "$id"):
                refs.add(f"{key} {str(member).partition('.')[0]}")
            elif key == "$bind":
                binds.add(f"$ref {member}")
            else:
                collect(member, refs, binds)
