"""Every PEFT method there is: which engine merges it, or why none can.

The visible table of the 45 method types of peft 0.21.2; a test holds it to the pinned peft. No torch, no peft: the plan
is made from adapter_config.json and the adapter's header alone.

Engines: `streaming` works in the checkpoint's namespace; `phantom` lets PEFT's own layers merge, one base weight at a
time; `in-memory` does the same, but PEFT reads the base while it builds its layers, so the adapted weights must all be
there. An adapter's config is untrusted: only the fields named here ever reach a PeftConfig (`auto_mapping` and
`megatron_core` lead to importlib), and a field that is switched on and not named is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Engine = Literal["streaming", "phantom", "in-memory"]

# Fields that every config has. They say how an adapter was made and leave the merge alone; none reaches PEFT.
COMMON = frozenset({
    "task_type", "peft_type", "auto_mapping", "peft_version", "revision", "base_model_name_or_path", "inference_mode",
    "bias", "modules_to_save", "megatron_core", "runtime_config",
})  # fmt: skip
_WHERE = frozenset({"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"})


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    `marks`: what a tensor of one module is called, after the module's name. `shared`: what hangs on the tuner and
    serves every module. `bias`: a merge changes the module's bias too, where it has one. `settings`: the config fields
    that PEFT may see. `refused`: why nothing can merge it.
    """

    name: str
    engine: Engine | None = None
    marks: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    bias: bool = False
    settings: frozenset[str] = frozenset()
    refused: str = ""


def _fields(words: str, where: frozenset[str] = _WHERE) -> frozenset[str]:
    return frozenset(words.split()) | where


def _prompts(name: str) -> Method:
    return Method(name=name, refused=f"{name} adds virtual tokens to the input, which no weight of the base can hold.")


_LORA_FIELDS = (
    "r lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights rank_pattern alpha_pattern use_dora "
    "lora_bias velora_config monteclora_config use_bdlora kasa_config"
)
_LORA_MARKS = (
    "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "lora_diag",
    "lora_velora_embed", "lora_monteclora_sampler",
)  # fmt: skip

