"""What a base model is, and what it cannot be used for, from its config and weight headers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from latticeforge_trainer.contract import Method, ModelFacts
from latticeforge_trainer.data.files import README, front_matter
from latticeforge_trainer.errors import UserError
from latticeforge_trainer.estimate.base_model import (
    quantization_of,
    why_unmergeable,
    why_untrainable,
)
from latticeforge_trainer.estimate.config_fields import size_fields
from latticeforge_trainer.models.headers import Header, count_parameters, integer_share

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight"
)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A model folder's `config.json`.

    Args:
        folder: The model's folder.
        name: What messages call the model.

    Raises:
        UserError: It is missing or no JSON object, or the folder holds an adapter.
    """
    if not (folder / CONFIG).exists() and (folder / "adapter_config.json").exists():
        raise UserError(f"{name} is an adapter, not a model: use the model it was merged into")
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{name} holds no {CONFIG}, so it is no model") from error
    except ValueError as error:
        raise UserError(f"{name}: {CONFIG} is no valid JSON") from error
    if not isinstance(config, dict):
        raise UserError(f"{name}: {CONFIG} is not an object")
    return config


def check_method(name: str, quantization: str | None, method: Method, *, merges: bool) -> None:
    """Refuse a base that a stage cannot be trained on, or its adapter not be merged into.

    Raises:
        UserError: Says why, and which model to use instead.
    """
    why = why_untrainable(quantization, method, name)
    if why is None and merges:
        why = why_unmergeable(quantization)
    if why is not None:
        raise UserError(f"{name} {why}")


def weight_files(folder: Path, names: list[str], name: str) -> list[str]:
    """The safetensors files that hold a model's weights.

    Args:
        folder: Where its index lies, if it has one.
        names: Every file of the model.
        name: What messages call the model.

    Raises:
        UserError: There are none: weights of other kinds are never loaded, as they can hold code.
    """
    if INDEX in names:
        try:
            index = json.loads((folder / INDEX).read_bytes())
            files = sorted(set(index["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{name}: {INDEX} is damaged") from error
        missing = [file for file in files if file not in names]
        if missing:
            raise UserError(f"{name}: {missing[0]} is missing, which {INDEX} names")
        return files
    if WEIGHTS in names:
        return [WEIGHTS]
    pickled = [n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    found = f", only {pickled[0]}, which can hold code and is never loaded" if pickled else ""
    raise UserError(f"{name} holds no safetensors weights{found}: convert it, or use one that does")


def facts_of(
    folder: Path, name: str, *, path: str, revision: str, config: dict[str, Any], header: Header
) -> ModelFacts:
    """What there is to know of a model.

    Args:
        folder: Holds its config and README.
        name: What messages call the model.
        path: The folder as other steps are told it.
        revision: Commit or fingerprint.
        config: Content of `config.json`.
        header: All its tensors.

    Raises:
        UserError: It is no causal language model that transformers knows, its weights are
            integers without a declared quantization, or they disagree with its config.
    """
    parsed = _known_config(folder, name, config)
    vocabulary = int(parsed.vocab_size)
    rows = [info.shape[0] for tensor, info in header.items() if _EMBEDDINGS.search(tensor)]
    if rows and rows[0] != vocabulary:
        raise UserError(
            f"{name}: {CONFIG} says {vocabulary} tokens, but the embedding has {rows[0]} rows"
        )
    quantization = quantization_of(config)
    if quantization is None and integer_share(header) > 0.5:
        quantization = "integer"
    return ModelFacts(
        path=path,
        revision=revision,
        architecture=str((config.get("architectures") or [type(parsed).__name__])[0]),
        parameters=count_parameters(header),
        hidden_size=int(parsed.hidden_size),
        layers=int(parsed.num_hidden_layers),
        vocabulary=vocabulary,
        quantization=quantization,
        licence=_licence(folder, name),
        config=size_fields(config),
    )


def check_tokenizer(name: str, tokens: int, vocabulary: int) -> None:
    """Check that every token has a row in the embedding.

    Args:
        name: What messages call the model.
        tokens: One more than the greatest token id.
        vocabulary: Rows of the embedding.

    Raises:
        UserError: It has not.
    """
    if tokens > vocabulary:
        raise UserError(
            f"{name}: the tokenizer has {tokens} tokens, but the embedding only {vocabulary} rows; "
            "model and tokenizer do not belong together"
        )


def _known_config(folder: Path, name: str, config: dict[str, Any]) -> Any:
    from transformers import AutoConfig  # noqa: PLC0415  (seconds; a reused step needs none of it)
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415  (as above)
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    kind = config.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        own = ", and code from its repository is never run" if config.get("auto_map") else ""
        raise UserError(
            f"{name}: model type '{kind}' is no causal language model that transformers knows{own}"
        )
    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ).get_text_config()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{name}: {CONFIG} is not usable: {_first_line(error)}") from error


def _licence(folder: Path, name: str) -> str | None:
    readme = folder / README
    if not readme.is_file():
        return None
    metadata = front_matter(name, readme.read_text(errors="replace"))
    licence = metadata.get("license_name") or metadata.get("license")
    return str(licence) if licence else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
