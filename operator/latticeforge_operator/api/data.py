"""A data set of a stage: where it lies, what its rows are, and what is learned of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from latticeforge_operator.api.base import APIModel, Reference, Revision, rule, rules
from latticeforge_trainer.contract import COLUMNS, DataFormat, ExcessLength, Role

Column = Annotated[str, Field(min_length=1, max_length=300)]
RoleNames = Annotated[list[Column], Field(min_length=1, max_length=32)]

FIELDS_WITHOUT_FORMAT = "fields needs format, which says what the columns are for"


class Fields(APIModel):
    """Names of the columns, where they differ from the format's own."""

    messages: Column | None = None
    """Chat: the list of messages; `messages`."""
    role: Column | None = None
    """Chat: who speaks, in each message; `role`."""
    content: Column | None = None
    """Chat: what is said, in each message; `content`."""
    tools: Column | None = None
    """Chat: the functions that the template describes; `tools`."""
    system: Column | None = None
    """Chat, Alpaca: a system prompt beside messages or instruction; `system`."""
    prompt: Column | None = None
    """Completion: what is given; `prompt`."""
    completion: Column | None = None
    """Completion: what is learned; `completion`."""
    instruction: Column | None = None
    """Alpaca: the instruction; `instruction`."""
    input: Column | None = None
    """Alpaca: what the instruction is about, if anything; `input`."""
    output: Column | None = None
    """Alpaca: the answer; `output`."""
    text: Column | None = None
    """Text: the text; `text`."""
    segments: Column | None = None
    """Segments: a list of objects with `text`, and `label`: whether it is learned; `segments`."""


class Roles(APIModel):
    """More names of the roles in a chat, beside those that are known (human, gpt, model, …)."""

    system: RoleNames | None = None
    """Names of the system's role."""
    user: RoleNames | None = None
    """Names of the user's role."""
    assistant: RoleNames | None = None
    """Names of the assistant's role."""
    tool: RoleNames | None = None
    """Names of the role of a tool's answer."""


class PromptTemplate(APIModel):
    """An instruction as a prompt, with `{instruction}`, `{input}` and `{system}` in it."""

    with_input: str = Field(min_length=1, max_length=20_000)
    """The prompt of a row that has an input."""
    without_input: str = Field(min_length=1, max_length=20_000)
    """The prompt of a row that has none."""


def _misplaced_fields() -> Iterator[tuple[str, str, str]]:
    """Each column's name, the formats that have it as CEL, and the sentence for the others."""
    for name in Fields.model_fields:
        formats = [str(kind) for kind, columns in COLUMNS.items() if name in columns]
        yield name, f"self.format in {formats}", f"fields.{name} belongs to {' or '.join(formats)}"


class Data(APIModel):
    """One data set of a stage's mixture."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("!has(self.fields) || has(self.format)", FIELDS_WITHOUT_FORMAT),
            *(
                rule(
                    f"!has(self.fields) || !has(self.format) || !has(self.fields.{name}) || {fits}",
                    sentence,
                )
                for name, fits, sentence in _misplaced_fields()
            ),
            rule(
                "!has(self.promptTemplate) || (has(self.format) && self.format == 'Alpaca')",
                "promptTemplate belongs to format Alpaca",
            ),
            rule(
                "!has(self.excessLength) || self.excessLength != 'Split' || "
                "(has(self.format) && self.format == 'Text')",
                "excessLength Split belongs to format Text",
            ),
        )
    )

    source: Reference
    """A Hub data set `owner/name`, or a file or folder: `file:///data`, `./data` on the volume."""
    revision: Revision = "main"
    """Branch, tag or commit of the Hub data set."""
    subset: str | None = Field(default=None, max_length=100)
    """Named configuration of the Hub data set."""
    split: str = Field(default="train", max_length=100)
    """Split of the Hub data set; with a slice, as in `train[:20%]`, only those rows."""
    weight: int = Field(default=1, ge=1, le=1000)
    """Samples of this source in proportion to the others; the heaviest is seen once per epoch."""
    files: list[Column] | None = Field(default=None, min_length=1, max_length=64)
    """Files to read, as paths or patterns (`data/*.jsonl`); left out: those of subset and split."""
    format: DataFormat | None = None
    """Chat, Completion (prompt and completion), Alpaca, Text or Segments; left out: by the
    columns of each file's first row."""
    fields: Fields | None = None
    """Names of the columns, where they differ from the format's own."""
    roles: Roles | None = None
    """More names of the roles in a chat, beside those that are known (human, gpt, model, …)."""
    prompt_template: PromptTemplate | None = None
    """How an Alpaca row becomes a prompt; left out: the prompt of Stanford Alpaca."""
    train_on: list[Role] | None = Field(default=None, min_length=1, max_length=5)
    """Whose tokens are learned: a prompt is the `user`'s, its completion the `assistant`'s; left
    out: the assistant's."""
    train_on_end: Literal["Turn", "All", "Last", "Never"] | None = None
    """Which tokens that end a turn of a chat are learned: those of learned Turns, All, only the
    Last, or Never; left out: Turn."""
    excess_length: ExcessLength | None = None
    """What becomes of a sample longer than a sequence: Truncate, Split (texts only), Drop, or
    Fail; left out: Truncate."""

    @model_validator(mode="after")
    def _fits_the_format(self) -> Self:
        if self.fields and self.format is None:
            raise ValueError(f"{self.source}: {FIELDS_WITHOUT_FORMAT}")
        if self.fields and self.format:
            for name in self.fields.model_dump(exclude_none=True):
                if name not in COLUMNS[self.format]:
                    formats = [kind for kind, columns in COLUMNS.items() if name in columns]
                    raise ValueError(
                        f"{self.source}: fields.{name} belongs to {' or '.join(formats)}"
                    )
        if self.prompt_template and self.format is not DataFormat.ALPACA:
            raise ValueError(f"{self.source}: promptTemplate belongs to format Alpaca")
        if self.excess_length is ExcessLength.SPLIT and self.format is not DataFormat.TEXT:
            raise ValueError(f"{self.source}: excessLength Split belongs to format Text")
        return self
