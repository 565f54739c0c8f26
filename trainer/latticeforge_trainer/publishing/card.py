"""The model card: what the model is, how it was made, how good it is and how to load it.

Metadata goes through huggingface_hub's own classes, so that the Hub's filters and model-index read
it. The text is `card.md.j2`; `tables` gives it cells that are ready to print.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from latticeforge_trainer.contract import ModelFacts, Score
from latticeforge_trainer.estimate.flops import CONVENTION
from latticeforge_trainer.publishing import tables
from latticeforge_trainer.publishing.lineage import Lineage

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

README = "README.md"
_LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")
_LOCAL = (".", "/", "file:")
"""How references to folders and files begin; anything else is a Hub repository."""


@dataclass(frozen=True)
class Card:
    """What the card says beside the lineage.

    Attributes:
        title: The training's title.
        destination: What loaders are given: a Hub repository or an absolute folder.
        artifact: Whether whole weights or an adapter are published.
        cost: Money spent so far, as a person reads it.
        curve: File name of the loss curve; None when there is none.
        parts: What the model is made of → digest.
    """

    title: str
    destination: str
    artifact: Literal["Merged", "Adapter"]
    cost: str | None
    curve: str | None
    parts: dict[str, str]

    @property
    def merged(self) -> bool:
        """Whether the repository holds whole weights."""
        return self.artifact == "Merged"


def render(card: Card, lineage: Lineage) -> str:
    """The text of README.md, metadata first."""
    import jinja2  # noqa: PLC0415  (not needed to find that a publish is done)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("latticeforge_trainer.publishing", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (markdown, not HTML; table cells are escaped by `cell`)
    )
    environment.filters |= {"cell": tables.cell, "duration": tables.duration}
    stages = lineage.stages
    return environment.get_template("card.md.j2").render(
        card=card,
        lineage=lineage,
        metadata=metadata(card, lineage).to_yaml(),
        summary=summary(card, lineage),
        stages=[tables.stage_row(stage) for stage in stages],
        hyperparameters=[(stage.record.name, tables.hyperparameters(stage)) for stage in stages],
        sources=[row for stage in stages for row in tables.source_rows(stage)],
        speeds=[row for stage in stages if (row := tables.speed_row(stage))],
        convention=CONVENTION,
        scores=tables.score_table(lineage.scores()),
        seconds=sum(stage.trained.seconds for stage in stages if stage.trained),
        rank=_adapter_rank(lineage),
        tables=_tables(lineage),
    )


def summary(card: Card, lineage: Lineage) -> str:
    """What the model is, in one sentence."""
    chain = " → ".join(f"{stage.record.name} ({stage.record.method})" for stage in lineage.stages)
    count = len(lineage.stages)
    base = lineage.base_hub_id
    named = f"[{base}](https://huggingface.co/{base})" if base else f"`{lineage.base}`"
    form = "whole 16-bit weights" if card.merged else "an adapter to load on top of it"
    size = f", {lineage.facts.parameters / 1e9:.3g} B parameters" if lineage.facts else ""
    stages = f"{count} stage{'s' if count > 1 else ''}"
    return f"{named}{size}, fine-tuned in {stages}: {chain}. Published as {form}."


def metadata(card: Card, lineage: Lineage) -> ModelCardData:
    """The card's YAML header."""
    from huggingface_hub import ModelCardData  # noqa: PLC0415  (not needed by a reused publish)

    fields: dict[str, Any] = _licence(lineage.facts)
    if lineage.base_hub_id:
        fields["base_model"] = lineage.base_hub_id
        fields["base_model_relation"] = "finetune" if card.merged else "adapter"
    if results := evaluation_results(lineage):
        fields |= {"eval_results": results, "model_name": card.destination.rsplit("/", 1)[-1]}
    records = [stage.record for stage in lineage.stages]
    sources = dict.fromkeys(data.source for record in records for data in record.data)
    methods = dict.fromkeys(str(record.method).lower() for record in records)
    return ModelCardData(
        library_name="transformers" if card.merged else "peft",
        pipeline_tag="text-generation",
        datasets=[source for source in sources if not source.startswith(_LOCAL)] or None,
        tags=["latticeforge", *(method for method in methods if method != "full")],
        **fields,
    )


def _licence(facts: ModelFacts | None) -> dict[str, str]:
    licence = facts.licence if facts else None
    return {"license": licence} if licence and _LICENCE_ID.fullmatch(licence) else {}


def evaluation_results(lineage: Lineage) -> list[EvalResult]:
    """The final model's scores as the Hub's `model-index` wants them."""
    final = lineage.scores().get(lineage.stages[-1].record.name, {})
    return [_evaluation_result(score) for score in final.values()]


def _evaluation_result(score: Score) -> EvalResult:
    from huggingface_hub import EvalResult  # noqa: PLC0415  (not needed by a reused publish)

    return EvalResult(
        task_type="text-generation",
        task_name="Text generation",
        dataset_type=f"latticeforge-{re.sub(r'[^a-z0-9]+', '-', score.suite.lower())}",
        dataset_name=f"LatticeForge suite {score.suite}, held out",
        dataset_split="test",
        metric_type="accuracy",
        metric_name=f"{score.suite} score",
        metric_value=round(score.value, 4),
        metric_args={"n": score.n, "interval_95": [round(score.low, 4), round(score.high, 4)]},
    )


def _adapter_rank(lineage: Lineage) -> int | None:
    """The final stage's LoRA rank, wherever its record keeps it."""
    values = lineage.stages[-1].record.hyperparameters
    nested = values.get("lora")
    rank = nested.get("rank") if isinstance(nested, dict) else values.get("rank")
    return int(rank) if rank is not None else None


def _tables(lineage: Lineage) -> str:
    """What the final stage trained in full beside its adapter; empty: nothing."""
    lora = lineage.stages[-1].record.hyperparameters.get("lora") or {}
    return " and ".join(f"`{name}`" for name in lora.get("modulesToSave") or [])
