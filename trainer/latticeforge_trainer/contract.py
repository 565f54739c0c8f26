"""All that the operator and the trainer agree on: configs, progress, exit codes and digests.

The operator writes a `StepConfig` and starts `python -m latticeforge_trainer STEP --config FILE`;
the trainer answers with `Progress` documents and an `ExitCode`. Importing this module costs no
torch. JSON is camelCase; unknown keys are errors: the two sides can never disagree silently.

A step's digest names its result. It covers the step's `payload` (everything that can change the
result) and the digests of its inputs, never its `runtime` (how it is executed: micro-batch, ZeRO
stage, number of processes), so a retry with half the micro-batch continues the same result.
"""

from __future__ import annotations

import hashlib
import json
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

TRAINER_VERSION = "2"
"""Part of every digest; raised when the same payload would give a different result."""

PROGRESS_SUFFIX = ".progress.json"


def progress_key(step: str) -> str:
    """The key of a stack's progress ConfigMap that holds the `Progress` of step `STAGE/KIND`."""
    return step.replace("/", ".") + PROGRESS_SUFFIX


def step_of_key(key: str) -> str | None:
    """The step whose `Progress` is under a key; None when the key holds something else."""
    if not key.endswith(PROGRESS_SUFFIX):
        return None
    return key.removesuffix(PROGRESS_SUFFIX).replace(".", "/")


class StepKind(StrEnum):
    """The five kinds of step; each is one entry of the trainer."""

    PREPARE = "prepare"
    TRAIN = "train"
    MERGE = "merge"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


class Method(StrEnum):
    """How a stage changes the weights."""

    FULL = "Full"
    LORA = "LoRA"
    QLORA = "QLoRA"

    @property
    def is_adapter(self) -> bool:
        """Whether the stage trains an adapter beside frozen weights."""
        return self is not Method.FULL


class ExitCode(IntEnum):
    """How a step's process ends; anything else is an unknown failure, retried and counted."""

    DONE = 0
    INTERRUPTED = 80  # SIGTERM: checkpoint written, safe to resume
    USER_ERROR = 81  # the input is wrong: never retried
    OUT_OF_MEMORY = 82  # GPU memory: retried with half the micro-batch
    NUMERICAL = 83  # NaN or Inf: rolled back to the last good checkpoint
    NETWORK = 84  # Hub or network: retried with back-off


class Contract(BaseModel):
    """Base of every document: camelCase JSON, immutable, unknown keys refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # of the many models, a process uses few
    )

    def to_json(self) -> dict[str, Any]:
        """The document as JSON-ready values, without the fields left at None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def digest_of(*parts: object) -> str:
    """The SHA-256 of JSON values in canonical form, as 64 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sequences_per_step(global_batch_tokens: int, sequence_length: int) -> int:
    """Packed sequences of an optimizer step, over all processes."""
    return max(1, global_batch_tokens // sequence_length)


def step_digest(kind: StepKind, payload: dict[str, Any], inputs: list[str]) -> str:
    """The digest of a step's result, from its payload and the digests of its inputs."""
    return digest_of(TRAINER_VERSION, kind.value, payload, inputs)


# --- payloads: everything that can change a result --------------------------------------------
#
# A field that is added later is None when it changes nothing: None is not part of a digest, so what
# was made before it is found again.


class ModelSource(Contract):
    """A base model: a Hub repository, or a folder below the store's root or at a `file://` URL."""

    model: str
    revision: str = "main"


class SpecialTokens(Contract):
    """Tokens of the vocabulary to be the tokenizer's special ones; None: its own."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None


class ChatTemplate(Contract):
    """A chat template: its text, the name of a preset, or the model that has it."""

    jinja: str | None = None
    preset: Literal["ChatML"] | None = None
    model: ModelSource | None = None

    @model_validator(mode="after")
    def _one_of(self) -> ChatTemplate:
        if sum(value is not None for value in (self.jinja, self.preset, self.model)) != 1:
            raise ValueError("chatTemplate needs one of jinja, preset and model")
        return self


class TokenizerChanges(Contract):
    """What differs from the base's own tokenizer, in training and in the finished model."""

    vocabulary: Literal["Tekken"] | None = None
    """`Tekken`: Mistral's `tekken.json`, with its own chat template; None: `tokenizer.json`."""
    chat_template: ChatTemplate | None = None
    special_tokens: SpecialTokens | None = None


