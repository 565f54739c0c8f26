"""Keys of hardware, speed, logging and saving: LatticeForge decides them, or has them anyway."""

from __future__ import annotations

from collections.abc import Iterable

from latticeforge_operator.axolotl.lines import Line, ignored, implied, unsupported
from latticeforge_operator.axolotl.rules import Key, decided, harmless, keys, refused, switches
from latticeforge_operator.axolotl.settings import Settings, counted, texts

_PLANNER = "the planner chooses GPUs, ZeRO stage and offload"
_KERNELS = "fused kernels are used wherever they exist"
_ATTENTION = "the fastest attention that is exact for packed samples"
_LOGGED = "loss, speed, memory and cost are in status, the log and Prometheus"
_CHECKPOINTS = "checkpoints are written every ten minutes, and on SIGTERM; the last two are kept"
_EVALUATED = "evaluate gates score the result on held-out problems"

_PLUGINS = {
    "CutCrossEntropyPlugin": _KERNELS,
    "LigerPlugin": _KERNELS,
    "KernelsPlugin": _KERNELS,
    "ExpertParallelPlugin": _PLANNER,
    "SwanLabPlugin": _LOGGED,
    "LMEvalPlugin": _EVALUATED,
}
"""By the last part of its path: what is done without it."""


def _plugins(key: str, value: list[str], _settings: Settings) -> Iterable[Line]:
    for index, name in enumerate(value):
        where = f"{key}[{index}]"
        known = _PLUGINS.get(name.rpartition(".")[2])
        if known is None:
            yield unsupported(where, f"{name}: what this plugin changes is not done here")
        else:
            yield implied(where, known)


def _parallel(key: str, value: int, _settings: Settings) -> Iterable[Line]:
    if value == 1:
        yield ignored(key, "off")
    else:
        yield implied(key, f"{_PLANNER}; its GPUs count once in the batch")


