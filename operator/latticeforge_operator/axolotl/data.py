"""Keys that say what a stage learns from: data sets, their columns, and the loss on each turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from latticeforge_operator.axolotl.keynames import unknown_key
from latticeforge_operator.axolotl.lines import Line, Verdict, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.prompts import Rows, rows_of
from latticeforge_operator.axolotl.rules import Key, decided, harmless, keys, refused, switches
from latticeforge_operator.axolotl.settings import (
    ConfigError,
    Settings,
    WrongValueError,
    anything,
    flag,
    is_blank,
    mapping,
    mappings,
    shown,
    text,
    texts,
    whole,
)
from latticeforge_operator.axolotl.templates import jinja_line, template_line
from latticeforge_trainer.contract import COLUMNS, DataFormat

_ROLES = ("system", "user", "assistant", "tool")
_KNOWN_NAMES = {"human": "user", "gpt": "assistant"}
_ENDS = {"turn": "Turn", "all": "All", "last": "Last", "none": "Never"}
_EXCESS = {"drop": "Drop", "truncate": "Truncate", "raise": "Fail"}
_FILES = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".txt", ".arrow")
_LOADERS = ("json", "parquet", "csv", "text", "arrow")
"""What `path` says when `data_files` names local files."""

_COLUMNS = {
    "field": "text",
    "field_messages": "messages",
    "message_field_role": "role",
    "message_field_content": "content",
}
"""Columns by the keys that name them."""

_WHOLE = ("path", "chat_template", "chat_template_jinja")
"""Keys of text that are read together with others of their entry; `type` is another."""

Entry = Mapping[str, Any]
"""One entry of `datasets`, without the keys that set nothing."""


def _datasets(_key: str, value: list[dict[str, Any]], settings: Settings) -> Iterator[Line]:
    place = 0
    for index, entry in enumerate(value):
        where = f"datasets[{index}]"
        given = _typed(where, entry)
        sources = _sources(where, given)
        for number, source in enumerate(sources or [{}]):
            for line in _dataset(where, given, source, settings):
                # The second file of an entry has the same fields, and no lines of its own.
                key = line.key if number == 0 else ""
                yield _placed(replace(line, key=key), f"data.{place + number}", bool(sources))
        yield from (ignored(f"{where}.{name}", "not set") for name in entry if name not in given)
        place += len(sources)
    if place > 1:
        sentence = "every sample once per epoch, whatever the data set"
        yield mapped("datasets", sentence, {"mixing": "Concatenate"})


def _typed(where: str, entry: Entry) -> dict[str, Any]:
    """An entry's values as their keys' types, without those that set nothing."""
    typed: dict[str, Any] = {}
    for name, value in entry.items():
        read = text if name in _WHOLE else DATASET[name][0] if name in DATASET else anything
        try:
            if not is_blank(value):
                typed[name] = read(value)
        except WrongValueError as error:
            raise ConfigError(f"{where}.{name}", str(error)) from error
    return typed


def _placed(line: Line, prefix: str, readable: bool) -> Line:
    """The line with its fields at the data set's place; those of the base stay where they are."""
    fields = {
        name if name.startswith("base.") else f"{prefix}.{name}": value
        for name, value in line.fields.items()
        if readable
    }
    return replace(line, fields=fields)


def _sources(where: str, entry: Entry) -> list[dict[str, Any]]:
    """The `source` of every data set that an entry stands for, with `files` on the Hub.

    None when it cannot be read: then a line says why.
    """
    path = entry.get("path")
    if path is None:
        raise ConfigError(f"{where}.path", "is missing; name a data set or a file")
    if "://" in path or rows_of(entry.get("type")) is None:
        return []
    files = entry.get("data_files", [])
    if path in _LOADERS or (files and _is_local(path)):
        return [{"source": local_path(name)} for name in files]
    if _is_local(path):
        return [{"source": local_path(path)}]
    return [{"source": path, **({"files": files} if files else {})}]


