"""The losses of a real stage by the fast paths, by transformers' own layers, and in fp32.

    python -m benchmarks.curves --workdir quickstart --output curves.json

After `make quickstart`: 50 steps of its `cic` stage as LoRA over SmolLM2-135M-Instruct, from the
same weights and samples each time. In fp32 nothing is rounded to 16 bits: both others come near it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.formats_runs import BF16, DATA, packed, train_config
from latticeforge_trainer.artifacts import Store
from latticeforge_trainer.contract import Recompute, Strategy, TrainConfig

STEPS = 50

KINDS: dict[str, dict[str, Any]] = {
    "fast": {"fast": True, "precision": "bf16"},
    "plain": {"fast": False, "precision": "bf16"},
    "fp32": {"fast": False, "precision": "fp32"},
}


def main() -> None:
    """Train all three ways, and print how far they are apart."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("quickstart"))
    parser.add_argument("--output", type=Path, help="JSON of every loss")
    options = parser.parse_args()
    from latticeforge_trainer.training.process import (  # noqa: PLC0415  (before torch)
        settle_environment,
    )

    settle_environment(1)
    store = Store(options.workdir)
    config = train_config(BF16, 0, packed(store, DATA, 0))
    curves = {}
    for name, kind in KINDS.items():
        curves[name] = losses(store, config, **kind)
        print(f"{name:6} {curves[name][0]:.4f} -> {curves[name][-1]:.4f}", flush=True)
    for one, other in (("fast", "plain"), ("fast", "fp32"), ("plain", "fp32")):
        apart = [abs(a - b) for a, b in zip(curves[one], curves[other], strict=True)]
        print(f"{one} from {other}: mean {sum(apart) / STEPS:.1e}, at most {max(apart):.1e}")
    if options.output:
        options.output.write_text(json.dumps(curves, indent=1) + "\n")


def losses(store: Store, config: TrainConfig, *, fast: bool, precision: str) -> list[float]:
    """The loss of every step; samples come again once all have been seen."""
    from latticeforge_trainer.data.packed import PackedData  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.fused import decoder_layers, fuse  # noqa: PLC0415  (as above)
    from latticeforge_trainer.models.loading import default_device  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.batches import make_micro_batch  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.loss import TargetLoss  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.plain import PlainEngine  # noqa: PLC0415  (as above)
    from latticeforge_trainer.training.start import starting_model  # noqa: PLC0415  (as above)

    strategy = Strategy.model_validate({"precision": precision})
    config = config.model_copy(
        update={"runtime": config.runtime.model_copy(update={"strategy": strategy})}
    )
    device = default_device()
    loss = TargetLoss(starting_model(config, store, device, {}, lambda _done, _total: None))
    engine = PlainEngine(loss, config.payload, accumulation=1, processes=1)
    if fast:
        fuse(loss.model, [Recompute.ELEMENTWISE] * len(decoder_layers(loss.model)))
    loss.train()
    data = PackedData(store.require(config.runtime.data, "the packed data"))
    found = []
    for number in range(STEPS):
        batch = make_micro_batch(data, [number % len(data)]).to(device)
        share = engine.forward(batch, len(batch.targets))
        engine.backward(share, last=True)
        engine.update(config.payload.learning_rate)
        found.append(share.item())
    return found


if __name__ == "__main__":
    main()
