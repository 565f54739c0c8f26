"""`StackedTraining`: a base model, a stack of fine-tuning stages, a budget, a place to publish.

What a schema or a CEL rule can refuse is refused by the API server at once; the same rules stand
here as validators with the same sentences, for `latticeforge run` and for clusters whose CRD is
older.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from latticeforge_operator.api.base import (
    HUB_REPOSITORY,
    APIModel,
    Currency,
    DecimalString,
    DNSLabel,
    Duration,
    Matches,
    Quantity,
    Reference,
    Revision,
    StageName,
    is_on_hub,
    rule,
    rules,
)
from latticeforge_operator.api.data import Data
from latticeforge_operator.api.hyperparameters import Hyperparameters, LoRA
from latticeforge_operator.api.tokenizer import ChatTemplate, SpecialTokens
from latticeforge_trainer.contract import Method

MAX_NAME = 63
MAX_STAGES = 16

SuiteName = Annotated[
    str,
    Field(max_length=100),
    Matches(
        r"(json|cic|phase|confidence|math|lm-eval:[A-Za-z0-9_.-]{1,80})",
        "unknown suite; known are json, cic, phase, confidence, math and lm-eval:TASK",
    ),
]

INT8_IS_FOR_FULL = (
    "optimizerStates INT8 is for method Full, as an adapter's moments are small; leave it out"
)
NAME_TOO_LONG = f"metadata.name is longer than {MAX_NAME} characters, the limit of a label value"


class Mode(StrEnum):
    """What applying the object asks for."""

    RUN = "Run"
    PLAN = "Plan"


class Handoff(StrEnum):
    """How a stage takes over the adapter of the stage before it."""

    MERGE = "Merge"
    CONTINUE_ADAPTER = "ContinueAdapter"


class OnGateFailure(StrEnum):
    """What a failed gate does."""

    STOP = "Stop"
    WARN = "Warn"
    REQUIRE_APPROVAL = "RequireApproval"


class Against(StrEnum):
    """What a drop is measured from."""

    BASE = "Base"
    PREVIOUS = "Previous"


class OnExceed(StrEnum):
    """What happens when the budget is spent."""

    SUSPEND = "Suspend"
    FAIL = "Fail"
    WARN = "Warn"


class Base(APIModel):
    """The model that the stack starts from."""

    model: Reference
    """A Hub repository `owner/name`, or a folder: `file:///folder`, or `./folder` on the volume."""
    revision: Revision = "main"
    """Branch, tag or commit of the Hub repository."""
    vocabulary: Literal["Tekken"] | None = None
    """Tekken: Mistral's `tekken.json` with the chat template of mistral-common, in place of
    `tokenizer.json`; the result is published with a `tokenizer.json` of it."""
    chat_template: ChatTemplate | None = None
    """A chat template in place of the tokenizer's own; it is published with the model."""
    special_tokens: SpecialTokens | None = None
    """Special tokens in place of the tokenizer's own; they are published with the model."""