SURROUNDINGS: dict[str, Key] = {
    **keys("plugins", _plugins, texts),
    **keys(
        "context_parallel_size sequence_parallel_degree tensor_parallel_size", _parallel, counted
    ),
    **keys(
        "deepspeed fsdp fsdp_config fsdp_version fsdp_final_state_dict_type deepcompile "
        "dp_shard_size dp_replicate_size expert_parallel_size expert_parallel_backend "
        "expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes "
        "expert_parallel_token_capacity expert_parallel_fallback_on_unsupported heads_k_stride "
        "ring_attn_func device device_map world_size local_rank ddp ddp_timeout "
        "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters accelerator_config "
        "max_memory gpu_memory_limit low_cpu_mem_usage experimental_skip_move_to_device "
        "use_ray ray_run_name ray_num_workers resources_per_worker",
        decided(_PLANNER),
    ),
    **keys(
        "torch_compile torch_compile_backend torch_compile_mode torch_compile_options "
        "lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel use_kernels "
        "chunked_cross_entropy chunked_cross_entropy_num_chunks cut_cross_entropy "
        "flash_attn_cross_entropy flash_attn_fuse_mlp flash_attn_rms_norm fused_attn_kernel "
        "tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp liger_rope liger_rms_norm "
        "liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation "
        "liger_cross_entropy liger_fused_linear_cross_entropy llama4_linearized_experts "
        "experts_implementation expert_backend moe_grouped_backend moe_dequant_chunk_size "
        "moe_bnb_fast use_scattermoe use_sonicmoe use_dsv4_kernels use_glm_dsa_kernels",
        decided(_KERNELS),
    ),
    **keys(
        "attn_implementation flash_attention sdp_attention xformers_attention flex_attention "
        "eager_attention sage_attention flash_optimum sdpa_varlen flash_attn_d512 "
        "large_head_attention gemma4_hybrid_attn_impl flex_attn_compile_kwargs "
        "pretrain_multipack_attn",
        decided(_ATTENTION),
    ),
    **switches("quantize_moe_experts", decided("experts stay in 16 bits, which is more exact")),
    **keys(
        "nonexpert_quantization model_quantization_config model_quantization_config_kwargs "
        "dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel dsv4_bf16_all "
        "dsv4_fp4_grouped_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert nvfp4_merge_aware "
        "nvfp4_merge_aware_start_step",
        refused("a base in MXFP4, NVFP4 or FP8 blocks: train over the 16-bit model, or QLoRA"),
    ),
    **keys(
        "use_wandb wandb_name wandb_run_id wandb_mode wandb_project wandb_entity wandb_watch "
        "wandb_log_model use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name "
        "hf_mlflow_log_artifacts use_comet comet_api_key comet_workspace comet_project_name "
        "comet_experiment_key comet_mode comet_online comet_experiment_config use_trackio "
        "trackio_project_name trackio_run_name trackio_space_id use_otel_metrics "
        "otel_metrics_host otel_metrics_port use_swanlab swanlab_project swanlab_experiment_name "
        "swanlab_description swanlab_mode swanlab_workspace swanlab_api_key swanlab_log_model "
        "swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret "
        "swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer "
        "use_tensorboard logging_steps profiler_steps profiler_steps_start "
        "include_tokens_per_second include_tkps",
        harmless(_LOGGED),
    ),
    **keys(
        "save_steps saves_per_epoch save_strategy save_total_limit save_first_step "
        "save_only_model dynamic_checkpoint auto_resume_from_checkpoints",
        decided(_CHECKPOINTS),
    ),
    **keys("resume_from_checkpoint", refused("a run goes on from its own checkpoints only")),
    **keys(
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split "
        "metric_for_best_model greater_is_better eval_table_size eval_max_new_tokens "
        "generate_samples num_generation_samples generation_max_new_tokens "
        "generation_temperature generation_top_p generation_top_k generation_prompt_ratio "
        "generation_do_sample lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model",
        harmless(_EVALUATED),
    ),
    **keys(
        "gc_steps torch_empty_cache_steps gc_collect_steps",
        decided("memory that a step frees is kept for the next"),
    ),
    **keys(
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens "
        "gradio_temperature",
        harmless("belongs to chatting with the result"),
    ),
    **keys(
        "strict axolotl_config_path is_falcon_derived_model is_llama_derived_model "
        "is_mistral_derived_model is_qwen_derived_model torchdistx_path",
        harmless("steers Axolotl itself"),
    ),
    **keys(
        "max_packed_sequence_len adam_eps debug eta_min gptq_groupsize gptq_model_v1 "
        "gptq_disable_exllama test_value "
        "unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o "
        "unsloth_rms_norm unsloth_rope",
        harmless("Axolotl does not read it, or no longer"),
    ),
    **keys(
        "adam_epsilon2 adam_beta3 dion_lr dion_momentum dion_rank_fraction "
        "dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap qgalore_scale "
        "qgalore_proj_type qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size "
        "qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size",
        harmless("belongs to an optimizer that does not exist here"),
    ),
    **keys("s2_attention", refused("shifted sparse attention: attention is exact here")),
    **keys(
        "scaling_softmax scaling_softmax_factor scaling_softmax_bias",
        refused("attention is computed as the architecture says here"),
    ),
    **keys(
        "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks",
        refused("positions are not skipped here"),
    ),
    **keys("use_eaft", refused("entropy-weighted loss: every learned token counts the same here")),
    **keys("eaft_alpha eaft_k", harmless("has no effect by itself")),
    **keys("liger_use_token_scaling", refused("every learned token counts the same here")),
    **keys("use_onebitllms", refused("1.58-bit training does not exist here")),
    **keys("trainer_cls", refused("a trainer of one's own is not run here")),
    **keys("qat quantization", refused("quantization-aware training does not exist here")),
    **keys("llmcompressor", refused("sparsity is not kept here")),
    **keys(
        "relora relora_prune_ratio relora_prune_method relora_cpu_offload",
        refused("ReLoRA: an adapter is merged once, at the end of its stage"),
    ),
    **keys(
        "lisa_n_layers lisa_step_interval lisa_layers_attribute",
        refused("LISA: all layers are trained in every step here"),
    ),
    **keys(
        "spectrum_top_fraction spectrum_model_name",
        refused("Spectrum: all layers are trained here"),
    ),
    **keys("grokfast_alpha grokfast_lamb", refused("gradients are not filtered here")),
    **keys("dense_mixer", refused("the router gets gradients from the chosen experts alone here")),
    **keys("mora", refused("MoRA: a form of adapter that does not exist here")),
    **keys("hatchery", refused("remote training: it runs on your own GPUs here")),
}
"""Keys of this module, with their rules."""
