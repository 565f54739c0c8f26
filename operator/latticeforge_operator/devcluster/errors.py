"""Errors as a Kubernetes API server states them: a code, a reason and a sentence.

Every refusal of the devcluster is an `ApiError`; the HTTP side renders it as a `metav1.Status`.
The functions below word the common ones exactly as clients (and people) know them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latticeforge_operator.devcluster.resources import ResourceKey

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
}


class ApiError(Exception):
    """A refused request.

    Attributes:
        code: HTTP status code.
        message: what is wrong, for people.
        reason: machine-readable reason (`metav1.StatusReason`).
        details: `metav1.StatusDetails`: name, group, kind, causes.
    """

    def __init__(
        self,
        code: int,
        message: str,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = REASONS.get(code, "") if reason is None else reason
        self.details = details or {}

    def status(self) -> dict[str, Any]:
        """Returns the `metav1.Status` that a client receives."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


@dataclass(frozen=True, slots=True)
class FieldError:
    """One refused field: where, which kind of fault, and why.

    `type` is a `metav1.CauseType`, e.g. FieldValueInvalid; `detail` is the text after the path.
    """

    path: str
    type: str
    detail: str

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"

    @classmethod
    def invalid(cls, path: str, value: Any, why: str) -> FieldError:
        """The value is there but wrong."""
        return cls(path, "FieldValueInvalid", f"Invalid value: {render(value)}: {why}")

    @classmethod
    def required(cls, path: str, why: str = "") -> FieldError:
        """The value is missing."""
        return cls(path, "FieldValueRequired", f"Required value{': ' + why if why else ''}")

    @classmethod
    def unsupported(cls, path: str, value: Any, allowed: Sequence[Any]) -> FieldError:
        """The value is not one of an enumeration."""
        choices = ", ".join(render(choice) for choice in allowed)
        detail = f"Unsupported value: {render(value)}: supported values: {choices}"
        return cls(path, "FieldValueNotSupported", detail)

    @classmethod
    def forbidden(cls, path: str, why: str) -> FieldError:
        """The field must not be set here."""
        return cls(path, "FieldValueForbidden", f"Forbidden: {why}")


def render(value: Any) -> str:
    """Shows a refused value the way Go's field errors do: strings quoted, objects as JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def not_found(key: ResourceKey, name: str) -> ApiError:
    """The object does not exist (404)."""
    details = {"name": name, "group": key.group, "kind": key.plural}
    return ApiError(404, f'{key.qualified_plural} "{name}" not found', details=details)


def unknown_resource() -> ApiError:
    """No such path on this server (404)."""
    return ApiError(404, "the server could not find the requested resource")


def already_exists(key: ResourceKey, name: str) -> ApiError:
    """An object of this name exists (409)."""
    details = {"name": name, "group": key.group, "kind": key.plural}
    message = f'{key.qualified_plural} "{name}" already exists'
    return ApiError(409, message, "AlreadyExists", details)


def modified(key: ResourceKey, name: str) -> ApiError:
    """The writer read an older version than the stored one (409)."""
    message = (
        f'Operation cannot be fulfilled on {key.qualified_plural} "{name}": the object has been '
        "modified; please apply your changes to the latest version and try again"
    )
    return ApiError(409, message, details={"name": name, "group": key.group, "kind": key.plural})


def precondition_failed(key: ResourceKey, name: str, field: str, want: str, have: str) -> ApiError:
    """The object is not the one that the writer meant (409)."""
    message = (
        f'Operation cannot be fulfilled on {key.qualified_plural} "{name}": Precondition failed: '
        f"{field} in precondition: {want}, {field} in object meta: {have}"
    )
    return ApiError(409, message, details={"name": name, "group": key.group, "kind": key.plural})


def invalid(kind: str, group: str, name: str, errors: Sequence[FieldError]) -> ApiError:
    """The object breaks its schema or its rules (422), one cause for each refused field."""
    texts = [str(error) for error in errors]
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    qualified = f"{kind}.{group}" if group else kind
    causes = [{"reason": e.type, "message": e.detail, "field": e.path} for e in errors]
    details = {"name": name, "group": group, "kind": kind, "causes": causes}
    return ApiError(422, f'{qualified} "{name}" is invalid: {joined}', details=details)


def expired(message: str = "The resourceVersion for the provided watch is too old.") -> ApiError:
    """The history that the client asks for is gone; it must list again (410)."""
    return ApiError(410, message, "Expired")
