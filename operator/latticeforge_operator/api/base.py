"""The common base of every API model, and scalar types: references, and numbers as strings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import core_schema


class APIModel(BaseModel):
    """camelCase on the wire, immutable, unknown fields refused; docstrings become descriptions."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        defer_build=True,  # of the many models, a process uses few
    )

    def to_json(self) -> dict[str, Any]:
        """The object as JSON-ready values, without the fields left at None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str) -> dict[str, str]:
    """A CEL validation rule for `x-kubernetes-validations`."""
    return {"rule": expression, "message": message}


Rules = dict[str, Any]
"""What goes into a schema beside what pydantic derives."""


def rules(*entries: dict[str, str]) -> Rules:
    """`json_schema_extra` that holds CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


@dataclass(frozen=True)
class Matches:
    """A string must match `pattern`, refused with `sentence` by pydantic and by CEL alike.

    CEL rather than the schema's own `pattern`, whose error shows people a regular expression.
    """

    pattern: str
    sentence: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        check = rule(f"self.matches(r'^{self.pattern}$')", self.sentence)
        return {**handler(schema), **rules(check)}

    def _check(self, value: str) -> str:
        if re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"{value!r}: {self.sentence}")
        return value


DURATION = r"([0-9]+h)?([0-9]+m)?([0-9]+s)?"

Duration = Annotated[
    str,
    Field(min_length=2, max_length=20),
    Matches(DURATION, "must be a duration such as 90s, 15m or 1h30m"),
]
DecimalString = Annotated[
    str,
    Field(max_length=20),
    Matches(
        r"[0-9]{1,12}(\.[0-9]{1,6})?",
        'must be a non-negative decimal number in quotes, such as "3.59"',
    ),
]
FloatString = Annotated[
    str,
    Field(max_length=20),
    Matches(
        r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]{1,2})?",
        'must be a non-negative number in quotes, such as "2e-6"',
    ),
]
Quantity = Annotated[
    str,
    Field(max_length=24),
    Matches(
        r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?",
        "must be a Kubernetes quantity such as 500Gi",
    ),
]
_LABEL = Matches(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", "must be lowercase letters, digits and dashes")
DNSLabel = Annotated[str, Field(min_length=1, max_length=63), _LABEL]
StageName = Annotated[str, Field(min_length=1, max_length=40), _LABEL]
"""Short enough that `STAGE/KIND` fits a label."""
Currency = Annotated[
    str, Field(max_length=3), Matches(r"[A-Z]{3}", "must be an ISO 4217 code such as USD")
]


HUB_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
HUB_OR_PATH = rf"(file:///.+|\.?/.+|{HUB_REPOSITORY})"
REFERENCE_MALFORMED = (
    "must be owner/name on the Hugging Face Hub, or a path: file:///folder, /folder or ./folder"
)
Reference = Annotated[
    str, Field(min_length=1, max_length=300), Matches(HUB_OR_PATH, REFERENCE_MALFORMED)
]
"""`owner/name` on the Hub, an absolute path, or `./path` below the storage volume."""

Revision = Annotated[
    str,
    Field(max_length=100),
    Matches(r"[A-Za-z0-9][A-Za-z0-9._/-]*", "must be a branch, tag or commit"),
]


def is_on_hub(reference: str) -> bool:
    """Whether a `Reference` is a repository on the Hub rather than a path."""
    return re.fullmatch(HUB_REPOSITORY, reference) is not None


def parse_duration(text: str) -> timedelta:
    """The length of a `Duration`."""
    match = re.fullmatch(DURATION, text)
    if match is None:
        raise ValueError(f"{text!r} is no duration; write it like 1h30m or 90s")
    hours, minutes, seconds = (int((group or "0s")[:-1]) for group in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


_UNITS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate("kMGTP", 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTP", 1)},
}


def parse_quantity(text: str) -> int:
    """The value of a `Quantity`, such as bytes of memory, rounded down."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", text)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is no quantity; write it like 500Gi")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def parse_decimal(text: str) -> Decimal:
    """The value of a `DecimalString`."""
    return Decimal(text)
