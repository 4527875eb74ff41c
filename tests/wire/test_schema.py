"""The generated document is valid, is the one in the repository, and says what the decoder does."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from leasekeeper import errors
from leasekeeper.errors import CODES, InvalidParams, Outcome, RpcError
from leasekeeper.messages import METHODS, NOTIFICATIONS, HolderView, Mode, Notification, Result
from leasekeeper.wire import schema
from leasekeeper.wire.codec import decode_params, encode_error, encode_notification, encode_result
from tests import strategies

DOCUMENT = schema.document()
ALL_METHODS = st.sampled_from(sorted(METHODS))
COMMITTED = Path(__file__).parents[2] / schema.PATH


def _pattern(
    _validator: object, pattern: str, value: object, _schema: object
) -> Iterator[ValidationError]:
    """Patterns are ECMA-262's, where `$` is the very end; Python's `$` allows one more newline."""
    if isinstance(value, str) and not re.search(re.sub(r"\$\Z", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern}")


StrictValidator = extend(  # type: ignore[no-untyped-call] # the stubs leave its **kwargs bare
    Draft7Validator,
    validators={"pattern": _pattern},
    # As the document says: an integer is written without fraction.
    type_checker=Draft7Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ),
)


def validator(part: schema.Json) -> Validator:
    """A validator of one part of the document, which knows its components."""
    strict: Validator = StrictValidator(part | {"components": DOCUMENT["components"]})
    return strict


PARAMS = {method: validator(schema.params_schema(method)) for method in METHODS}


def by_name(descriptors: list[schema.Json]) -> schema.Json:
    """One schema for the members of a notification."""
    return {
        "type": "object",
        "properties": {each["name"]: each["schema"] for each in descriptors},
        "required": [each["name"] for each in descriptors if each["required"]],
        "additionalProperties": False,
    }


# --- The decoder and the schema agree ---------------------------------------------------------


@given(st.data())
def test_what_obeys_the_schema_is_accepted(data: st.DataObject) -> None:
    method = data.draw(ALL_METHODS)
    params = data.draw(strategies.params(method))
    PARAMS[method].validate(params)
    assert type(decode_params(method, params)) is METHODS[method][0]


@given(st.data())
def test_the_decoder_accepts_exactly_what_the_schema_accepts(data: st.DataObject) -> None:
    """And where both refuse, the decoder's path is one that the schema complains of, too."""
    method = data.draw(ALL_METHODS)
    params = data.draw(strategies.almost_params(method))
    problems = list(PARAMS[method].iter_errors(params))
    refused = refusal(method, params)
    if problems:
        assert refused is not None, problems
        assert refused.data["path"] in set().union(*map(paths, problems))
    else:
        assert (refused is None) == strategies.rules_together(method, params), refused


def refusal(method: str, params: object) -> InvalidParams | None:
    """What the decoder has against these parameters."""
    try:
        decode_params(method, params)
    except InvalidParams as refused:
        return refused
    return None


def paths(problem: ValidationError) -> set[object]:
    """Where a problem is, in the words of `data.path`."""
    keys = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in problem.path)
    match problem.validator, problem.instance:
        case "required", _:
            return {"$." + problem.message.split("'")[1]}
        case "additionalProperties", dict(members):
            return {f"$.{member}"[:300] for member in members}
    return {"$" + keys}


@given(st.data())
def test_results_are_what_the_schema_says(data: st.DataObject) -> None:
    method = data.draw(ALL_METHODS)
    form = data.draw(st.sampled_from(METHODS[method][1]))
    result: Result = data.draw(strategies.instances(form))
    (described,) = [each["result"] for each in DOCUMENT["methods"] if each["name"] == method]
    sent = orjson.loads(encode_result(1, result))["result"]
    validator(described["schema"]).validate(sent)
    named = DOCUMENT["components"]["schemas"][form.__name__]
    validator(named | {"additionalProperties": False}).validate(sent)


