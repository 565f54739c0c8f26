"""A data set of a stage: where it lies, what its rows are, and what is learned of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from latticeforge_operator.api.base import APIModel, Reference, Revision, rule, rules
from latticeforge_trainer.contract import COLUMNS, DataFormat, ExcessLength, Role

Column = Annotated[str, Field(min_length=1, max_length=300)]
RoleNames = Annotated[list[Column], Field(min_length=1, max_length=32)]


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


CHAT, ALPACA, TEXT = DataFormat.CHAT, DataFormat.ALPACA, DataFormat.TEXT

MISPLACED: tuple[tuple[str, str, Callable[[Data], bool]], ...] = (
    (
        "has(self.fields) && !has(self.format)",
        "fields needs format, which says what the columns are for",
        lambda d: d.fields is not None and d.format is None,
    ),
    (
        "has(self.promptTemplate) && !(has(self.format) && self.format == 'Alpaca')",
        "promptTemplate belongs to format Alpaca",
        lambda d: d.prompt_template is not None and d.format is not ALPACA,
    ),
    (
        "has(self.roles) && has(self.format) && self.format != 'Chat'",
        "roles belongs to format Chat",
        lambda d: d.roles is not None and d.format not in {None, CHAT},
    ),
    (
        "has(self.trainOnEnd) && has(self.format) && self.format != 'Chat'",
        "trainOnEnd belongs to format Chat",
        lambda d: d.train_on_end is not None and d.format not in {None, CHAT},
    ),
    (
        "has(self.trainOn) && has(self.format) && self.format == 'Text'",
        "trainOn does not belong to format Text, of which everything is learned",
        lambda d: d.train_on is not None and d.format is TEXT,
    ),
    (
        "has(self.dropSystem) && !(has(self.format) && self.format == 'Chat')",
        "dropSystem belongs to format Chat",
        lambda d: d.drop_system is not None and d.format is not CHAT,
    ),
    (
        (
            "has(self.excessLength) && self.excessLength == 'Split' && "
            "!(has(self.format) && self.format == 'Text')"
        ),
        "excessLength Split belongs to format Text",
        lambda d: d.excess_length is ExcessLength.SPLIT and d.format is not TEXT,
    ),
)
"""What is wrong: for CEL, for people, and for Python."""


def _belongs(field: str) -> str:
    formats = [str(kind) for kind, columns in COLUMNS.items() if field in columns]
    return f"fields.{field} belongs to format {' or '.join(formats)}"


def _column_rules() -> Iterator[dict[str, str]]:
    """A rule for each column: the formats that have it."""
    for field in Fields.model_fields:
        formats = [str(kind) for kind, columns in COLUMNS.items() if field in columns]
        given = f"has(self.fields) && has(self.format) && has(self.fields.{field})"
        yield rule(f"!({given}) || self.format in {formats}", _belongs(field))


class Data(APIModel):
    """One data set of a stage's mixture."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            *(rule(f"!({wrong})", sentence) for wrong, sentence, _ in MISPLACED), *_column_rules()
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
    minimum_length: int | None = Field(default=None, ge=2, le=1_048_576)
    """Tokens of the shortest sample that is kept; left out: all are."""
    drop_system: bool | None = None
    """Whether the system turn that a chat opens with is taken out; left out: it stays."""

    @model_validator(mode="after")
    def _fits_the_format(self) -> Self:
        for _, sentence, wrong in MISPLACED:
            if wrong(self):
                raise ValueError(f"{self.source}: {sentence}")
        if self.fields and self.format:
            for field in self.fields.model_dump(exclude_none=True):
                if field not in COLUMNS[self.format]:
                    raise ValueError(f"{self.source}: {_belongs(field)}")
        return self