class Gate(APIModel):
    """One evaluation suite and what it must show."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.minimum) || has(self.maximumDrop)",
                "a gate needs minimum, maximumDrop or both",
            ),
            rule(
                "!has(self.minimum) || double(self.minimum) <= 1.0",
                "minimum must not be more than 1",
            ),
            rule(
                "!has(self.maximumDrop) || double(self.maximumDrop) <= 1.0",
                "maximumDrop must not be more than 1",
            ),
        )
    )

    suite: SuiteName
    """`json`, `cic`, `phase`, `confidence`, `math`, or `lm-eval:TASK`."""
    minimum: DecimalString | None = None
    """The lower bound of the score's 95 % interval must reach this, from 0 to 1."""
    maximum_drop: DecimalString | None = None
    """The upper bound of the paired drop's 95 % interval must not exceed this, from 0 to 1."""
    against: Against = Against.PREVIOUS
    """What the drop is measured from: the base model or the previous stage's."""
    samples: int | None = Field(default=None, ge=8, le=100_000)
    """Held-out problems; left out: enough for the interval to reach `minimum`."""
    seed: int = Field(default=0, ge=0, le=2**31 - 1)
    """Which held-out problems are drawn."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.minimum is None and self.maximum_drop is None:
            raise ValueError(f"suite {self.suite}: a gate needs minimum, maximumDrop or both")
        for name, value in (("minimum", self.minimum), ("maximumDrop", self.maximum_drop)):
            if value is not None and float(value) > 1:
                raise ValueError(f"suite {self.suite}: {name} {value} is more than 1")
        return self


WEIGHED_AND_WHOLE = "mixing Concatenate takes every sample once; leave the weights out"


class Stage(APIModel):
    """One fine-tuning stage: data, method, and what the result must show."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.method != 'Full' || !has(self.lora)",
                "lora belongs to method LoRA or QLoRA; a Full stage has no adapter",
            ),
            rule(
                "self.method != 'Full' || self.handoff != 'ContinueAdapter'",
                "a Full stage cannot continue an adapter; use handoff Merge",
            ),
            rule(
                "self.method == 'Full' || !has(self.hyperparameters) || "
                "!has(self.hyperparameters.optimizerStates) || "
                "self.hyperparameters.optimizerStates != 'INT8'",
                INT8_IS_FOR_FULL,
            ),
            rule(
                "self.method == 'LoRA' || !has(self.lora) || !has(self.lora.baseDtype)",
                "lora.baseDtype belongs to method LoRA; a QLoRA stage's base is NF4",
            ),
            rule(
                "self.mixing != 'Concatenate' || self.data.all(d, d.weight == 1)",
                WEIGHED_AND_WHOLE,
            ),
        )
    )

    name: StageName
    """Name of the stage, unique in the stack."""
    method: Method = Method.LORA
    """Full (all weights), LoRA (an adapter), or QLoRA (an adapter over 4-bit weights)."""
    data: list[Data] = Field(min_length=1, max_length=32)
    """The data sets of the mixture."""
    mixing: Literal["Weighted", "Concatenate"] = "Weighted"
    """Weighted: each data set as its weight says; Concatenate: every sample once per epoch."""
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    """How the stage is trained."""
    lora: LoRA | None = None
    """The adapter's shape; only with method LoRA or QLoRA."""
    handoff: Handoff = Handoff.MERGE
    """How the previous stage's adapter is taken over. Merge: it is folded into the weights, and
    this stage trains on them. ContinueAdapter: the adapter itself is trained on."""
    evaluate: list[Gate] = Field(default_factory=list, max_length=32)
    """Gates: the next stage starts, and the model is published, only if all of them pass."""
    on_gate_failure: OnGateFailure = OnGateFailure.STOP
    """Stop: the stack fails. Warn: it goes on with a warning. RequireApproval: it waits until the
    annotation `latticeforge.dev/approve` names the stage."""

    @model_validator(mode="after")
    def _method_fits(self) -> Self:
        if self.method is Method.FULL and self.lora is not None:
            raise ValueError(
                f"stage {self.name}: lora belongs to method LoRA or QLoRA; "
                "a Full stage has no adapter"
            )
        if self.method is Method.FULL and self.handoff is Handoff.CONTINUE_ADAPTER:
            raise ValueError(
                f"stage {self.name}: a Full stage cannot continue an adapter; use handoff Merge"
            )
        if self.method.is_adapter and self.hyperparameters.optimizer_states == "INT8":
            raise ValueError(f"stage {self.name}: {INT8_IS_FOR_FULL}")
        if self.method is Method.QLORA and self.lora and self.lora.base_dtype:
            raise ValueError(
                f"stage {self.name}: lora.baseDtype belongs to method LoRA; "
                "a QLoRA stage's base is NF4"
            )
        if self.mixing == "Concatenate" and any(data.weight != 1 for data in self.data):
            raise ValueError(f"stage {self.name}: {WEIGHED_AND_WHOLE}")
        return self


