"""Chat templates: by name, by a model whose tokenizer has it, or spelt out."""

from __future__ import annotations

from latticeforge_operator.axolotl.lines import Line, ignored, implied, mapped, unsupported
from latticeforge_operator.axolotl.rules import same

TEMPLATES = {
    "llama3": "NousResearch/Meta-Llama-3-8B-Instruct",
    "llama4": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
    "gemma": "google/gemma-2-9b-it",
    "gemma3": "google/gemma-3-4b-it",
    "gemma3n": "google/gemma-3n-E2B-it",
    "gemma4": "google/gemma-4-31B-it",
    "gemma4_unified": "google/gemma-4-12B-it",
    "qwen_25": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3": "Qwen/Qwen3-8B",
    "qwen3_5": "Qwen/Qwen3.5-9B",
    "mistral_v1": "mistralai/Mistral-7B-Instruct-v0.1",
    "mistral_v2v3": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral_v3_tekken": "mistralai/Mistral-Nemo-Instruct-2407",
    "phi_3": "microsoft/Phi-3-mini-4k-instruct",
    "phi_35": "microsoft/Phi-3.5-mini-instruct",
}
"""Named chat templates, of which Axolotl keeps copies, by a model whose tokenizer brings each."""

_FALLBACK = "tokenizer_default_fallback_"


_PATH = "base.chatTemplate"


def template_line(key: str, name: str, jinja: str | None) -> Line:
    """The line of `chat_template`, at the top or of a data set.

    Args:
        key: As in the file.
        name: Its value.
        jinja: The `chat_template_jinja` that stands beside it.
    """
    if name == "tokenizer_default" or name.startswith(_FALLBACK):
        return implied(key, "the tokenizer's own")
    if name == "jinja" and jinja is not None:
        return mapped(key, f"{_PATH}.jinja", {f"{_PATH}.jinja": jinja})
    if name == "chatml":
        return same(key, f"{_PATH}.preset", "ChatML")
    if name in TEMPLATES:
        return same(key, f"{_PATH}.model", TEMPLATES[name])
    return unsupported(key, f"{name}: no model brings it; write it out as chat_template_jinja")


def jinja_line(key: str, jinja: str, name: str | None) -> Line:
    """The line of `chat_template_jinja`, beside the name that stands in `chat_template`."""
    if name in {None, "jinja"}:
        return mapped(key, f"{_PATH}.jinja", {f"{_PATH}.jinja": jinja})
    return ignored(key, f"chat_template {name} counts")
