"""The formats benchmark: what is paired with what, and how far apart two adapters are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.formats import pairs_of, rounded, row_of, update_apart
from benchmarks.formats_runs import FORMATS, ORDERS, OTHER_ORDER, OTHER_SEED, SEEDS, Run
from safetensors.torch import load_file, save_file
from tests.fixtures.tiny_model import make_model

from latticeforge_trainer.contract import LoRASettings
from latticeforge_trainer.models.adapters import add_adapter

RUN = Run("bf16", SEEDS[0], [3.0, 2.0], held_out=2.5, held_out_own=2.4, adapter=Path("a"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes the model."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415  (slow to import)

    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    adapted = add_adapter(AutoModelForCausalLM.from_pretrained(base), LoRASettings(rank=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(folder)
    return folder


def scaled(adapter: Path, folder: Path, factor: float) -> Path:
    """An adapter whose update is another's times a factor."""
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((adapter / "adapter_config.json").read_bytes())
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = {name: t * factor if "lora_B" in name else t for name, t in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("factor", "apart"), [(1.0, 0.0), (1.5, 0.5), (-1.0, 2.0)])
def test_updates_are_apart_by_what_scales_them(
    adapter: Path, base: Path, tmp_path: Path, factor: float, apart: float
) -> None:
    other = scaled(adapter, tmp_path / "other", factor)
    assert update_apart(other, adapter, base) == pytest.approx(apart, abs=1e-6)


def test_every_format_is_held_against_bf16_of_its_seed() -> None:
    runs = [replace(RUN, format=name, seed=seed) for name in FORMATS for seed in SEEDS]
    runs += [replace(RUN, format=OTHER_ORDER, seed=order) for order in ORDERS]
    pairs = pairs_of(runs)
    for name in FORMATS:
        assert [(a.format, a.seed, b.format, b.seed) for a, b in pairs[name]] == [
            (name, seed, "bf16", seed) for seed in SEEDS
        ]
    assert all(a.seed != b.seed == SEEDS[0] for a, b in pairs[OTHER_SEED])
    assert [a.seed for a, _ in pairs[OTHER_ORDER]] == list(ORDERS)


def test_a_row_has_means_and_distances(adapter: Path, base: Path) -> None:
    mine = replace(RUN, losses=[3.5, 2.0], held_out=3.0, adapter=adapter)
    row = row_of("nf4", [(mine, replace(RUN, adapter=adapter))], base)
    assert (row.first, row.begins, row.ends) == (3.5, 2.75, 2.75)
    assert (row.held_out, row.held_out_own, row.held_out_apart) == (3.0, 2.4, [0.5, 0.5, 0.5])
    assert (row.curve_apart, row.update_apart) == ([0.25, 0.5], 0.0)
    assert row_of(OTHER_ORDER, [(mine, mine)], base).curve_apart is None


def test_paths_of_the_machine_are_left_out() -> None:
    found = rounded({"adapter": Path("/home/me"), "losses": [1.2345678], "seed": 1})
    assert found == {"losses": [1.23457], "seed": 1}
