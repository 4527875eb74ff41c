"""The dashboard and the page on monitoring name the metrics that there are: all, and no others."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric

from leasekeeper.service.metrics import Metrics

DOCS = Path(__file__).resolve().parents[2] / "docs"
ROWS = ["Leases", "Cache", "Write-behind", "Redis", "Process"]
NAME = r"[a-z]+(?:_[a-z]+)*"
SUFFIXES = ("", "_bucket", "_count", "_sum", "_total")


def families() -> dict[str, Metric]:
    """Everything that is scraped, by its name without suffixes."""
    metrics = Metrics()
    metrics.observe_redis("acquire", 0.001)
    return {family.name: family for family in metrics.registry.collect()}


OURS = {name for name in families() if not name.startswith(("process_", "python_"))}


def family_of(name: str) -> str | None:
    """The family that a name of a sample belongs to."""
    known = families()
    shortened = (name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix))
    return next((each for each in shortened if each in known), None)


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DOCS / "grafana" / "leasekeeper.json").read_text())
    return read


def queries(dashboard: dict[str, Any]) -> Iterator[str]:
    """What it asks Prometheus."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


# --- The dashboard --------------------------------------------------------------------------------


def test_every_metric_that_is_queried_exists(dashboard: dict[str, Any]) -> None:
    asked = {name for query in queries(dashboard) for name in re.findall(rf"({NAME})\{{", query)}
    assert asked
    assert {name for name in asked if family_of(name) is None} == set()


def test_every_metric_of_ours_is_queried(dashboard: dict[str, Any]) -> None:
    asked = {
        family_of(name) for query in queries(dashboard) for name in re.findall(rf"{NAME}", query)
    }
    assert OURS - asked == set()


def test_it_sums_by_labels_that_exist(dashboard: dict[str, Any]) -> None:
    there = {"le", "instance"}
    for family in families().values():
        there |= {label for sample in family.samples for label in sample.labels}
    for query in queries(dashboard):
        for labels in re.findall(r"by \(([^)]*)\)", query):
            assert set(labels.split(", ")) <= there, query


def test_every_query_is_of_the_chosen_job_and_servers(dashboard: dict[str, Any]) -> None:
    """Names such as `connections` are not ours alone."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            selectors = re.findall(rf"{NAME}(\{{[^}}]*\}})", target["expr"])
            assert set(selectors) == {'{job="$job", instance=~"$instance"}'}, target["expr"]


def test_it_has_a_row_for_each_part(dashboard: dict[str, Any]) -> None:
    assert [each["title"] for each in dashboard["panels"] if each["type"] == "row"] == ROWS


def test_every_panel_says_what_it_shows(dashboard: dict[str, Any]) -> None:
    panels = [each for each in dashboard["panels"] if each["type"] != "row"]
    assert all(each["description"] and each["targets"] for each in panels)
    assert len({each["title"] for each in panels}) == len(panels)


def test_its_panels_have_places_of_their_own(dashboard: dict[str, Any]) -> None:
    assert len({each["id"] for each in dashboard["panels"]}) == len(dashboard["panels"])
    places = [each["gridPos"] for each in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = any(
            a[at] + a[size] <= b[at]
            for a, b in ((one, other), (other, one))
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)


def test_it_belongs_to_no_data_source_of_its_author(dashboard: dict[str, Any]) -> None:
    assert re.findall(r'"uid": "([^"$-][^"]*)"', json.dumps(dashboard)) == ["leasekeeper"]


# --- The page -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    return (DOCS / "monitoring.md").read_text()


def test_the_page_explains_every_metric_of_ours_with_its_labels(page: str) -> None:
    described = re.findall(rf"^\| `({NAME})(?:\{{({NAME})\}})?` \|", page, re.MULTILINE)
    labels = {family_of(name): label for name, label in described}
    known = families()
    assert OURS - labels.keys() == set()
    for name in OURS:
        there = {label for sample in known[name].samples for label in sample.labels} - {"le"}
        assert {labels[name]} - {""} == there, name


def test_the_page_names_no_metric_that_does_not_exist(page: str) -> None:
    prefixes = "|".join(sorted({name.partition("_")[0] for name in families()}))
    named = set(re.findall(rf"\b(?:{prefixes})_{NAME}\b", page))
    assert {name for name in named if family_of(name) is None} == set()


def test_the_page_explains_every_value_of_a_label(page: str) -> None:
    for name in OURS - {"redis_operation_duration_seconds"}:
        for sample in families()[name].samples:
            for label, value in sample.labels.items():
                assert label == "le" or f"`{value}`" in page, (name, value)