class DataFormat(StrEnum):
    """What a row of a data set is."""

    CHAT = "Chat"
    COMPLETION = "Completion"
    ALPACA = "Alpaca"
    TEXT = "Text"
    SEGMENTS = "Segments"


COLUMNS: dict[DataFormat, dict[str, str]] = {
    DataFormat.CHAT: {
        "messages": "messages",
        "role": "role",
        "content": "content",
        "tools": "tools",
        "system": "system",
    },
    DataFormat.COMPLETION: {"prompt": "prompt", "completion": "completion"},
    DataFormat.ALPACA: {
        "instruction": "instruction",
        "input": "input",
        "output": "output",
        "system": "system",
    },
    DataFormat.TEXT: {"text": "text"},
    DataFormat.SEGMENTS: {"segments": "segments"},
}
"""The columns (of a chat's messages: the keys) of each format, by the field that renames them."""

Role = Literal["system", "developer", "user", "assistant", "tool"]
"""Who speaks in a chat. A prompt is the user's, its completion the assistant's."""


class PromptTemplate(Contract):
    """An instruction as a prompt, with `{instruction}`, `{input}` and `{system}` in it."""

    with_input: str
    without_input: str


class ExcessLength(StrEnum):
    """What becomes of a sample that is longer than a sequence."""

    TRUNCATE = "Truncate"
    SPLIT = "Split"
    DROP = "Drop"
    FAIL = "Fail"


class DataSource(Contract):
    """One data set of a stage's mixture."""

    source: str
    revision: str = "main"
    subset: str | None = None
    split: str = "train"
    """With a slice, as in `train[:20%]`, only those rows."""
    weight: float = Field(default=1.0, gt=0)
    files: list[str] | None = None
    """Patterns of the files to read, instead of those that subset and split name."""
    format: DataFormat | None = None
    """None: by the columns of each file's first row."""
    fields: dict[str, str] | None = None
    """Names of columns that differ from `COLUMNS`."""
    roles: dict[Role, list[str]] | None = None
    """More names of the roles in a chat."""
    prompt_template: PromptTemplate | None = None
    """Of Alpaca rows; None: that of Stanford Alpaca."""
    train_on: list[Role] | None = None
    """Whose tokens are learned; None: the assistant's."""
    train_on_end: Literal["Turn", "All", "Last", "Never"] | None = None
    """Which ends of turns are learned; None: those of learned turns."""
    excess_length: ExcessLength | None = None
    """None: Truncate."""
    minimum_length: int | None = Field(default=None, gt=1)
    """Tokens of the shortest sample that is kept; None: all are."""
    drop_system: bool | None = None
    """Whether the system turn that a chat opens with is taken out."""


class PreparePayload(Contract):
    """What decides a stage's packed data."""

    kind: Literal["prepare"] = "prepare"
    base: ModelSource
    tokenizer: TokenizerChanges | None = None
    data: Annotated[list[DataSource], Field(min_length=1)]
    mixing: Literal["concatenate"] | None = None
    """`concatenate`: every sample once per epoch; None: in proportion to the weights."""
    sequence_length: int = Field(gt=0)
    epochs: float = Field(gt=0)
    seed: int = 0
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps to prepare, whatever `epochs` says; needs a size of a step."""
    step_sequences: int | None = Field(default=None, gt=0)
    """Packed sequences of a step; only to count `steps`."""
    step_samples: int | None = Field(default=None, gt=0)
    """Samples of a step, packed step by step; None: steps are cut from packed sequences."""
    validation_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of every source's samples that is held out from training."""

    @model_validator(mode="after")
    def _steps_have_a_size(self) -> PreparePayload:
        if self.steps and not (self.step_sequences or self.step_samples):
            raise ValueError("steps needs stepSequences or stepSamples")
        return self


