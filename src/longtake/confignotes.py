"""Keys of MemRoPE's, LongLive's and Self-Forcing's configuration files that mean nothing to Longtake, and why."""

from __future__ import annotations

from longtake.yamlfile import Keys

_TRAINING = "For training; nothing is trained here."
_STREAMED = "Not needed: videos of any length are decoded and written piece by piece as they are made, without a seam."
_IGNORED = {
    "long_video_mode": _STREAMED,
    "vae_chunk_size": _STREAMED,
    "low_memory": "Chosen with --offload, which can keep parts of the model in the CPU's memory.",
    "distributed": "Set by the original script itself; processes share a file of prompts with --start and --end.",
    "global_sink": "The sink frames always stay.",
    "switch_frame_indices": "Prompt changes are written in the prompts: 'a dog runs [12s] | a dog sleeps [12s]'.",
    "i2v": "A picture to start from is given with --image.",
    "negative_prompt": "Models of few steps take no negative prompt.",
    "timestep_shift": "For training; videos are made with model_kwargs.timestep_shift.",
    "adapter.dropout": _TRAINING,
    "adapter.dtype": "LoRA weights are added to the model's in float32.",
    "adapter.verbose": "Not needed: the plan says what is used.",
    "adapter.apply_to_critic": _TRAINING,
}
_FOR_TRAINING = """
    algorithm all_causal batch_size beta1 beta1_critic beta2 beta2_critic causal checkpoints config_name data
    data_max_count denoising_loss_type dfake_gen_update_ratio disable_wandb distribution_loss ema_start_step ema_weight
    eval_data_path evaluation fake_guidance_scale fake_model_kwargs fake_name fake_score_fsdp_wrap_strategy gc_interval
    generator_fsdp_wrap_strategy gradient_accumulation_steps gradient_checkpointing guidance_scale
    image_or_video_shape inference infra load_raw_video log_iters logdir logging lr lr_critic max_checkpoints max_iters
    min_num_training_frames mixed_precision no_save no_visualize num_frames num_train_timestep num_training_frames
    real_guidance_scale real_model_kwargs real_name real_score_ckpt real_score_fsdp_wrap_strategy resume_ckpt
    sampling_steps sharding_strategy slice_last_frames text_encoder_fsdp_wrap_strategy total_batch_size trainer
    training ts_schedule ts_schedule_max val_batch_size wandb_entity wandb_host wandb_key wandb_project weight_decay
"""
_IGNORED |= {key: _TRAINING for key in _FOR_TRAINING.split()}


def without_meaning(keys: Keys) -> list[tuple[str, str]]:
    """A note, (key, sentence), for every key that is there and was not read."""
    notes = []
    for key, value in keys.data.items():
        inner = [f"{key}.{name}" for name in value] if key in ("model_kwargs", "adapter") and value else [key]
        for name in inner:
            if name not in keys.read:
                notes.append((name, _IGNORED.get(name, "Not known, and not read.")))
    return notes
