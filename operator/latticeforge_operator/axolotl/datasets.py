"""An entry of `datasets`: where it lies, its columns, and the loss on each turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from latticeforge_operator.axolotl.keynames import unknown_key
from latticeforge_operator.axolotl.lines import Line, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.places import READ, is_readable, sources_of
from latticeforge_operator.axolotl.prompts import Rows, rows_of
from latticeforge_operator.axolotl.settings import (
    ConfigError,
    Reader,
    Settings,
    WrongValueError,
    anything,
    flag,
    is_blank,
    mapping,
    shown,
    text,
    texts,
    whole,
)
from latticeforge_operator.axolotl.templates import jinja_line, template_line
from latticeforge_trainer.contract import COLUMNS, DataFormat

EXCESS = {"drop": "Drop", "truncate": "Truncate", "raise": "Fail"}
"""`excessLength` by the value of `excess_length_strategy`."""

_CHAT, _TEXT = "Chat", "Text"
_ROLES = ("system", "user", "assistant", "tool")
_KNOWN_NAMES = {"human": "user", "gpt": "assistant"}
_ENDS = {"turn": "Turn", "all": "All", "last": "Last", "none": "Never"}


@dataclass(frozen=True)
class Entry:
    """One entry, read.

    Attributes:
        where: `datasets[0]`.
        values: What it sets, as each key's type.
        settings: The rest of the config.
        rows: What its rows are; None when its type has no counterpart.
    """

    where: str
    values: Mapping[str, Any]
    settings: Settings
    rows: Rows | None

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The `source` of each data set that it stands for, with `files` on the Hub.

        None when it cannot be read: then a line says why.
        """
        if self.rows is None:
            return []
        return sources_of(self.values["path"], self.values.get("data_files", []))

    def role(self, name: str) -> str:
        """The role that a turn's speaker has."""
        roles = self.values.get("roles", {})
        given = {other: role for role, names in roles.items() for other in names}
        return given.get(name) or _KNOWN_NAMES.get(name, name)


EntryRule = Callable[[str, Any, Entry], Line]
"""From a key of an entry, its value, and the entry to the key's line."""


def entry_lines(
    number: int, values: Mapping[str, Any], settings: Settings, place: int
) -> list[Line]:
    """The lines of an entry.

    Args:
        number: Of the entry.
        values: Its keys and values, as the file has them.
        settings: The rest of the config.
        place: Where in the stage's `data` its first data set stands.

    Raises:
        ConfigError: A value is of the wrong type, or the path is missing.
    """
    where = f"datasets[{number}]"
    typed = _typed(where, values)
    if "path" not in typed:
        raise ConfigError(f"{where}.path", "is missing; name a data set or a file")
    entry = Entry(where, typed, settings, rows_of(typed.get("type")))
    lines = [ignored(f"{where}.{name}", "not set") for name in values if name not in typed]
    sources = entry.sources
    for index, source in enumerate(sources or [{}]):
        for line in _lines(entry, source):
            # The second file of an entry has the same fields, and no lines of its own.
            key = line.key if index == 0 else ""
            fields = _placed(line, f"data.{place + index}") if sources else {}
            lines.append(replace(line, key=key, fields=fields))
    return lines