class Compute(APIModel):
    """Where the stack runs; what is left out is chosen."""

    pool: DNSLabel | None = None
    """Name of a GPUPool; left out: the cheapest that serves."""
    gpus: int | None = Field(default=None, ge=1, le=4096)
    """GPUs of the train steps; left out: as many as needed."""
    objective: Literal["Cheapest", "Fastest"] = "Cheapest"
    """What the choice of pool and GPUs minimises."""
    deadline: Duration | None = None
    """How long the whole stack may take by its plan, such as 12h: slower choices are refused. What
    runs is not ended by it."""
    queue: DNSLabel | None = None
    """Kueue LocalQueue that admits the Jobs; left out: the platform's default, if it has one."""
    priority_class_name: DNSLabel | None = None
    """PriorityClass of the pods on the pool."""


class Budget(APIModel):
    """How much the stack may cost."""

    limit: DecimalString
    """Most money the stack may spend, over all attempts."""
    currency: Currency = "USD"
    """ISO 4217 code; must be the pool's."""
    on_exceed: OnExceed = OnExceed.SUSPEND
    """What follows when the limit is reached, or what is left cannot pay for the rest. Suspend:
    write a checkpoint, release the GPUs, go on when the limit is raised. Fail: end the stack.
    Warn: say so, and nothing else."""


class Storage(APIModel):
    """The volume that holds models, data and checkpoints."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.size) != has(self.claimName)",
                "storage needs either size or claimName",
            )
        )
    )

    size: Quantity | None = None
    """Size of a volume made for this stack and removed with it."""
    claim_name: DNSLabel | None = None
    """An existing claim, shared by stacks: what one has made the others reuse."""
    storage_class_name: DNSLabel | None = None
    """Storage class of the volume made for `size`."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.size is None) == (self.claim_name is None):
            raise ValueError("storage needs either size or claimName")
        return self


class SecretKey(APIModel):
    """One key of a Secret in the stack's namespace."""

    name: DNSLabel
    """Name of the Secret."""
    key: str = Field(default="HF_TOKEN", pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)
    """Key in the Secret."""


class Publish(APIModel):
    """Where the finished model goes."""

    repository: Reference
    """A Hub repository `owner/name`, or a folder laid out like one: `file:///x`, `./x`."""
    artifact: Literal["Auto", "Merged", "Adapter"] = "Auto"
    """Merged weights or the adapter; Auto: the adapter when the base itself is 4-bit."""
    private: bool = True
    """Whether a repository that has to be created is private."""
    token_secret: SecretKey | None = None
    """Secret with the Hub token; only prepare and publish pods get it."""


class Failure(APIModel):
    """How often and when a step is started again."""

    max_restarts: int = Field(default=5, ge=0, le=100)
    """Restarts of one step; preemptions and interruptions are not counted."""
    stall_timeout: Duration = "15m"
    """A train step whose progress stands still this long is restarted."""


UNPUBLISHED = (
    "ttlAfterFinished would remove the only copy of the model with the volume of storage.size; "
    "publish to the Hub, or set storage.claimName"
)