@given(st.data())
def test_notifications_are_what_the_schema_says(data: st.DataObject) -> None:
    cls = data.draw(st.sampled_from(list(NOTIFICATIONS)))
    notification: Notification = data.draw(strategies.instances(cls))
    sent = orjson.loads(encode_notification(notification))
    (described,) = [each for each in DOCUMENT["x-notifications"] if each["name"] == sent["method"]]
    validator(by_name(described["params"])).validate(sent["params"])


HOLDER = HolderView(7, Mode.SHARED, "nightly", 1, 2, None)


@pytest.mark.parametrize(
    "error",
    [
        errors.ParseError("no"),
        errors.InvalidRequest("no"),
        errors.MethodNotFound("lease.steal"),
        errors.InvalidParams("$.name", "is missing"),
        errors.InternalError(),
        errors.Busy(holders=[HOLDER], waiting=3, retry_after_ms=50),
        errors.Lost(),
        errors.Cancelled(),
        errors.FillFailed("no such host", 50),
        errors.Deadlock(["a", "b"]),
        errors.Unauthenticated(),
        errors.Forbidden("no"),
        errors.LimitReached("batch_requests", 1000),
        errors.Overloaded(50),
        errors.Unavailable(Outcome.UNKNOWN, 50),
        errors.Draining(50),
    ],
    ids=lambda error: error.name,
)
def test_error_data_is_what_the_schema_says(error: RpcError) -> None:
    body = orjson.loads(encode_error("x", error))["error"]
    described = DOCUMENT["x-error-data"][error.name] | {"additionalProperties": False}
    validator(described).validate(body["data"])
    assert DOCUMENT["components"]["errors"][error.name]["code"] == body["code"]


# --- The document -----------------------------------------------------------------------------


def test_every_schema_is_a_json_schema() -> None:
    parts = list(DOCUMENT["components"]["schemas"].values())
    parts += DOCUMENT["x-error-data"].values()
    for each in DOCUMENT["methods"] + DOCUMENT["x-notifications"]:
        parts += [descriptor["schema"] for descriptor in each["params"]]
    parts += [each["result"]["schema"] for each in DOCUMENT["methods"]]
    parts += [schema.params_schema(method) for method in METHODS]
    for part in parts:
        Draft7Validator.check_schema(part)


def test_every_method_notification_and_error_is_described() -> None:
    assert [each["name"] for each in DOCUMENT["methods"]] == list(METHODS)
    assert {each["paramStructure"] for each in DOCUMENT["methods"]} == {"by-name"}
    assert [each["name"] for each in DOCUMENT["x-notifications"]] == list(NOTIFICATIONS.values())
    codes = {name: each["code"] for name, each in DOCUMENT["components"]["errors"].items()}
    assert codes == {error.name: code for code, error in CODES.items()}


def test_every_reference_leads_somewhere() -> None:
    text = orjson.dumps(DOCUMENT).decode()
    for reference in re.findall(r'"\$ref":"#/components/(\w+)/(\w+)"', text):
        assert reference[1] in DOCUMENT["components"][reference[0]], reference
    assert text.count('"$ref"') == len(re.findall(r'"\$ref":"#/components/', text))


def test_constraints_defaults_and_docstrings_are_shown() -> None:
    (acquire,) = [each for each in DOCUMENT["methods"] if each["name"] == "lease.acquire"]
    described = {each["name"]: each for each in acquire["params"]}
    assert acquire["summary"] == "Asks for one name."
    assert described["name"] == {
        "name": "name",
        "required": True,
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": r"^(?:[A-Za-z0-9._:/@+\-]+)$",
        },
    }
    assert described["wait_ms"] == {
        "name": "wait_ms",
        "required": False,
        "schema": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**53 - 1, "default": 0},
        "description": "0: answer at once. None (null on the wire): wait for ever.",
    }
    assert described["mode"]["schema"] == {
        "type": "string",
        "enum": ["exclusive", "shared"],
        "default": "exclusive",
    }