def _is_local(path: str) -> bool:
    return path.startswith((".", "/", "~")) or PurePosixPath(path).suffix in _FILES


def local_path(path: str) -> str:
    """A local path as the API has it: absolute, or `./` from the root of the volume."""
    return path if path.startswith(("/", "./")) else f"./{path}"


def _dataset(
    where: str, entry: Entry, source: dict[str, Any], settings: Settings
) -> Iterator[Line]:
    rows = rows_of(entry.get("type"))
    for name, value in entry.items():
        key = f"{where}.{name}"
        if name == "path":
            yield _path_line(key, value, source)
        elif name == "type":
            yield _type_line(key, value, rows, entry, settings)
        elif name == "chat_template":
            yield template_line(key, value, entry.get("chat_template_jinja"))
        elif name == "chat_template_jinja":
            yield jinja_line(key, value, entry.get("chat_template"))
        elif name not in DATASET:
            yield unknown_key(key, name, (*DATASET, *_WHOLE, "type"))
        else:
            yield DATASET[name][1](key, value, rows)
    if "type" not in entry:
        yield unsupported(f"{where}.type", "is missing: rows that are token ids cannot be read")


def _path_line(key: str, path: str, source: dict[str, Any]) -> Line:
    if "://" in path:
        return unsupported(key, f"{path}: only the Hub and files are read; download it first")
    return mapped(key, f"data.source {source.get('source', path)}", source)


def _type_line(key: str, value: Any, rows: Rows | None, entry: Entry, settings: Settings) -> Line:
    if rows is None:
        return unsupported(
            key, f"{shown(value)} is no type here; write its prompt out as a mapping"
        )
    fields: dict[str, Any] = {"format": rows.format}
    fields |= {f"fields.{n}": column for n, column in _own_columns(entry, rows).items()}
    fields |= {f"promptTemplate.{name}": prompt for name, prompt in rows.prompt.items()}
    if learned := _learned(entry, rows, settings):
        fields["trainOn"] = learned
    excess = "Split" if rows.format == "Text" else _EXCESS[settings["excess_length_strategy"]]
    fields["excessLength"] = excess
    if (settings["min_sample_len"] or 0) > 1:
        fields["minimumLength"] = settings["min_sample_len"]
    return mapped(key, f"format {rows.format}", fields)


def _own_columns(entry: Entry, rows: Rows) -> dict[str, str]:
    """The columns of a type, less those that the entry itself names."""
    named = {column for key, column in _COLUMNS.items() if key in entry}
    named |= set(entry.get("message_property_mappings", {}))
    return {name: column for name, column in rows.fields.items() if name not in named}


def _learned(entry: Entry, rows: Rows, settings: Settings) -> list[str]:
    """Whose tokens are learned; empty: the assistant's, as when it is left out."""
    if settings["train_on_inputs"] and rows.format == "Chat":
        return list(_ROLES)
    if settings["train_on_inputs"] and rows.format != "Text":
        return ["user", "assistant"]
    roles = entry.get("roles_to_train", []) if rows.format == "Chat" else []
    names = [_role(entry, name) for name in roles]
    return [] if names == ["assistant"] else [name for name in names if name in _ROLES]


def _role(entry: Entry, name: str) -> str:
    given = {other: role for role, names in entry.get("roles", {}).items() for other in names}
    return given.get(name) or _KNOWN_NAMES.get(name, name)


DatasetRule = Callable[[str, Any, Rows | None], Line]


def _column(name: str, kind: str) -> DatasetRule:
    """A key that names the column of a format."""

    def rule(key: str, value: Any, rows: Rows | None) -> Line:
        if rows is None or rows.format != kind:
            return ignored(key, "has no effect on this type")
        return mapped(key, f"data.fields.{name} {value}", _renamed(rows, {name: value}))

    return rule