class StackedTrainingSpec(APIModel):
    """What to train, on what, for how much, and where the result goes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.stages.all(s, self.stages.exists_one(t, t.name == s.name))",
                "two stages have the same name; every stage needs its own",
            ),
            rule(
                "self.stages[0].handoff != 'ContinueAdapter'",
                "the first stage has no adapter to continue; use handoff Merge",
            ),
            rule(
                f"{list(range(MAX_STAGES - 1))}.all(i, i + 1 >= self.stages.size() || "
                "self.stages[i].method != 'Full' || "
                "self.stages[i + 1].handoff != 'ContinueAdapter')",
                "ContinueAdapter after a Full stage, which leaves no adapter; use handoff Merge",
            ),
            rule(
                "!has(self.ttlAfterFinished) || has(self.storage.claimName) || "
                f"(has(self.publish) && self.publish.repository.matches('^{HUB_REPOSITORY}$'))",
                UNPUBLISHED,
            ),
        )
    )

    mode: Mode = Mode.RUN
    """Run, or Plan: fill `status.plan` with GPUs, hours and money, and run nothing."""
    suspend: bool = False
    """True: write a checkpoint, release the GPUs and keep everything; false again: go on from
    there."""
    base: Base
    """The model that the stack starts from."""
    stages: list[Stage] = Field(min_length=1, max_length=MAX_STAGES)
    """The stack, in order: each stage starts from the result of the one before."""
    compute: Compute = Field(default_factory=Compute)
    """Where the stack runs."""
    budget: Budget | None = None
    """How much the stack may cost."""
    storage: Storage
    """The volume that holds models, data and checkpoints."""
    publish: Publish | None = None
    """Where the finished model goes; left out: it stays in the store."""
    failure: Failure = Field(default_factory=Failure)
    """What happens when a step fails."""
    ttl_after_finished: Duration | None = None
    """How long Jobs, pods and the volume of `storage.size` outlive the end; left out: until the
    stack is deleted. The record in `status` stays."""

    @model_validator(mode="after")
    def _stack_fits(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two stages are named {name}; every stage needs its own name")
        if self.stages[0].handoff is Handoff.CONTINUE_ADAPTER:
            raise ValueError("the first stage has no adapter to continue; use handoff Merge")
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            if stage.handoff is Handoff.CONTINUE_ADAPTER:
                _check_continuation(before, stage)
        self._check_published_adapter()
        if self.ttl_after_finished and self.storage.size is not None and not self._on_hub():
            raise ValueError(UNPUBLISHED)
        return self

    def _on_hub(self) -> bool:
        return self.publish is not None and is_on_hub(self.publish.repository)

    def _check_published_adapter(self) -> None:
        if self.publish is None or self.publish.artifact != "Adapter":
            return
        if self.stages[-1].method is Method.FULL:
            raise ValueError("publish.artifact Adapter: the last stage is Full and has no adapter")
        for before, stage in zip(self.stages, self.stages[1:], strict=False):
            if stage.handoff is not Handoff.CONTINUE_ADAPTER:
                raise ValueError(
                    f"publish.artifact Adapter: stage {stage.name} starts from the merged result "
                    f"of {before.name}, so its adapter does not fit the public base; "
                    "use handoff ContinueAdapter, or artifact Merged"
                )


def _check_continuation(before: Stage, stage: Stage) -> None:
    if before.method is Method.FULL:
        raise ValueError(
            f"stage {stage.name}: ContinueAdapter after the Full stage {before.name}, "
            "which leaves no adapter; use handoff Merge"
        )
    if (before.lora or LoRA()) != (stage.lora or LoRA()):
        raise ValueError(
            f"stage {stage.name}: ContinueAdapter needs the same lora as stage {before.name}"
        )


class StackedTraining(APIModel):
    """A stack of fine-tuning stages that ends in a published model."""

    model_config = ConfigDict(extra="ignore")

    namespace: str
    """`metadata.namespace`."""
    name: str
    """`metadata.name`."""
    uid: str
    """`metadata.uid`."""
    generation: int
    """`metadata.generation`: counts the edits of the spec."""
    annotations: dict[str, str]
    """`metadata.annotations`."""
    spec: StackedTrainingSpec
    """What the user asks for."""

    @classmethod
    def from_object(cls, obj: dict[str, Any]) -> StackedTraining:
        """Read a Kubernetes object.

        Raises:
            pydantic.ValidationError: It does not fit the schema.
            ValueError: Its name is too long.
        """
        meta = obj["metadata"]
        if len(meta["name"]) > MAX_NAME:
            raise ValueError(NAME_TOO_LONG)
        return cls(
            namespace=meta.get("namespace", "default"),
            name=meta["name"],
            uid=meta.get("uid", ""),
            generation=meta.get("generation", 1),
            annotations=meta.get("annotations") or {},
            spec=StackedTrainingSpec.model_validate(obj.get("spec") or {}),
        )
