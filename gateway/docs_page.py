"""The OpenAPI document as one page for people: rendered here, with no script and nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.admin.rendering import environment

_METHODS = ("get", "post", "patch", "put", "delete")


def render(document: dict[str, Any]) -> str:
    """The page; operations in the document's order under their tags."""
    tags: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method in _METHODS:
            if method in methods:
                tags.setdefault(methods[method]["tags"][0], []).append((path, method, methods[method]))
    template = environment(Path(__file__).with_name("templates")).get_template("docs.html")
    return template.render(info=document["info"], tags=tags)
