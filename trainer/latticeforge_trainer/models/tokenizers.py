"""Tokenizers of model folders, and what a stack may change of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticeforge_trainer.contract import ChatTemplate, SpecialTokens
from latticeforge_trainer.errors import StepError, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Chat Markup Language: one block for every turn."""

TEKKEN = "tekken.json"
"""Mistral's own vocabulary; what reads it renders chats by itself, without a template."""

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; nothing outside of it is asked.

    Args:
        folder: The model's folder.
        name: What messages call the model.

    Raises:
        UserError: It holds no usable tokenizer.
    """
    from transformers import AutoTokenizer  # noqa: PLC0415  (seconds; a reused step needs none)

    # Without these transformers makes up an empty tokenizer instead of failing.
    if not any((folder / file).exists() for file in _VOCABULARIES):
        raise UserError(f"{name} holds no tokenizer (none of {', '.join(_VOCABULARIES)})")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, mistral_format=False
        )
    except StepError:  # a signal's
        raise
    except Exception as error:  # the tokenizers library raises bare ones for a damaged file
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} holds no usable tokenizer: {problem}") from error
    return tokenizer


def open_tekken(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of Mistral's `tekken.json`, under the chat template of mistral-common.

    Args:
        folder: The model's folder.
        name: What messages call the model.

    Raises:
        UserError: It holds no such file, or mistral-common is not installed, or too old.
    """
    from transformers.integrations.mistral.tokenizer import (  # noqa: PLC0415  (seconds)
        convert_tekken_tokenizer,
    )

    file = folder / TEKKEN
    if not file.exists():
        raise UserError(f"vocabulary Tekken: {name} holds no {TEKKEN}; leave vocabulary out")
    try:
        from mistral_common.integrations.chat_templates import chat_templates  # noqa: PLC0415
    except ImportError as error:
        raise UserError(
            "vocabulary Tekken needs the package mistral-common 1.13 or later; "
            "pip install 'latticeforge[mistral]'"
        ) from error
    template = chat_templates.convert_tokenizer_to_chat_template(file)
    tokenizer: PreTrainedTokenizerBase = convert_tekken_tokenizer(str(file), template)
    return tokenizer


def template_text(template: ChatTemplate, folder: Path | None) -> str:
    """The text of a chat template.

    Args:
        template: Which.
        folder: Of the model that it names, with its small files.

    Raises:
        UserError: That model has no chat template.
    """
    if template.jinja is not None:
        return template.jinja
    if template.model is None or folder is None:
        return CHATML
    found: Any = open_tokenizer(folder, template.model.model).chat_template
    text = found.get("default") if isinstance(found, dict) else found
    if not text:
        raise UserError(
            f"chatTemplate.model {template.model.model}: its tokenizer has no chat template; name "
            "an instruction-tuned model, or give the template as chatTemplate.jinja"
        )
    return str(text)


def set_special_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: SpecialTokens, name: str
) -> None:
    """Give special roles to tokens of the vocabulary.

    Raises:
        UserError: A token is not in the vocabulary: adding it would need new embeddings.
    """
    vocabulary = tokenizer.get_vocab()
    for role, token in tokens.model_dump(exclude_none=True).items():
        if token not in vocabulary:
            raise UserError(
                f"specialTokens.{role} {token!r} is not in the vocabulary of {name}: choose one "
                "that is, since embeddings of new tokens are not trained"
            )
        tokenizer.add_special_tokens({f"{role}_token": token})
