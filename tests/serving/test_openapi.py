"""The OpenAPI document is frozen: a change to it is a change for clients."""

from __future__ import annotations

import json
from pathlib import Path

from starlette.routing import Mount

from resnetkit.serving import openapi
from resnetkit.serving.bounds import Bounds

FROZEN = Path(__file__).with_name("openapi.json")
UPDATE = """
python -c "import json; from resnetkit.serving.openapi import schema; s = schema();
s['info']['version'] = ''; print(json.dumps(s, indent=1))" > tests/serving/openapi.json
"""


def test_the_document_is_the_frozen_one():
    document = json.loads(json.dumps(openapi.schema()))
    document["info"]["version"] = ""
    assert document == json.loads(FROZEN.read_text(encoding="utf-8")), UPDATE


def test_the_document_names_every_route_and_limit(server):
    routes = {
        route.path
        for route in server.server.service.application().routes
        if not isinstance(route, Mount)
    }
    document = openapi.schema()
    assert routes - {"/", "/docs"} == set(document["paths"])
    parameters = document["paths"]["/predict"]["post"]["parameters"]
    deadline = next(one["schema"] for one in parameters if one["name"] == "X-Deadline-Ms")
    assert deadline["default"] == 1000 * Bounds().deadline_seconds
    assert deadline["maximum"] == 1000 * Bounds().most_deadline_seconds
    assert server.request("GET", "/openapi.json").json == document


def test_answers_have_the_documented_fields(server, exported):
    from .conftest import png

    row = server.request(body=png()).json
    documented = openapi.schema()["components"]["schemas"]
    assert set(documented["Row"]["required"]) == set(row)
    assert set(row) <= set(documented["Row"]["properties"])
    refused = server.request(body=b"no").json
    assert set(refused) == set(documented["Error"]["properties"])


def test_the_page_shows_every_path(server):
    text = server.request("GET", "/docs").body.decode()
    for path in openapi.schema()["paths"]:
        assert f" {path}</code>" in text
