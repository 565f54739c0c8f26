"""What a stack changes of its base's tokenizer: the chat template, and special tokens."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from latticeforge_operator.api.base import APIModel, Reference, Revision, rule, rules

Token = Annotated[str, Field(min_length=1, max_length=200)]

ONE_TEMPLATE = "chatTemplate needs exactly one of jinja, preset and model"


class ChatTemplate(APIModel):
    """A chat template in place of the tokenizer's own."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.jinja), has(self.preset), has(self.model)].filter(x, x).size() == 1",
                ONE_TEMPLATE,
            ),
        )
    )

    jinja: str | None = Field(default=None, min_length=1, max_length=65_536)
    """The template itself, in Jinja as in `tokenizer_config.json`."""
    preset: Literal["ChatML"] | None = None
    """ChatML: `<|im_start|>role`, the content and `<|im_end|>`, for every turn."""
    model: Reference | None = None
    """The model whose tokenizer has the template: `owner/name` on the Hub, or a folder."""
    revision: Revision = "main"
    """Branch, tag or commit of that model."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(value is not None for value in (self.jinja, self.preset, self.model)) != 1:
            raise ValueError(ONE_TEMPLATE)
        return self


class SpecialTokens(APIModel):
    """Tokens of the base's vocabulary that take over special roles; left out: as they are."""

    bos: Token | None = None
    """Opens a text."""
    eos: Token | None = None
    """Ends a text: what the model learns to stop with."""
    pad: Token | None = None
    """Fills up sequences; never learned."""
    unk: Token | None = None
    """Stands for what is not in the vocabulary."""
