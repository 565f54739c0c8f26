"""Decodes the few protobuf bodies that kubectl and Helm send through typed Go clients.

Helm stores its releases as Secrets that way, and kubectl creates Secrets, ConfigMaps, Namespaces
and ServiceAccounts. The envelope is a magic number and a `runtime.Unknown`; field numbers are those
of k8s.io/api/core/v1 and meta/v1. Everything that the server answers may be JSON.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from latticeforge_operator.devcluster.errors import ApiError
from latticeforge_operator.devcluster.resources import JsonObject

_MAGIC = b"k8s\x00"
_VARINT, _LENGTH_DELIMITED = 0, 2
_METADATA_STRINGS = {1: "name", 2: "generateName", 3: "namespace", 5: "uid", 6: "resourceVersion"}
_OWNER_REFERENCES, _FINALIZERS = 13, 14
_METADATA_MAPS = {11: "labels", 12: "annotations"}

_Message = dict[int, list[Any]]


def decode(body: bytes) -> JsonObject:
    """Returns the object as JSON; raises a 415 ApiError for other kinds, 400 for broken bytes."""
    if not body.startswith(_MAGIC):
        raise ApiError(400, "the protobuf body does not start with the Kubernetes magic number")
    try:
        return _envelope(body[len(_MAGIC) :])
    except (IndexError, TypeError, ValueError) as error:  # A field is absent, or of another type.
        raise ApiError(400, f"the protobuf body cannot be decoded: {error}") from error


def _envelope(body: bytes) -> JsonObject:
    unknown = _message(body)
    type_meta = _message(unknown[1][0])
    api_version, kind = _text(type_meta[1][0]), _text(type_meta[2][0])
    if kind not in _READERS:
        raise ApiError(415, f"protobuf bodies of kind {kind} are not supported: send JSON instead")
    message = _message(unknown[2][0] if unknown[2] else b"")
    return {"apiVersion": api_version, "kind": kind, **_READERS[kind](message)}


def _secret(message: _Message) -> JsonObject:
    kind = {"type": _text(message[3][0])} if message[3] else {}
    return {**_named(message), "data": _map(message[2], _base64), **kind}


def _config_map(message: _Message) -> JsonObject:
    return {**_named(message), "data": _map(message[2], _text)}


def _named(message: _Message) -> JsonObject:
    return {"metadata": _metadata(message[1][0])}


def _delete_options(message: _Message) -> JsonObject:
    options: JsonObject = {}
    if message[1]:
        options["gracePeriodSeconds"] = message[1][0]
    if message[2]:
        conditions = _message(message[2][0])
        names = {1: "uid", 2: "resourceVersion"}
        options["preconditions"] = {
            name: _text(conditions[number][0])
            for number, name in names.items()
            if conditions[number]
        }
    if message[4]:
        options["propagationPolicy"] = _text(message[4][0])
    if message[5]:
        options["dryRun"] = [_text(value) for value in message[5]]
    return options


def _metadata(body: bytes) -> JsonObject:
    message = _message(body)
    if message[_OWNER_REFERENCES] or message[_FINALIZERS]:
        raise ValueError("ownerReferences and finalizers are read from JSON bodies only")
    strings = {
        name: _text(message[number][0]) for number, name in _METADATA_STRINGS.items()
        if message[number] and message[number][0]
    }  # fmt: skip
    maps = {
        name: _map(message[number], _text) for number, name in _METADATA_MAPS.items()
        if message[number]
    }  # fmt: skip
    return strings | maps


def _map(entries: list[bytes], read: Callable[[bytes], str]) -> dict[str, str]:
    decoded = {}
    for entry in entries:
        message = _message(entry)
        decoded[_text(message[1][0])] = read((message[2] or [b""])[0])
    return decoded


def _text(value: bytes) -> str:
    return value.decode()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _message(body: bytes) -> _Message:
    """Splits a message into its fields, each with the values it was given, in order."""
    fields: _Message = defaultdict(list)
    position = 0
    while position < len(body):
        tag, position = _varint(body, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value: Any
            value, position = _varint(body, position)
        elif wire_type == _LENGTH_DELIMITED:
            length, position = _varint(body, position)
            if position + length > len(body):
                raise ValueError(f"field {number} is longer than its message")
            value, position = body[position : position + length], position + length
        else:
            raise ValueError(f"wire type {wire_type} is not used by Secrets and ConfigMaps")
        fields[number].append(value)
    return fields


def _varint(body: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


_READERS: dict[str, Callable[[_Message], JsonObject]] = {
    "Secret": _secret,
    "ConfigMap": _config_map,
    "Namespace": _named,
    "ServiceAccount": _named,
    "DeleteOptions": _delete_options,
}
