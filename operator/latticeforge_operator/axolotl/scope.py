"""Trainings that are not supervised fine-tuning: said in one sentence each, and never imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latticeforge_operator.axolotl.rules import Key, harmless, keys
from latticeforge_operator.axolotl.settings import ConfigError

_ONLY = "LatticeForge does supervised fine-tuning of language models"

OUT_OF_SCOPE: Mapping[str, str] = {
    "rl": f"preference and reinforcement learning ({{value}}) are out of scope; {_ONLY}",
    "reward_model": f"reward models are out of scope; {_ONLY}",
    "process_reward_model": f"process reward models are out of scope; {_ONLY}",
    "num_labels": f"classifiers are out of scope; {_ONLY}",
    "pretraining_dataset": f"pretraining is out of scope; {_ONLY}; name the data in datasets",
    "processor_type": f"multimodal training is out of scope; {_ONLY}, on text",
    "processor_config": f"multimodal training is out of scope; {_ONLY}, on text",
    "is_multimodal": f"multimodal training is out of scope; {_ONLY}, on text",
    "image_size": f"multimodal training is out of scope; {_ONLY}, on text",
    "freeze_mm_modules": f"multimodal training is out of scope; {_ONLY}, on text",
    "diffusion": f"diffusion language models are out of scope; {_ONLY}, token by token",
    "kd_trainer": f"distillation is out of scope; {_ONLY}",
    "nemo_gym_enabled": f"reinforcement learning in NeMo Gym is out of scope; {_ONLY}",
}
"""Keys that ask for such a training, with the sentence that says so."""

_BELONGING = (
    "trl vllm ebft center_rewards_coefficient dpo_use_weighting dpo_label_smoothing "
    "precompute_ref_log_probs dpo_use_liger_kernel dpo_padding_free dpo_loss_type "
    "dpo_loss_weights dpo_beta dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss "
    "rpo_alpha orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight "
    "rl_beta image_resize_algorithm processor_kwargs role_boundaries "
    "pretraining_sample_concatenation kd_ce_alpha kd_alpha kd_temperature kd_beta "
    "kd_normalize_topk kd_online_server_base_url kd_online_topk kd_online_server "
    "kd_online_timeout kd_temperature_min nemo_gym_dir nemo_gym_auto_clone "
    "nemo_gym_config_paths nemo_gym_head_port nemo_gym_server_timeout nemo_gym_verify_timeout "
    "nemo_gym_run_timeout nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name "
    "nemo_gym_multi_turn nemo_gym_max_turns"
)

SCOPE: dict[str, Key] = {
    **keys(" ".join(OUT_OF_SCOPE), harmless("off")),
    **keys(_BELONGING, harmless("has no effect without the training that it belongs to")),
}
"""Keys of this module: what is left of them when the training is in scope."""


def check_scope(values: Mapping[str, Any]) -> None:
    """Check that a config asks for supervised fine-tuning.

    Raises:
        ConfigError: It asks for another training.
    """
    for key, sentence in OUT_OF_SCOPE.items():
        if values.get(key):
            raise ConfigError(key, sentence.format(value=values[key]))
