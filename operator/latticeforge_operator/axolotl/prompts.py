"""The values of a data set's `type`: what its rows are, in which columns, under which prompt.

The texts are those of the data sets' own prompts (Stanford Alpaca and what followed it), as
Axolotl documents them under "Instruction Tuning".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

_TASK = "an instruction that describes a task"
_CONTEXT = "paired with an input that provides further context"
_BELOW = (
    f"Below is {_TASK}, {_CONTEXT}. Write a response that appropriately completes the request.",
    f"Below is {_TASK}. Write a response that appropriately completes the request.",
)
_FROM_USER = "Below is an instruction from a USER that describes a task"
_ANSWERED = "The ASSISTANT writes a response that"
_CONCISE = (
    f"{_FROM_USER}, {_CONTEXT}. {_ANSWERED} concisely and appropriately completes the request.\n\n",
    f"{_FROM_USER}. {_ANSWERED} appropriately and concisely completes the request.\n\n",
)
_NO_SYSTEM = ("", "")

_STYLES = {
    "instruct": (
        "{system}\n\n",
        "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
        "### Instruction:\n{instruction}\n\n### Response:\n",
    ),
    "chat": (
        "SYSTEM: {system}\n",
        "USER: {instruction}\n{input}\nASSISTANT:",
        "USER: {instruction}\nASSISTANT:",
    ),
    "chatml": (
        "<|im_start|>system\n{system}<|im_end|>\n",
        "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "phi": (
        "<|system|>\n{system}<|end|>\n",
        "<|user|>\n{instruction}<|end|>{input}<|assistant|>",
        "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
    ),
}
"""Around the system's sentence, and the turns with and without an input."""

_SUMMARY = "USER: Summarize the following article as a TL;DR.\n{instruction}\n"


@dataclass(frozen=True)
class Rows:
    """What the rows of one `type` are.

    Attributes:
        format: The data set's `format`.
        fields: Columns by what they are for, where they differ from the format's own.
        prompt: `withInput` and `withoutInput`; empty: Stanford Alpaca's.
    """

    format: str
    fields: Mapping[str, str] = field(default_factory=dict)
    prompt: Mapping[str, str] = field(default_factory=dict)


def _prompt(style: str, system: tuple[str, str] = _BELOW) -> dict[str, str]:
    frame, with_input, without_input = _STYLES[style]
    opening = [frame.replace("{system}", sentence) if sentence else "" for sentence in system]
    return {"withInput": opening[0] + with_input, "withoutInput": opening[1] + without_input}


def _alpaca(
    prompt: Mapping[str, str] | None = None, instruction: str = "", output: str = ""
) -> Rows:
    columns = {"instruction": instruction, "output": output}
    return Rows(
        "Alpaca", {name: column for name, column in columns.items() if column}, prompt or {}
    )


SHAREGPT = {"messages": "conversations", "role": "from", "content": "value"}

TYPES: Mapping[str, Rows] = {
    "chat_template": Rows("Chat"),
    "sharegpt": Rows("Chat", SHAREGPT),
    "completion": Rows("Text"),
    "input_output": Rows("Segments"),
    "alpaca": _alpaca(),
    **{f"alpaca:{style}": _alpaca(_prompt(style)) for style in ("chat", "chatml", "phi")},
    "alpaca:instruct": _alpaca(),
    "alpaca_instruct": _alpaca(),
    "alpaca_instruct.load_no_prompt": _alpaca(_prompt("instruct", _NO_SYSTEM)),
    "alpaca_chat": _alpaca(_prompt("chat")),
    "alpaca_chat.load_concise": _alpaca(_prompt("chat", _CONCISE)),
    "alpaca_chat.load_qa": _alpaca(_prompt("chat", _CONCISE), "question", "answer"),
    "alpaca_chat.load_camel_ai": _alpaca(_prompt("chat", _CONCISE), "message_1", "message_2"),
    "alpaca_chat.load_no_prompt": _alpaca(_prompt("chat", _NO_SYSTEM)),
    "gpteacher": _alpaca(output="response"),
    "gpteacher:chat": _alpaca(_prompt("chat"), output="response"),
    "oasst": _alpaca(instruction="INSTRUCTION", output="RESPONSE"),
    "summarizetldr": _alpaca(
        {"withInput": _SUMMARY + "{input}\nASSISTANT:", "withoutInput": _SUMMARY + "ASSISTANT:"},
        "article",
        "summary",
    ),
}
"""By the name of the type; `.load` behind it says the same."""


def rows_of(kind: Any) -> Rows | None:
    """What the rows of a `type` are; None when it has no counterpart."""
    if isinstance(kind, dict):
        return _own_prompt(kind)
    if not isinstance(kind, str):
        return None
    name = kind.removesuffix(".load")
    return TYPES.get(name) or (TYPES["sharegpt"] if name.startswith("sharegpt") else None)


def _own_prompt(kind: dict[str, Any]) -> Rows | None:
    """A prompt that the config spells out."""
    unknown = set(kind) - set(_OWN_KEYS)
    values = {name: kind.get(name) or default for name, default in _OWN_KEYS.items()}
    if unknown or not all(isinstance(value, str) for value in values.values()):
        return None
    forms = [_template(values[name]) for name in ("system_format", "format", "no_input_format")]
    if None in forms or _PLACE.search(values["system_prompt"]):
        return None
    system, with_input, without_input = (str(form) for form in forms)
    if values["system_prompt"]:
        system = system.replace("{system}", values["system_prompt"])
    elif system != "{system}":
        return None  # without a system prompt Axolotl leaves the frame out, row by row
    names = ("system", "instruction", "input", "output")
    columns = {name: values[f"field_{name}"] for name in names}
    if "{system}" not in system:
        del columns["system"]
    return Rows(
        "Alpaca",
        {name: column for name, column in columns.items() if column != name},
        {
            "withInput": system + with_input,
            "withoutInput": system + without_input,
        },
    )


def _template(form: str) -> str | None:
    """A format string of Python's as a prompt template, whose other braces stand for themselves.

    None when it names other columns, or if a text of it would be taken for a column.
    """
    try:
        parts = list(Formatter().parse(form))
    except ValueError:
        return None
    template = "".join(
        text if place is None else f"{text}{{{place}}}" for text, place, _, _ in parts
    )
    named = [place for _, place, _, _ in parts if place is not None]
    unformatted = not any(spec or conversion for _, _, spec, conversion in parts)
    return template if unformatted and _PLACE.findall(template) == named else None


_PLACE = re.compile(r"\{(instruction|input|system)\}")

_OWN_KEYS = {
    "system_prompt": "",
    "system_format": "{system}",
    "field_system": "system",
    "field_instruction": "instruction",
    "field_input": "input",
    "field_output": "output",
    "format": "{instruction} {input} ",
    "no_input_format": "{instruction} ",
}
"""Keys of a prompt of one's own, with Axolotl's defaults."""