Table = Literal["embed_tokens", "lm_head"]
"""The matrices with a row for each token, by PEFT's names: the embedding, and the head."""


class LoRASettings(Contract):
    """The shape of an adapter, and what its frozen base is computed in."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | str | None = None
    """Names of linear layers, or one pattern of whole names; None: every one but the head."""
    layers: list[int] | None = None
    """Decoder layers that get an adapter, from 0; None: all."""
    modules_to_save: list[Table] | None = None
    """Trained in full beside the adapter; None: neither. Tied ones are one, by either name."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    base_dtype: Literal["fp8"] | None = None
    """`fp8`: the frozen linear layers but the head in 8 bits, products too; faster, and lossy."""

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank)


class TrainPayload(Contract):
    """What decides a stage's weights, beside its data and the model it starts from."""

    kind: Literal["train"] = "train"
    method: Method
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    warmup_steps: int | None = Field(default=None, ge=0)
    """None: `warmup_ratio` decides."""
    min_learning_rate_ratio: float | None = Field(default=None, gt=0, le=1)
    """What the schedule falls to, as a share of the peak; None: zero."""
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float | None = Field(default=None, gt=0)
    """None: 1e-8."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer_states: Literal["fp32", "int8"] = "fp32"
    """How AdamW's moments are held; `int8` is smaller, and lossy."""
    sequence_length: int = Field(gt=0)
    global_batch_tokens: int = Field(gt=0)
    """Tokens per optimizer step; rounded down to whole sequences, at least one. Where `prepare`
    has cut steps of so many samples, those count, and this is what they take at most."""
    neftune_noise_alpha: float | None = Field(default=None, gt=0)
    """Size of the noise on embeddings in training; None: no noise."""
    lora: LoRASettings | None = None
    continue_adapter: bool = False
    """Start from the previous stage's adapter instead of a fresh one."""
    seed: int = 0

    @model_validator(mode="after")
    def _adapter_matches_method(self) -> TrainPayload:
        if self.method.is_adapter != (self.lora is not None):
            raise ValueError(
                f"method {self.method} {'needs' if self.lora is None else 'takes no'} lora"
            )
        if self.continue_adapter and not self.method.is_adapter:
            raise ValueError("continueAdapter needs method LoRA or QLoRA")
        if self.lora and self.lora.base_dtype and self.method is not Method.LORA:
            raise ValueError("lora.baseDtype needs method LoRA: QLoRA's base is NF4")
        return self

    @property
    def sequences_per_step(self) -> int:
        """Packed sequences per optimizer step, over all processes."""
        return sequences_per_step(self.global_batch_tokens, self.sequence_length)


class MergePayload(Contract):
    """What decides a merged model, beside the adapter and the base."""

    kind: Literal["merge"] = "merge"


class SuiteRequest(Contract):
    """One evaluation suite, and how many held-out problems it asks."""

    suite: str
    samples: int = Field(default=64, gt=0)
    seed: int = 0


class EvaluatePayload(Contract):
    """What decides a score table, beside the model."""

    kind: Literal["evaluate"] = "evaluate"
    suites: list[SuiteRequest]


class PublishPayload(Contract):
    """Where the finished model goes, and as what."""

    kind: Literal["publish"] = "publish"
    repository: str
    artifact: Literal["Merged", "Adapter"]
    private: bool = True


Payload = Annotated[
    PreparePayload | TrainPayload | MergePayload | EvaluatePayload | PublishPayload,
    Field(discriminator="kind"),
]


# --- runtime: how a step is executed, never part of a digest -----------------------------------


class Recipe(Contract):
    """How a later step's digest follows from its inputs, so that `prepare` can look results up.

    `inputs` names other recipes, or steps whose digests are in `PrepareRuntime.known`.
    """

    name: str
    kind: StepKind
    payload: dict[str, Any]
    inputs: list[str]