def _typed(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as their keys' types, without those that set nothing."""
    typed: dict[str, Any] = {}
    for name, value in values.items():
        read = ENTRY[name][0] if name in ENTRY else anything
        try:
            if not is_blank(value):
                typed[name] = read(value)
        except WrongValueError as error:
            raise ConfigError(f"{where}.{name}", str(error)) from error
    return typed


def _placed(line: Line, prefix: str) -> dict[str, Any]:
    """A line's fields at the data set's place; those of the base stay where they are."""
    return {
        name if name.startswith("base.") else f"{prefix}.{name}": value
        for name, value in line.fields.items()
    }


def _lines(entry: Entry, source: dict[str, Any]) -> Iterator[Line]:
    for name, value in entry.values.items():
        key = f"{entry.where}.{name}"
        line = ENTRY[name][1](key, value, entry) if name in ENTRY else unknown_key(key, name, ENTRY)
        yield replace(line, fields={**source, **line.fields}) if name == "path" else line
    if "type" not in entry.values:
        key = f"{entry.where}.type"
        yield unsupported(key, "is missing: rows that are token ids cannot be read")


def _path(key: str, value: str, _entry: Entry) -> Line:
    if "://" in value:
        return unsupported(key, f"{value}: only the Hub and files are read; download it first")
    if not is_readable(value):
        return unsupported(key, f"{value}: files are {', '.join(READ)} here; convert it")
    return mapped(key, f"data.source {value}", {})


def _files(key: str, value: list[str], _entry: Entry) -> Line:
    if not all(map(is_readable, value)):
        return unsupported(key, f"files are {', '.join(READ)} here; convert or download them")
    return mapped(key, ", ".join(value), {})


def _type(key: str, value: Any, entry: Entry) -> Line:
    rows = entry.rows
    if rows is None:
        return unsupported(key, f"{shown(value)} is no type here; write its prompt as a mapping")
    fields: dict[str, Any] = {"format": rows.format}
    fields |= {f"fields.{name}": column for name, column in _own_columns(entry, rows).items()}
    fields |= {f"promptTemplate.{name}": prompt for name, prompt in rows.prompt.items()}
    if entry.settings["train_on_inputs"] and rows.format != _TEXT:
        fields["trainOn"] = list(_ROLES) if rows.format == _CHAT else ["user", "assistant"]
    excess = entry.settings["excess_length_strategy"]
    fields["excessLength"] = "Split" if rows.format == _TEXT else EXCESS[excess]
    if (entry.settings["min_sample_len"] or 0) > 1:
        fields["minimumLength"] = entry.settings["min_sample_len"]
    return mapped(key, f"format {rows.format}", fields)


def _own_columns(entry: Entry, rows: Rows) -> dict[str, str]:
    """The columns of a type, less those that the entry itself names."""
    named = {column for key, column in _COLUMNS.items() if key in entry.values}
    named |= set(entry.values.get("message_property_mappings", {}))
    return {name: column for name, column in rows.fields.items() if name not in named}


def _of(kind: str, rule: EntryRule) -> EntryRule:
    """A rule for a key that other formats have no use for."""

    def chosen(key: str, value: Any, entry: Entry) -> Line:
        if entry.rows is None or entry.rows.format != kind:
            return ignored(key, "has no effect on this type")
        return rule(key, value, entry)

    return chosen


def _column(name: str) -> EntryRule:
    return lambda key, value, entry: mapped(
        key, f"data.fields.{name} {value}", _renamed(entry, {name: value})
    )


def _renamed(entry: Entry, columns: Mapping[str, str]) -> dict[str, str]:
    """Fields for the columns that are not called as the format calls them."""
    rows = entry.rows
    own = {} if rows is None or rows.fields else COLUMNS[DataFormat(rows.format)]
    return {f"fields.{n}": column for n, column in columns.items() if own.get(n) != column}


def _properties(key: str, value: dict[str, str], entry: Entry) -> Line:
    others = sorted(set(value) - {"role", "content"})
    if others:
        return unsupported(key, f"{', '.join(others)}: only role and content can be renamed here")
    words = ", ".join(f"{name} {column}" for name, column in value.items())
    return mapped(key, f"data.fields {words}", _renamed(entry, value))


def _roles(key: str, value: dict[str, list[str]], _entry: Entry) -> Line:
    if not set(value) <= set(_ROLES):
        return unsupported(key, f"the roles here are {', '.join(_ROLES)}")
    added = {
        f"roles.{role}": [name for name in names if name != role] for role, names in value.items()
    }
    return mapped(key, "data.roles", {role: names for role, names in added.items() if names})


def _learned(key: str, value: list[str], entry: Entry) -> Line:
    roles = [entry.role(name) for name in value]
    if not set(roles) <= set(_ROLES):
        return unsupported(key, f"the roles here are {', '.join(_ROLES)}")
    if entry.settings["train_on_inputs"]:
        return ignored(key, "train_on_inputs: every turn is learned")
    fields = {} if roles == ["assistant"] else {"trainOn": list(dict.fromkeys(roles))}
    return mapped(key, f"data.trainOn {', '.join(roles)}", fields)


def _ends(key: str, value: str, _entry: Entry) -> Line:
    if value not in _ENDS:
        return unsupported(key, f"{value}: must be one of {', '.join(_ENDS)}")
    return mapped(key, f"data.trainOnEnd {_ENDS[value]}", {"trainOnEnd": _ENDS[value]})


def _drop_system(key: str, value: bool, _entry: Entry) -> Line:
    return mapped(key, "data.dropSystem", {"dropSystem": True}) if value else ignored(key, "off")


def _thinking(key: str, value: str, _entry: Entry) -> Line:
    if value == "reasoning_content":
        return implied(key, "a message's own keys reach the template by their names")
    return unsupported(key, f"{value}: the reasoning is read from reasoning_content here")


def _is(path: str) -> EntryRule:
    return lambda key, value, _: mapped(key, f"data.{path} {value}", {path: value})


def _refused(sentence: str) -> EntryRule:
    return lambda key, value, _: (
        ignored(key, "off") if value in (False, 0) else unsupported(key, sentence)
    )


def _names(value: Any) -> dict[str, str]:
    return {name: text(found) for name, found in mapping(value).items()}


def _names_of_roles(value: Any) -> dict[str, list[str]]:
    return {role: texts(names) for role, names in mapping(value).items()}


_COLUMNS = {
    "field": "text",
    "field_messages": "messages",
    "field_tools": "tools",
    "message_field_role": "role",
    "message_field_content": "content",
}
"""Columns by the keys that name them."""

_SLICE = _refused("a part of the rows; write a slice: split train[:10%]")
_TRANSFORM = _refused("rows are not transformed here; transform the file")
_OLD = _refused("belongs to types that do not exist here; write chat_template")
_DISTILLED = _refused("belongs to distillation; only supervised fine-tuning is done")
_BY_ROLE = _refused("turns are learned by their role here, not one by one or in parts")

ENTRY: Mapping[str, tuple[Reader, EntryRule]] = {
    "path": (text, _path),
    "data_files": (texts, _files),
    "type": (anything, _type),
    "name": (text, _is("subset")),
    "split": (text, _is("split")),
    "revision": (text, _is("revision")),
    **{
        key: (text, _of(_TEXT if name == "text" else _CHAT, _column(name)))
        for key, name in _COLUMNS.items()
    },
    "message_property_mappings": (_names, _of(_CHAT, _properties)),
    "roles": (_names_of_roles, _of(_CHAT, _roles)),
    "roles_to_train": (texts, _of(_CHAT, _learned)),
    "train_on_eos": (text, _of(_CHAT, _ends)),
    "train_on_eot": (text, _of(_CHAT, _ends)),
    "drop_system_message": (flag, _of(_CHAT, _drop_system)),
    "chat_template": (
        text,
        lambda key, value, entry: template_line(
            key, value, entry.values.get("chat_template_jinja")
        ),
    ),
    "chat_template_jinja": (
        text,
        lambda key, value, entry: jinja_line(key, value, entry.values.get("chat_template")),
    ),
    "field_thinking": (text, _of(_CHAT, _thinking)),
    "template_thinking_key": (text, _of(_CHAT, _thinking)),
    "ds_type": (text, lambda key, *_: implied(key, "a file is read as its suffix says")),
    "preprocess_shards": (whole, lambda key, *_: implied(key, "rows are read as a stream")),
    "trust_remote_code": (
        flag,
        lambda key, *_: ignored(key, "code of a data set is never run here"),
    ),
    "shards": (anything, _SLICE),
    "shards_idx": (anything, _SLICE),
    "conversation": (anything, _OLD),
    "field_human": (anything, _OLD),
    "field_model": (anything, _OLD),
    "input_transform": (anything, _TRANSFORM),
    "input_format": (anything, _TRANSFORM),
    "message_field_training": (anything, _BY_ROLE),
    "message_field_training_detail": (anything, _BY_ROLE),
    "split_thinking": (anything, _refused("reasoning is not cut out of the content here")),
    "logprobs_field": (anything, _DISTILLED),
    "temperature": (anything, _DISTILLED),
}
"""Keys of an entry, with how each is read and its rule."""
