"""A stage as its user wrote it → what decides the results of its prepare and train steps."""

from __future__ import annotations

from latticeforge_operator.api import Stage
from latticeforge_operator.api.hyperparameters import Hyperparameters, LoRA
from latticeforge_operator.api.training import Base, Handoff
from latticeforge_trainer.contract import (
    ChatTemplate,
    DataSource,
    LoRASettings,
    ModelSource,
    PreparePayload,
    SpecialTokens,
    TokenizerChanges,
    TrainPayload,
    sequences_per_step,
)


def prepare_payload(base: Base, stage: Stage) -> PreparePayload:
    """What decides a stage's packed data."""
    parameters = stage.hyperparameters
    step_sequences = None
    if parameters.max_steps and not parameters.global_batch_samples:
        step_sequences = sequences_per_step(
            parameters.global_batch_tokens, parameters.sequence_length
        )
    return PreparePayload(
        base=ModelSource(model=base.model, revision=base.revision),
        tokenizer=_tokenizer_changes(base),
        data=[DataSource(**data.model_dump(exclude_none=True)) for data in stage.data],
        mixing="concatenate" if stage.mixing == "Concatenate" else None,
        sequence_length=parameters.sequence_length,
        epochs=parameters.epochs,
        seed=parameters.seed,
        steps=parameters.max_steps,
        step_sequences=step_sequences,
        step_samples=parameters.global_batch_samples,
        validation_share=_number(parameters.validation_share),
    )


def train_payload(stage: Stage) -> TrainPayload:
    """What decides a stage's weights."""
    parameters = stage.hyperparameters
    return TrainPayload(
        method=stage.method,
        learning_rate=float(parameters.learning_rate),
        schedule=parameters.schedule,
        warmup_ratio=float(parameters.warmup_ratio),
        warmup_steps=parameters.warmup_steps,
        min_learning_rate_ratio=_number(parameters.min_learning_rate_ratio) or None,
        weight_decay=float(parameters.weight_decay),
        adam_beta1=float(parameters.adam_beta1),
        adam_beta2=float(parameters.adam_beta2),
        adam_epsilon=_number(parameters.adam_epsilon),
        max_grad_norm=float(parameters.max_grad_norm),
        optimizer_states="int8" if parameters.optimizer_states == "INT8" else "fp32",
        sequence_length=parameters.sequence_length,
        global_batch_tokens=_tokens_per_step(parameters),
        neftune_noise_alpha=_number(parameters.neftune_noise_alpha) or None,
        lora=_settings(stage.lora or LoRA()) if stage.method.is_adapter else None,
        continue_adapter=stage.handoff is Handoff.CONTINUE_ADAPTER,
        seed=parameters.seed,
    )


def _tokens_per_step(parameters: Hyperparameters) -> int:
    """Tokens of a step; of a step of samples, what they take at most."""
    if parameters.global_batch_samples is None:
        return parameters.global_batch_tokens
    return parameters.global_batch_samples * parameters.sequence_length


def _settings(lora: LoRA) -> LoRASettings:
    return LoRASettings(
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=float(lora.dropout),
        target_modules=lora.target_pattern or lora.target_modules,
        layers=lora.layers,
        modules_to_save=sorted(set(lora.modules_to_save)) if lora.modules_to_save else None,
        rank_stabilized=lora.rank_stabilized,
        base_dtype="fp8" if lora.base_dtype == "FP8" else None,
    )


def _tokenizer_changes(base: Base) -> TokenizerChanges | None:
    template, tokens = base.chat_template, base.special_tokens
    if template is None and tokens is None and base.vocabulary is None:
        return None
    model = None
    if template is not None and template.model is not None:
        model = ModelSource(model=template.model, revision=template.revision)
    return TokenizerChanges(
        vocabulary=base.vocabulary,
        chat_template=template
        and ChatTemplate(jinja=template.jinja, preset=template.preset, model=model),
        special_tokens=tokens and SpecialTokens(**tokens.model_dump()),
    )


def _number(text: str | None) -> float | None:
    return None if text is None else float(text)