class PrepareRuntime(Contract):
    """Checks and look-ups that prepare makes without changing its result.

    The checks are made on every run, also when the packed data is reused: they are cheap, and what
    they guard (method, destination) is not part of the digest.
    """

    method: Method
    merges: bool = False
    """Whether this stage's adapter will be merged; refused in preflight over a 4-bit base."""
    destination: PublishPayload | None = None
    """Checked for write access before anything is downloaded."""
    step_name: str = ""
    """This step's name in `lookup`'s inputs."""
    known: dict[str, str] = {}
    """Digests of prepare steps already done, by step name."""
    lookup: list[Recipe] = []
    """Later steps, in order; those whose artifact is complete are reported in `found`."""


class Offload(StrEnum):
    """What ZeRO keeps in host memory."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    ALL = "all"


class Recompute(StrEnum):
    """What is computed again in backward instead of kept from forward, in every decoder layer."""

    AUTO = "auto"
    """As little as the memory at hand allows, chosen layer by layer when training starts."""
    NOTHING = "nothing"
    ELEMENTWISE = "elementwise"
    """Norms and the gated product: costs under a hundredth, saves a third."""
    LAYERS = "layers"
    """Whole layers: only their inputs are kept."""
    OFFLOAD = "offload"
    """Whole layers, and their inputs are kept in pinned host memory."""


class Strategy(Contract):
    """How a training step uses the hardware."""

    processes: int = Field(default=1, gt=0)
    """Processes per pod: one per GPU, or one on CPU."""
    nodes: int = Field(default=1, gt=0)
    micro_batch: int = Field(default=1, gt=0)
    """Packed sequences per process and forward pass."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Offload = Offload.NONE
    recompute: Recompute = Recompute.AUTO
    precision: Literal["bf16", "fp32"] = "bf16"


class TrainRuntime(Contract):
    """How this attempt trains."""

    base_path: str
    """The base model's folder: absolute, or relative to the store's root."""
    data: str
    """Digest of the prepare artifact."""
    upstream_model: str | None = None
    """Digest of the train or merge artifact whose model this stage starts from; None: the base."""
    upstream_adapter: str | None = None
    """Digest of the train artifact whose adapter this stage continues or builds on."""
    strategy: Strategy = Field(default_factory=Strategy)
    checkpoint_every_steps: int | None = Field(default=None, gt=0)
    checkpoint_every_seconds: float = Field(default=600, gt=0)
    keep_checkpoints: int = Field(default=2, gt=0)


class MergeRuntime(Contract):
    """Where the pieces of a merge lie."""

    base_path: str
    upstream_model: str | None = None
    adapter: str


class ModelRef(Contract):
    """A model to load: a folder or an artifact, with an adapter on top if one is named."""

    name: str
    """What the score table calls it: `base`, or a stage's name."""
    base_path: str
    base_revision: str
    artifact: str | None = None
    adapter: str | None = None
    tokenizer: str | None = None
    """A digest of what differs from the base's own tokenizer; None: nothing."""

    @property
    def identity(self) -> str:
        """A digest of exactly this model; scores of one identity are computed once."""
        changed = [] if self.tokenizer is None else [self.tokenizer]
        return digest_of(self.base_revision, self.artifact, self.adapter, *changed)


class EvaluateRuntime(Contract):
    """The models to score, this stage's first, then those it is compared with."""

    model: ModelRef
    compare: list[ModelRef] = []
    batch_size: int = Field(default=32, gt=0)


class StageRecord(Contract):
    """What the model card says of one finished stage."""

    name: str
    method: Method
    data: list[DataSource]
    hyperparameters: dict[str, Any]
    prepare: str | None = None
    """Digest of the prepare artifact: resolved data revisions, token counts, the base's licence."""
    train: str
    """Digest of the train artifact."""
    evaluate: str | None = None
    """Digest of the evaluate artifact."""


class PublishRuntime(Contract):
    """What is uploaded and what the model card is made of."""

    title: str
    base: ModelSource
    base_path: str
    model: ModelRef
    stages: list[StageRecord]
    cost: str | None = None
    """Money spent so far, as a person reads it, such as `41.20 USD`."""
    token_env: str = "HF_TOKEN"  # noqa: S105  (the variable's name, not a token)


