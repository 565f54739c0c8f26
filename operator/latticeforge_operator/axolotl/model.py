"""Keys that say what is trained: base, tokenizer, template, adapter, and where the result goes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from latticeforge_operator.axolotl.lines import Line, ignored, implied, unsupported
from latticeforge_operator.axolotl.places import model_reference
from latticeforge_operator.axolotl.rules import (
    Key,
    becomes,
    decided,
    harmless,
    keys,
    only,
    refused,
    same,
    switches,
)
from latticeforge_operator.axolotl.settings import (
    Settings,
    mapping,
    text,
    texts,
)
from latticeforge_operator.axolotl.templates import jinja_line, template_line


def _base_model(key: str, value: str, _settings: Settings) -> Iterable[Line]:
    yield same(key, "base.model", model_reference(value))


def _mistral_common(key: str, value: bool, _settings: Settings) -> Iterable[Line]:
    yield same(key, "base.vocabulary", "Tekken") if value else ignored(key, "off")


def _same_model(key: str, value: str, settings: Settings) -> Iterable[Line]:
    if value == settings["base_model"]:
        yield implied(key, "the base's own")
    else:
        yield unsupported(key, f"{value}: config and tokenizer are the base's own here")


def _model_class(key: str, value: str, _settings: Settings) -> Iterable[Line]:
    if value.endswith("ForCausalLM"):
        yield implied(key, "the base's own architecture, as a causal language model")
    else:
        yield unsupported(key, f"{value}: only causal language models (…ForCausalLM) are trained")


def _template(key: str, value: str, settings: Settings) -> Iterable[Line]:
    yield template_line(key, value, settings["chat_template_jinja"])


def _jinja(key: str, value: str, settings: Settings) -> Iterable[Line]:
    yield jinja_line(key, value, settings["chat_template"])


def _special_tokens(key: str, value: dict[str, Any], _settings: Settings) -> Iterable[Line]:
    for name, token in value.items():
        where = f"{key}.{name}"
        if token is None or token in ("", []):
            yield ignored(where, "not set")
        elif name == "pad_token":
            yield ignored(where, "padding is never learned from, nor attended to")
        elif name in {"bos_token", "eos_token", "unk_token"}:
            path = f"base.specialTokens.{name.removesuffix('_token')}"
            yield same(where, path, token)
        else:
            yield unsupported(where, "tokens are not added to the vocabulary here")


def _hub(key: str, value: str, _settings: Settings) -> Iterable[Line]:
    yield same(key, "publish.repository", value)


_LANGUAGE_MODEL = re.compile(r"\^?(model\.)?(language_model|lm_head|embed_tokens)\W*(weight)?\W*")
"""Patterns that name the whole language model of a multimodal one, or all of its ends."""


def _unfrozen(key: str, value: list[str], _settings: Settings) -> Iterable[Line]:
    if all(_LANGUAGE_MODEL.fullmatch(pattern) for pattern in value) and any(
        "language_model" in pattern for pattern in value
    ):
        yield implied(key, "the whole language model is trained, and no other part sees text")
    else:
        yield unsupported(key, "Full trains all weights here, LoRA an adapter, never a part")


_OWN = "the tokenizer is loaded as its repository says"

MODEL: dict[str, Key] = {
    **keys("base_model", _base_model, text),
    **keys("model_revision revision_of_model", becomes("base.revision"), text),
    **keys("base_model_config tokenizer_config", _same_model, text),
    **keys("model_type type_of_model", _model_class, text),
    **keys("tokenizer_type tokenizer_use_fast tokenizer_legacy", decided(_OWN)),
    **keys("tokenizer_save_jinja_files cls_model_config", decided(_OWN)),
    **switches("tokenizer_use_mistral_common", _mistral_common),
    **switches(
        "trust_remote_code",
        harmless(
            "code of a model is never run; an architecture that needs it is refused by prepare"
        ),
    ),
    **keys("chat_template", _template, text),
    **keys("chat_template_jinja", _jinja, text),
    **keys("chat_template_kwargs", refused("the template gets no variables of its own here")),
    **keys("default_system_message", refused("no system turn is added here; the data has them")),
    **keys("eot_tokens", decided("the special token that ends a learned turn is learned")),
    **keys("special_tokens", _special_tokens, mapping),
    **keys("tokens added_tokens_overrides", refused("no tokens are added to the vocabulary here")),
    **keys(
        "resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings",
        decided("the embedding keeps its rows"),
    ),
    **keys("embeddings_skip_upcast", decided("embeddings are held as they are stored")),
    **keys("fix_untrained_tokens", refused("rows of untrained tokens are not made up here")),
    **keys("reinit_weights", refused("random weights: that is pretraining")),
    **keys(
        "overrides_of_model_config model_config",
        refused("the config of the base is not overridden here"),
        mapping,
    ),
    **keys(
        "overrides_of_model_kwargs model_kwargs",
        refused("how the base is loaded is not overridden here"),
        mapping,
    ),
    **keys("rope_scaling", refused("the config of the base is not overridden here")),
    **keys("output_dir", harmless("the result is kept in the store, and published"), text),
    **keys("hub_model_id push_to_hub_model_id", _hub, text),
    **keys("hub_strategy", decided("one commit at the end, after its gates")),
    **keys("hub_revision", only(("main",), "published on main", "published on main here")),
    **keys("save_safetensors", decided("weights are safetensors")),
    **keys("unfrozen_parameters", _unfrozen, texts),
}
"""Keys of this module, with their rules."""
