"""The API description: an OpenAPI document, and a page generated from it."""

from __future__ import annotations

from html import escape
from typing import Any

from .. import __version__

_ROW: dict[str, Any] = {
    "type": "object",
    "description": "The JSON object that `resnet predict` prints for an image.",
    "required": ["source", "class", "probability", "top", "model", "error"],
    "properties": {
        "source": {"type": "string", "description": "The name of the file in the form."},
        "class": {"type": ["string", "null"]},
        "probability": {"type": ["number", "null"]},
        "top": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"class": {"type": "string"}, "probability": {"type": "number"}},
            },
        },
        "model": {
            "type": "string",
            "description": "The first 12 hex digits of the model file's SHA-256.",
        },
        "error": {"type": ["string", "null"], "description": "Why this image has no answer."},
        "set": {
            "type": "array",
            "items": {"type": "string"},
            "description": "With coverage: the set of classes that includes the true one with that "
            "probability.",
        },
        "strangeness": {
            "type": "number",
            "description": "With false_alarms: the share of validation images that are less "
            "strange than this one.",
        },
        "explanation": {
            "type": "string",
            "description": "With explain=true: a Grad-CAM overlay, as a PNG data URL.",
        },
    },
}
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error", "reason"],
    "properties": {
        "error": {"type": "string", "description": "A message for people."},
        "reason": {"type": "string", "description": "A code for programs, such as queue_full."},
        "request": {"type": "string", "description": "The id of the request in the log."},
    },
}
_REFUSALS = {
    400: "A parameter, a header or the form is not valid.",
    401: "The token is missing or wrong.",
    403: "The request comes from a web page on another site.",
    408: "The body arrived too slowly.",
    413: "The body is too large, or has too many images or pixels.",
    415: "The body is not an image.",
    421: "The server does not answer to this host name.",
    422: "The image is damaged, or has too many pixels.",
    500: "The engine crashed, or the model's output is NaN or infinite.",
    503: "The queue is full, or the server is not ready. See Retry-After.",
    504: "The deadline passed.",
}


def schema() -> dict[str, Any]:
    """Return the OpenAPI document."""
    row = {"$ref": "#/components/schemas/Row"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "resnet serve",
            "version": __version__,
            "description": "An image classifier.",
        },
        "paths": {
            "/predict": {
                "post": {
                    "summary": "Classify images.",
                    "parameters": [
                        _parameter("top_k", {"type": "integer", "minimum": 1, "default": 5},
                                   "How many classes to return for each image."),
                        _parameter("coverage", {"type": "number", "exclusiveMinimum": 0,
                                                "exclusiveMaximum": 1},
                                   "Add the set of classes that includes the true one with this "
                                   "probability."),
                        _parameter("false_alarms", {"type": "number", "exclusiveMinimum": 0,
                                                    "exclusiveMaximum": 1},
                                   "Call an image unknown if it is stranger than all but this "
                                   "share of the images from known classes."),
                        _parameter("explain", {"type": "boolean", "default": False},
                                   "Add a Grad-CAM overlay; model files only."),
                        {**_parameter("X-Deadline-Ms", {"type": "integer", "minimum": 1,
                                                        "maximum": 60000, "default": 10000},
                                      "The answer is useless after this many milliseconds."),
                         "in": "header"},
                    ],
                    "requestBody": {
                        "required": True,
                        "content": {
                            "application/octet-stream": {
                                "schema": {"description": "The bytes of one image file."}
                            },
                            "multipart/form-data": {
                                "schema": {
                                    "type": "object",
                                    "additionalProperties": {"type": "string", "format": "binary"},
                                }
                            },
                        },
                    },
                    "responses": {
                        "200": _answer("One object for one image, an array for several.",
                                       {"oneOf": [row, {"type": "array", "items": row}]}),
                        **{str(status): _answer(text, {"$ref": "#/components/schemas/Error"})
                           for status, text in _REFUSALS.items()},
                    },
                }
            },
            "/classes": _get("The class names, in the order of the logits."),
            "/model": _get("The model's metadata, and the server's limits."),
            "/live": _get("200 while the process runs."),
            "/ready": _get("200 while the server accepts images, else 503."),
            "/metrics": _get("Metrics for Prometheus.", "text/plain"),
            "/openapi.json": _get("This document."),
        },
        "components": {
            "schemas": {"Row": _ROW, "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }  # fmt: skip


def _parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _get(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "get": {
            "summary": summary,
            "responses": {"200": {"description": "OK", "content": {kind: {}}}},
        }
    }


def page() -> str:
    """Return the document as an HTML page, which loads nothing from other servers."""
    document = schema()
    sections = [
        _section(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        '<title>resnet serve: the API</title><link rel="icon" href="/page/icon.svg">'
        '<link rel="stylesheet" href="/page/base.css">'
        '<link rel="stylesheet" href="/page/style.css">'
        f"<main><h1>resnet serve {escape(__version__)}</h1>"
        '<p>Also available as an OpenAPI document: <a href="/openapi.json">/openapi.json</a></p>'
        f"{''.join(sections)}</main></html>"
    )


def _section(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        (parameter["name"], parameter["description"])
        for parameter in operation.get("parameters", [])
    ]
    rows += [(status, answer["description"]) for status, answer in operation["responses"].items()]
    table = "".join(f"<tr><td><code>{escape(name)}</code><td>{escape(text)}" for name, text in rows)
    title = f"{method.upper()} {path}"
    return (
        f"<h2><code>{escape(title)}</code></h2><p>{escape(operation['summary'])}</p>"
        f"<table>{table}</table>"
    )