def test_absence_is_not_shown_as_a_default() -> None:
    """Null for `label`, or -1 for the `wait_ms` of `lease.resume`, would be refused if sent."""
    for each in DOCUMENT["methods"]:
        for descriptor in each["params"]:
            if "default" in descriptor["schema"]:
                validator(descriptor["schema"]).validate(descriptor["schema"]["default"])


def test_a_result_of_several_forms_is_one_of_them() -> None:
    """And `state` says which, so that a code generator has something to go by."""
    (get,) = [each for each in DOCUMENT["methods"] if each["name"] == "cache.get"]
    forms = ["CacheHit", "CacheToFill", "CacheNegative"]
    assert get["result"]["schema"] == {
        "oneOf": [{"$ref": f"#/components/schemas/{form}"} for form in forms]
    }
    schemas = [DOCUMENT["components"]["schemas"][form] for form in forms]
    assert [each["properties"]["state"]["enum"] for each in schemas] == [
        ["hit", "stale"],
        ["fill"],
        ["negative"],
    ]
    assert all("state" in each["required"] for each in schemas)


def test_what_may_be_left_out_is_not_required_and_not_null() -> None:
    hit = DOCUMENT["components"]["schemas"]["CacheHit"]
    assert hit["required"] == ["state", "value", "age_ms", "ttl_ms"]
    assert hit["properties"]["refresh"] == {"$ref": "#/components/schemas/Refresh"}
    refresh = DOCUMENT["components"]["schemas"]["Refresh"]
    assert refresh["required"] == ["fill", "fence", "fill_ms"]
    assert refresh["properties"]["etag"] == {"type": "string"}


def test_a_cached_value_may_be_anything() -> None:
    """Null too, where it may be absent."""
    assert DOCUMENT["components"]["schemas"]["CacheHit"]["properties"]["value"] == {}
    for method, required in (("cache.set", True), ("cache.fill", False)):
        described = schema.params_schema(method)
        assert described["properties"]["value"] == {}
        assert ("value" in described["required"]) is required


def test_fields_of_every_module_are_documented() -> None:
    for method, param in (
        ("lease.resume", "wait_ms"),
        ("cache.fill", "etag"),
        ("writes.put", "ttl_ms"),
    ):
        (described,) = [each for each in DOCUMENT["methods"] if each["name"] == method]
        (descriptor,) = [each for each in described["params"] if each["name"] == param]
        assert descriptor["description"]


@pytest.mark.parametrize(
    ("error", "methods"),
    [
        ("lost", ["lease.renew", "lease.resume"]),
        ("fill_failed", ["cache.get"]),
        ("deadlock", ["cache.get"]),
        (
            "busy",
            [
                *("lease.acquire", "lease.acquire_all", "lease.resume"),
                *("cache.get", "cache.set", "cache.begin_write", "writes.put"),
            ],
        ),
        ("unavailable", list(METHODS)),
    ],
)
def test_an_error_belongs_to_the_methods_that_answer_it(error: str, methods: list[str]) -> None:
    described = {"$ref": f"#/components/errors/{error}"}
    assert [each["name"] for each in DOCUMENT["methods"] if described in each["errors"]] == methods


# --- The command ------------------------------------------------------------------------------


def test_the_document_in_the_repository_is_up_to_date() -> None:
    assert COMMITTED.read_bytes() == schema.render(), schema.REGENERATE
    assert schema.main(["--check", str(COMMITTED)]) == 0


def test_a_document_that_differs_is_reported_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "openrpc.json"
    assert schema.main(["--check", str(path)]) == 1
    path.write_text("{}\n")
    assert schema.main(["--check", str(path)]) == 1
    assert path.read_text() == "{}\n"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(schema.REGENERATE in line for line in lines)


def test_the_module_writes_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "openrpc.json"
    monkeypatch.setattr(sys, "argv", ["schema", str(path)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(schema.__file__), run_name="__main__")
    assert exit_info.value.code == 0
    assert path.read_bytes() == schema.render()