Runtime = PrepareRuntime | TrainRuntime | MergeRuntime | EvaluateRuntime | PublishRuntime


class _StepBase(Contract):
    schema_version: Literal[1] = 1
    training: str
    """`namespace/name` of the StackedTraining."""
    stage: str = ""
    """The stage's name; empty for publish."""
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The digest of payload and inputs: where the result goes (prepare adds resolved revisions)."""


class PrepareConfig(_StepBase):
    """One `prepare` step."""

    step: Literal["prepare"] = "prepare"
    payload: PreparePayload
    runtime: PrepareRuntime


class TrainConfig(_StepBase):
    """One `train` step."""

    step: Literal["train"] = "train"
    payload: TrainPayload
    runtime: TrainRuntime


class MergeConfig(_StepBase):
    """One `merge` step."""

    step: Literal["merge"] = "merge"
    payload: MergePayload = Field(default_factory=MergePayload)
    runtime: MergeRuntime


class EvaluateConfig(_StepBase):
    """One `evaluate` step."""

    step: Literal["evaluate"] = "evaluate"
    payload: EvaluatePayload
    runtime: EvaluateRuntime


class PublishConfig(_StepBase):
    """The `publish` step."""

    step: Literal["publish"] = "publish"
    payload: PublishPayload
    runtime: PublishRuntime


StepConfig = Annotated[
    PrepareConfig | TrainConfig | MergeConfig | EvaluateConfig | PublishConfig,
    Field(discriminator="step"),
]


# --- results and progress ---------------------------------------------------------------------


class ModelFacts(Contract):
    """What `prepare` learned of the base model."""

    path: str
    """Its folder: absolute, or relative to the store's root."""
    revision: str
    """The commit, or a fingerprint of a local folder."""
    tokenizer: str | None = None
    """A digest of what differs from its own tokenizer; None: nothing."""
    architecture: str
    parameters: int
    hidden_size: int
    layers: int
    vocabulary: int
    quantization: str | None = None
    """`nf4`, `int4`, `gptq`, …; None for 16- and 32-bit weights."""
    licence: str | None = None
    config: dict[str, Any] | None = None
    """What sizes follow from in its `config.json`; None in results of earlier versions."""


class DataFacts(Contract):
    """What `prepare` counted in one source."""

    source: str
    revision: str
    samples: int
    tokens: int
    truncated: int = 0
    """Samples cut, or split, at the sequence length."""
    dropped: int = 0
    """Samples left out because they are longer, or too short."""
    skipped: int = 0
    """Samples with nothing to learn from."""
    held_out: int = 0
    """Samples kept for validation."""


class PrepareResult(Contract):
    """What `prepare` leaves behind."""

    kind: Literal["prepare"] = "prepare"
    artifact: str
    """Digest of the packed data, covering every resolved revision."""
    base: ModelFacts
    data: list[DataFacts]
    sequences: int
    """Packed sequences over all epochs."""
    tokens: int
    """Real (non-padding) tokens over all epochs."""
    target_tokens: int
    """Tokens that the loss is taken on."""
    validation_tokens: int | None = None
    """Real tokens held out for validation; None: no samples are."""
    found: dict[str, StepResult] = {}
    """Results of later steps that are already complete in the store, by digest."""


class PhaseTimes(Contract):
    """One figure for each part of a training step; a part that was not measured has none.

    On a GPU it is the GPU's own time: `data` and `checkpoint` are how long it stood still for them,
    and work of the host that it did not wait for counts nothing.
    """

    data: float | None = None
    forward: float | None = None
    backward: float | None = None
    """With what is computed again."""
    optimizer: float | None = None
    """With what processes exchange outside of forward and backward."""
    checkpoint: float | None = None
    validation: float | None = None

    @property
    def aside(self) -> float:
        """The sum over what is no part of a step itself."""
        return (self.checkpoint or 0.0) + (self.validation or 0.0)