def _renamed(rows: Rows, columns: Mapping[str, str]) -> dict[str, str]:
    """Fields for the columns that are not called as the format calls them."""
    own = {} if rows.fields else COLUMNS[DataFormat(rows.format)]
    return {f"fields.{n}": column for n, column in columns.items() if own.get(n) != column}


def _is(path: str) -> DatasetRule:
    return lambda key, value, _rows: mapped(key, f"data.{path} {value}", {path: value})


def _says(verdict: Verdict, sentence: str) -> DatasetRule:
    return lambda key, value, _rows: (
        ignored(key, "off") if value in (False, 0) else Line(key, verdict, sentence)
    )


def _roles(key: str, value: dict[str, list[str]], rows: Rows | None) -> Line:
    if rows is None or rows.format != "Chat":
        return ignored(key, "has no effect on this type")
    if not set(value) <= set(_ROLES):
        return unsupported(key, f"the roles here are {', '.join(_ROLES)}")
    added = {
        f"roles.{role}": [name for name in names if name != role] for role, names in value.items()
    }
    return mapped(key, "data.roles", {role: names for role, names in added.items() if names})


def _roles_to_train(key: str, value: list[str], rows: Rows | None) -> Line:
    if rows is not None and rows.format == "Chat":
        return mapped(key, f"learned: {', '.join(value)}", {})
    return ignored(key, "has no effect on this type")


def _ends(key: str, value: str, rows: Rows | None) -> Line:
    if rows is None or rows.format != "Chat":
        return ignored(key, "has no effect on this type")
    if value not in _ENDS:
        return unsupported(key, f"{value}: must be one of {', '.join(_ENDS)}")
    return mapped(key, f"data.trainOnEnd {_ENDS[value]}", {"trainOnEnd": _ENDS[value]})


def _drop_system(key: str, value: bool, rows: Rows | None) -> Line:
    if not value:
        return ignored(key, "off")
    if rows is None or rows.format != "Chat":
        return ignored(key, "has no effect on this type")
    return mapped(key, "data.dropSystem", {"dropSystem": True})


def _properties(key: str, value: dict[str, str], rows: Rows | None) -> Line:
    others = sorted(set(value) - {"role", "content"})
    if others:
        return unsupported(key, f"{', '.join(others)}: only role and content can be renamed here")
    if rows is None or rows.format != "Chat":
        return ignored(key, "has no effect on this type")
    words = ", ".join(f"{name} {column}" for name, column in value.items())
    return mapped(key, f"data.fields {words}", _renamed(rows, value))


def _thinking(key: str, value: str, _rows: Rows | None) -> Line:
    if value == "reasoning_content":
        return implied(key, "a message's own keys reach the template by their names")
    return unsupported(key, f"{value}: the reasoning is read from reasoning_content here")


def _names(value: Any) -> dict[str, str]:
    return {name: text(found) for name, found in mapping(value).items()}


def _names_of_roles(value: Any) -> dict[str, list[str]]:
    return {role: texts(names) for role, names in mapping(value).items()}