METHODS: Mapping[str, Method] = {
    # --- the streaming engine's --------------------------------------------------------------------------------
    "LORA": Method(name="LoRA", engine="streaming", marks=_LORA_MARKS, bias=True, settings=_fields(_LORA_FIELDS)),
    "TRAINABLE_TOKENS": Method(
        name="Trainable tokens", engine="streaming", marks=("token_adapter", "trainable_tokens_delta"),
        settings=_fields("token_indices init_weights"),
    ),
    # --- the phantom engine's ----------------------------------------------------------------------------------
    "ADALORA": Method(
        name="AdaLoRA", engine="phantom", marks=("lora_A", "lora_B", "lora_E", "ranknum"),
        settings=_fields(
            "r lora_alpha lora_dropout fan_in_fan_out init_lora_weights rank_pattern target_r init_r tinit tfinal "
            "deltaT beta1 beta2 orth_reg_weight total_step"
        ),
    ),
    "BEFT": Method(
        name="BEFT", engine="phantom", marks=("beft_bias",), bias=True,
        settings=_fields("init_weights", frozenset({"target_modules"})),
    ),
    "BOFT": Method(
        name="BOFT", engine="phantom", marks=("boft_R", "boft_s"),
        settings=_fields(
            "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout fan_in_fan_out init_weights"
        ),
    ),
    "C3A": Method(
        name="C3A", engine="phantom", marks=("c3a_kernel",),
        settings=_fields("block_size block_size_pattern init_weights"),
    ),
    "DEFT": Method(
        name="DEFT", engine="phantom", marks=("deft_P", "deft_R"),
        settings=_fields("r decomposition_method init_scale alpha para fan_in_fan_out deft_dropout init_weights"),
    ),
    "DELORA": Method(
        name="DeLoRA", engine="phantom", marks=("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
        settings=_fields("r delora_lambda module_dropout init_weights rank_pattern lambda_pattern"),
    ),
    "FOURIERFT": Method(
        name="FourierFT", engine="phantom", marks=("fourierft_spectrum",),
        settings=_fields("n_frequency scaling random_loc_seed fan_in_fan_out n_frequency_pattern init_weights"),
    ),
    "GLORA": Method(
        name="GLoRA", engine="phantom", bias=True, marks=("glora_A", "glora_B", "glora_C", "glora_D", "glora_E"),
        settings=_fields("r config_A_B config_C config_D_E init_weights", frozenset({"target_modules"})),
    ),
    "GRALORA": Method(
        name="GraLoRA", engine="phantom",
        marks=("gralora_A_general", "gralora_B_general", "gralora_A", "gralora_B"),
        settings=_fields("r hybrid_r alpha gralora_dropout gralora_k fan_in_fan_out init_weights"),
    ),
    "HIRA": Method(
        name="HiRA", engine="phantom", marks=("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"),
        settings=_fields("r hira_dropout fan_in_fan_out init_weights rank_pattern"),
    ),
    "HRA": Method(name="HRA", engine="phantom", marks=("hra_u",), settings=_fields("r apply_GS init_weights")),
    "IA3": Method(
        name="IA³", engine="phantom", marks=("ia3_l",), bias=True,
        settings=_fields(
            "feedforward_modules fan_in_fan_out init_ia3_weights", frozenset({"target_modules", "exclude_modules"})
        ),
    ),
    "LN_TUNING": Method(
        name="LN-tuning", engine="phantom", marks=("ln_tuning_layers",), bias=True,
        settings=_fields("", frozenset({"target_modules", "exclude_modules"})),
    ),
    "LOHA": Method(
        name="LoHa", engine="phantom",
        marks=("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        settings=_fields(
            "r alpha rank_dropout module_dropout use_effective_conv2d init_weights rank_pattern alpha_pattern"
        ),
    ),
    "LOKR": Method(
        name="LoKr", engine="phantom",
        marks=("lokr_w1_a", "lokr_w1_b", "lokr_w1", "lokr_w2_a", "lokr_w2_b", "lokr_w2", "lokr_t2"),
        settings=_fields(
            "r alpha rank_dropout module_dropout use_effective_conv2d decompose_both decompose_factor "
            "rank_dropout_scale init_weights rank_pattern alpha_pattern"
        ),
    ),
    "MISS": Method(
        name="MiSS", engine="phantom", marks=("miss_block",), settings=_fields("r miss_dropout mini_r init_weights")
    ),
    "OFT": Method(
        name="OFT", engine="phantom", marks=("oft_R", "oft_embedding_R"),
        settings=_fields(
            "r oft_block_size module_dropout fan_in_fan_out init_weights coft eps block_share use_cayley_neumann "
            "num_cayley_neumann_terms"
        ),
    ),
    "PEANUT": Method(
        name="PEANuT", engine="phantom", marks=("peanut_A", "peanut_B", "peanut_encoders", "peanut_decoders"),
        settings=_fields("r depth act_fn scaling init_weights"),
    ),
    "PVERA": Method(
        name="PVeRA", engine="phantom", marks=("pvera_lambda_b", "pvera_lambda_d"), shared=("pvera_A", "pvera_B"),
        settings=_fields(
            "r projection_prng_key save_projection pvera_dropout d_initial fan_in_fan_out init_weights "
            "sample_at_inference generator_seed"
        ),
    ),
    "RANDLORA": Method(
        name="RandLoRA", engine="phantom", shared=("randlora_A", "randlora_B"),
        marks=("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B"),
        settings=_fields(
            "r projection_prng_key save_projection sparse very_sparse randlora_dropout fan_in_fan_out randlora_alpha "
            "init_weights"
        ),
    ),
    "ROAD": Method(
        name="RoAd", engine="phantom", marks=("road_theta", "road_alpha"), bias=True,
        settings=_fields("variant group_size init_weights", frozenset({"target_modules"})),
    ),
    "SHIRA": Method(
        name="SHiRA", engine="phantom", marks=("shira_weight", "shira_indices"),
        settings=_fields("r mask_type random_seed fan_in_fan_out init_weights", frozenset({"target_modules"})),
    ),
    "SUPERTUNING": Method(
        name="SuperTuning", engine="phantom",
        marks=("supertuning_values", "supertuning_indices", "supertuning_lora_A", "supertuning_lora_B"),
        settings=_fields(
            "sparsity select_top r lora_alpha lora_dropout init_weights save_precomputed_indices",
            frozenset({"target_modules"}),
        ),
    ),
    "UNILORA": Method(
        name="Uni-LoRA", engine="phantom", shared=("unilora_theta_d",),
        marks=("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B"),
        settings=_fields(
            "r proj_seed theta_d_length unilora_dropout fan_in_fan_out init_theta_d_bound init_weights save_indices"
        ),
    ),
    "VBLORA": Method(
        name="VB-LoRA", engine="phantom", marks=("vblora_logits_A", "vblora_logits_B"), shared=("vblora_vector_bank",),
        settings=_fields(
            "r num_vectors vector_length topk save_only_topk_weights vblora_dropout fan_in_fan_out "
            "init_vector_bank_bound init_logits_std"
        ),
    ),
    "VERA": Method(
        name="VeRA", engine="phantom", marks=("vera_lambda_b", "vera_lambda_d"), shared=("vera_A", "vera_B"),
        settings=_fields("r projection_prng_key save_projection vera_dropout d_initial fan_in_fan_out init_weights"),
    ),
    "WAVEFT": Method(
        name="WaveFT", engine="phantom", marks=("waveft_spectrum",),
        settings=_fields(
            "n_frequency scaling wavelet_family use_idwt random_loc_seed fan_in_fan_out n_frequency_pattern "
            "proportional_parameters init_weights"
        ),
    ),
    # --- the in-memory engine's --------------------------------------------------------------------------------
    "ADAMSS": Method(
        name="AdaMSS", engine="in-memory", marks=("adamss_A", "adamss_B", "adamss_newB"), bias=True,
        settings=_fields(
            "r num_subspaces subspace_rank init_weights use_asa asa_target_subspaces init_warmup final_warmup "
            "mask_interval asa_importance_beta asa_uncertainty_beta asa_schedule_exponent use_dynamic_rank "
            "svd_threshold random_seed"
        ),
    ),
    "FROD": Method(
        name="FRoD", engine="in-memory", marks=("frod_lambda_l", "frod_lambda_s_values"),
        shared=("frod_V", "frod_s_indices", "frod_s_size"),
        settings=_fields(
            "projection_prng_key save_projection frod_dropout fan_in_fan_out init_weights sparse_rate "
            "regularization_alpha progressbar runtime_offload_base_weight"
        ),
    ),
    "OSF": Method(
        name="OSF", engine="in-memory", marks=("osf_svd_params",),
        settings=_fields("effective_rank rank_pattern init_weights target_svd_config", frozenset({"target_modules"})),
    ),
    "PSOFT": Method(
        name="PSOFT", engine="in-memory", marks=("psoft_R",),
        settings=_fields(
            "r psoft_alpha psoft_dropout fan_in_fan_out ab_svd_init psoft_svd psoft_svd_lowrank_niter random_seed "
            "psoft_orth psoft_mag_b psoft_mag_a use_cayley_neumann num_cayley_neumann_terms cayley_neumann_eps "
            "init_weights"
        ),
    ),
    "TINYLORA": Method(
        name="TinyLoRA", engine="in-memory", marks=("tinylora_A", "tinylora_B", "tinylora_P"), shared=("tinylora_v",),
        settings=_fields(
            "r u weight_tying projection_seed save_projection init_v_bound tinylora_dropout fan_in_fan_out "
            "init_weights"
        ),
    ),
    # --- nobody's ----------------------------------------------------------------------------------------------
    "PROMPT_TUNING": _prompts("Prompt tuning"),
    "MULTITASK_PROMPT_TUNING": _prompts("Multitask prompt tuning"),
    "P_TUNING": _prompts("P-tuning"),
    "CPT": _prompts("CPT"),
    "PREFIX_TUNING": Method(
        name="Prefix tuning",
        refused="Prefix tuning adds keys and values to every attention layer, which no weight of the base can hold.",
    ),
    "CARTRIDGE": Method(
        name="Cartridge", refused="A cartridge is a trained key-value cache, which no weight of the base can hold."
    ),
    "ADAPTION_PROMPT": Method(
        name="Adaption prompt",
        refused="An adaption prompt adds an attention path of its own, which no weight of the base can hold.",
    ),
    "XLORA": Method(
        name="X-LoRA", refused="X-LoRA mixes its adapters anew for every token, so that it has no merged form."
    ),
    "POLY": Method(
        name="Poly", refused="Poly mixes its adapters by the id of the task at hand, so that it has no merged form."
    ),
    "LILY": Method(
        name="Lily", refused="Lily's router weighs its experts by the layer's input, so that it has no merged form."
    ),
    "SHADOW": Method(
        name="Shadow", refused="Shadow runs a second network beside the base, so that it has no merged form."
    ),
}  # fmt: skip