class Speed(Contract):
    """How well the hardware is used; what is not known (on a CPU, most) is left out."""

    model_flops_per_second: float | None = None
    """Of all GPUs together, counted as `estimate.flops` says."""
    mfu: float | None = None
    """The same as a share of the GPUs' dense bf16 peak."""
    peak_memory_allocated_bytes: int | None = None
    """Most that tensors took on the first process's GPU in this attempt."""
    peak_memory_reserved_bytes: int | None = None
    """Most that torch held of that GPU for them; this is what has to fit."""


class TrainResult(Speed):
    """What `train` leaves behind.

    Speed is that of the whole stage as if every attempt had used the GPUs of the last.
    """

    kind: Literal["train"] = "train"
    steps: int
    tokens: int
    first_loss: float
    final_loss: float
    validation_loss: float | None = None
    """Of the finished model, on the samples held out; None: there are none."""
    seconds: float
    """Spent in steps, checkpoints aside."""
    tokens_per_second: float
    """Real tokens, over those seconds."""
    seconds_by_phase: PhaseTimes | None = None
    processes: int | None = None
    """Those that trained together: one for each GPU."""
    gpu: str | None = None
    """The GPU's name as its driver gives it."""


class MergeResult(Contract):
    """What `merge` leaves behind."""

    kind: Literal["merge"] = "merge"
    bytes: int
    max_logit_difference: float
    """Largest difference of log-probabilities, merged against base plus adapter."""
    top1_agreement: float
    """Share of positions whose most likely token is the same."""


class Score(Contract):
    """One suite's figure with its 95 % interval."""

    suite: str
    value: float
    low: float
    high: float
    n: int
    extra: dict[str, float] = {}


class PairedDrop(Contract):
    """How much a suite fell from another model to this one, on the same problems."""

    suite: str
    against: str
    """`base` or `previous`."""
    drop: float
    low: float
    high: float


class ModelScores(Contract):
    """One row of the score table."""

    model: str
    scores: list[Score]


class EvaluateResult(Contract):
    """The score table: this stage's model first, then those it is compared with."""

    kind: Literal["evaluate"] = "evaluate"
    table: list[ModelScores]
    drops: list[PairedDrop] = []


class PublishResult(Contract):
    """Where the finished model is."""

    kind: Literal["publish"] = "publish"
    url: str
    commit: str
    bytes: int
    files: int


StepResult = Annotated[
    PrepareResult | TrainResult | MergeResult | EvaluateResult | PublishResult,
    Field(discriminator="kind"),
]


class StepState(StrEnum):
    """Where a step's process stands, in its own words."""

    RUNNING = "Running"
    DONE = "Done"
    INTERRUPTED = "Interrupted"
    FAILED = "Failed"


class TrainMeters(Speed):
    """The gauges of a running `train` step, over its last steps.

    Throughput counts real tokens, and no time that training stood still for a checkpoint: it says
    how fast training is. `phases` says what checkpoints cost.
    """

    step: int
    total_steps: int
    loss: float | None = None
    validation_loss: float | None = None
    """As last measured, at the end of an epoch."""
    learning_rate: float | None = None
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    phases: PhaseTimes | None = None
    """Shares of the time; what is missing to 1 is in no phase."""
    checkpoint_step: int | None = None
    """The last step that survives a kill."""


class Progress(Contract):
    """What a step reports, at most every few seconds and only when something moved."""

    schema_version: Literal[1] = 1
    step: StepKind
    digest: str
    state: StepState
    message: str
    """One sentence: what is being done, or why it ended."""
    fraction: float = Field(default=0.0, ge=0, le=1)
    eta_seconds: float | None = Field(default=None, ge=0)
    updated_at: str
    """RFC 3339, UTC."""
    reused: bool = False
    """Done because the artifact was already complete."""
    base: ModelFacts | None = None
    """What a running `prepare` has learned of the base, before its weights move."""
    train: TrainMeters | None = None
    result: StepResult | None = None
    exit_code: int | None = None
