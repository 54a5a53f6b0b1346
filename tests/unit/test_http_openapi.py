"""The description of the integration that we ship."""

from __future__ import annotations

from pathlib import Path

from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.docs_page import render
from gateway.integrations import read_folders
from gateway.openapi import document

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_the_shipped_integration_is_described_validly() -> None:
    """OpenAPI 3.1 with each of its lookups and its case type, and a page for people."""
    folders = read_folders(_DEPLOY / "integrations", _DEPLOY / "silos")
    assert folders.problems == []
    lookups = {lookup.name: lookup for one in folders.integrations for lookup in one.lookups}
    case_types = {one.case_type.name: one.case_type for one in folders.integrations if one.case_type is not None}
    described = document(lookups, case_types)
    OpenAPIV31SpecValidator(described).validate()
    for name, lookup in lookups.items():
        assert set(described["paths"][f"/v1/lookups/{name}"]) == ({"post"} if lookup.personal else {"get"})
    position = described["paths"]["/v1/lookups/assets-near-position"]["get"]
    assert {"latitude", "longitude", "metres"} < {item["name"] for item in position["parameters"]}
    assert not {"easting", "northing"} & {item["name"] for item in position["parameters"]}
    assert described["paths"]["/v1/lookups/known-details"]["post"]["x-rate-class"] == "strict"
    assert position["x-rate-class"] == "lookup"
    batch = described["paths"]["/v1/lookups:batch"]["post"]
    assert batch["x-policy"] == "each question in it needs the scope of the lookup that it asks"
    assert "PublicToiletProblem" in described["components"]["schemas"]
    assert "Public toilets within some metres of a point" in render(described)


def test_a_deployment_that_declares_nothing_is_described_too() -> None:
    """The document stands without lookups and case types."""
    OpenAPIV31SpecValidator(document({}, {})).validate()