DATASET: Mapping[str, tuple[Callable[[Any], Any], DatasetRule]] = {
    "name": (text, _is("subset")),
    "split": (text, _is("split")),
    "revision": (text, _is("revision")),
    "data_files": (texts, lambda key, value, _rows: mapped(key, ", ".join(value), {})),
    "ds_type": (text, _says(Verdict.IMPLIED, "a file is read as its suffix says")),
    "field": (text, _column("text", "Text")),
    "field_messages": (text, _column("messages", "Chat")),
    "field_tools": (text, _column("tools", "Chat")),
    "message_property_mappings": (_names, _properties),
    "message_field_role": (text, _column("role", "Chat")),
    "message_field_content": (text, _column("content", "Chat")),
    "roles": (_names_of_roles, _roles),
    "roles_to_train": (texts, _roles_to_train),
    "drop_system_message": (flag, _drop_system),
    "train_on_eos": (text, _ends),
    "train_on_eot": (text, _ends),
    "field_thinking": (text, _thinking),
    "template_thinking_key": (text, _thinking),
    "trust_remote_code": (flag, _says(Verdict.IGNORED, "code of a data set is never run here")),
    "preprocess_shards": (whole, _says(Verdict.IMPLIED, "rows are read as a stream")),
    **{
        name: (anything, _says(Verdict.UNSUPPORTED, sentence))
        for name, sentence in {
            "shards": "a part of the rows; write a slice: split train[:10%]",
            "shards_idx": "a part of the rows; write a slice: split train[:10%]",
            "conversation": "a prompt style of FastChat; write chat_template",
            "input_transform": "rows are not transformed here; transform the file",
            "input_format": "rows are not transformed here; transform the file",
            "field_human": "columns of a type that does not exist here; write chat_template",
            "field_model": "columns of a type that does not exist here; write chat_template",
            "message_field_training": "turns are learned by their role here, not one by one",
            "message_field_training_detail": "turns are learned by their role here, not in parts",
            "split_thinking": "reasoning is not cut out of the content here",
            "logprobs_field": "belongs to distillation; only supervised fine-tuning is done",
            "temperature": "belongs to distillation; only supervised fine-tuning is done",
        }.items()
    },
}
"""Keys of an entry of `datasets` that stand for themselves."""


def _tests(key: str, _value: Any, _settings: Settings) -> Iterable[Line]:
    yield ignored(key, "only measured on, never learned from; evaluate gates say how good it is")


def _minimum(key: str, value: int, _settings: Settings) -> Iterable[Line]:
    if value > 1:
        yield mapped(key, f"data.minimumLength {value}", {})
    else:
        yield ignored(key, "keeps every sample")


DATA: dict[str, Key] = {
    **keys("datasets", _datasets, mappings),
    **keys("test_datasets", _tests, mappings),
    **keys(
        "excess_length_strategy",
        lambda key, value, _: [mapped(key, f"data.excessLength {_EXCESS[value]}", {})],
        lambda value: _one_of(value, _EXCESS),
    ),
    **switches(
        "train_on_inputs",
        lambda key, value, _: [
            mapped(key, f"data.trainOn: prompts are {'' if value else 'not '}learned", {})
        ],
    ),
    **keys("min_sample_len", _minimum, whole),
    **keys("max_prompt_len", harmless("belongs to preference training")),
    **switches(
        "shuffle_merged_datasets",
        lambda key, value, _: [
            implied(key, "samples are shuffled")
            if value
            else unsupported(key, "samples keep the file's order; shuffled here")
        ],
    ),
    **keys("shuffle_before_merging_datasets", decided("samples are shuffled")),
    **switches("dataset_exact_deduplication", refused("repeated samples are kept here")),
    **keys("dataset_shard_num dataset_shard_idx", refused("a part of the rows; write a slice")),
    **switches("streaming", decided("rows are read as a stream")),
    **keys(
        "dataset_prepared_path num_dataset_shards_to_save skip_prepare_dataset "
        "push_dataset_to_hub is_preprocess preprocess_iterable",
        decided("prepared data is kept in the store, under its digest"),
    ),
    **keys(
        "dataset_processes dataset_num_proc dataset_keep_in_memory dataloader_pin_memory "
        "dataloader_num_workers dataloader_prefetch_factor streaming_multipack_buffer_size "
        "pretrain_multipack_buffer_size",
        decided("data is packed before training, and read from memory-mapped arrays"),
    ),
    **keys("dataloader_drop_last", decided("every sample of an epoch is learned from")),
    **keys("remove_unused_columns", decided("columns without use are never loaded")),
    **keys("total_num_tokens total_supervised_tokens", decided("counted exactly by prepare")),
    **keys("hf_use_auth_token", decided("HF_TOKEN is used where it is set")),
}
"""Keys of this module, with their rules."""


def _one_of(value: Any, known: Mapping[str, Any]) -> str:
    found = text(value)
    if found not in known:
        raise WrongValueError(f"must be one of {', '.join(known)}, not {shown(value)}")
    return found
