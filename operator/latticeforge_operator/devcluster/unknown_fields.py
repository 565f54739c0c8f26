"""`fieldValidation`: what happens to fields that the schema does not know."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from latticeforge_operator.devcluster import requests, schema
from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.resources import Resource


def check_unknown_fields(request: web.Request, resource: Resource, body: Any) -> list[str]:
    """Returns the warnings for a body's unknown fields.

    Raises:
        ApiError: 400 when the client asked for strict validation and there are any.
    """
    level = requests.field_validation(request)
    if level == "Ignore" or not isinstance(body, dict):
        return []
    found = [f'unknown field "{path}"' for path in schema.unknown_fields(resource.schema, body)]
    if found and level == "Strict":
        key = resource.key
        what = (
            "error decoding patch"
            if request.method == "PATCH"
            else f'{resource.kind} in version "{key.version}" cannot be handled as a '
            f"{resource.kind}"
        )
        raise ApiError(400, f"{what}: strict decoding error: {', '.join(found)}")
    return found
