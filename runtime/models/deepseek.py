"""DeepSeek V2 and V3: latent attention, some dense layers first, then experts with shared ones beside them."""

from dataclasses import replace

from sirocco.runtime.config import Fields, ModelConfig, rope_parameters
from sirocco.runtime.models.hf import MAX_LAYERS, MAX_MSCALE, expert_counts, num_layers, rope_spec, yarn_temperature
from sirocco.runtime.models.llama import LLAMA_NAMES, llama_model
from sirocco.runtime.models.registry import architecture
from sirocco.runtime.models.spec import (
    BlockSpec,
    FfnSpec,
    MlaSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormSpec,
    RoutingSpec,
    SigmoidRouting,
    SoftmaxRouting,
    WeightNames,
)

LATENT_EPS = 1e-6  # of the norms over latents, whatever the config says of the others

_ATTENTION = "model.layers.*.self_attn"
_FFN = "model.layers.*.mlp"
DEEPSEEK_NAMES: WeightNames = {
    **LLAMA_NAMES,
    "layers.*.mixer.q_kv": (f"{_ATTENTION}.q_proj", f"{_ATTENTION}.kv_a_proj_with_mqa"),
    "layers.*.mixer.qa_kv": (f"{_ATTENTION}.q_a_proj", f"{_ATTENTION}.kv_a_proj_with_mqa"),
    "layers.*.mixer.q_norm": (f"{_ATTENTION}.q_a_layernorm",),
    "layers.*.mixer.q_b": (f"{_ATTENTION}.q_b_proj",),
    "layers.*.mixer.kv_norm": (f"{_ATTENTION}.kv_a_layernorm",),
    "layers.*.mixer.kv_b": (f"{_ATTENTION}.kv_b_proj",),
    "layers.*.ffn.router": (f"{_FFN}.gate",),
    "layers.*.ffn.experts.up": tuple(f"{_FFN}.experts.#.{part}_proj" for part in ("gate", "up")),
    "layers.*.ffn.experts.down": (f"{_FFN}.experts.#.down_proj",),
    "layers.*.ffn.shared.gate_up": tuple(f"{_FFN}.shared_experts.{part}_proj" for part in ("gate", "up")),
    "layers.*.ffn.shared.down": (f"{_FFN}.shared_experts.down_proj",),
}


@architecture("DeepseekV2ForCausalLM", names=DEEPSEEK_NAMES)
def deepseek_v2(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    method = hf.string("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise hf.error("topk_method", f"is {method!r}; known are greedy and group_limited_greedy")
    num_groups, top_groups = (1, 1) if method == "greedy" else _groups(hf, None, None)
    # As trained: weights that are normalised are not scaled.
    normalize = hf.boolean("norm_topk_prob", False)
    scale = 1.0 if normalize else hf.number("routed_scaling_factor", 1.0)
    return _deepseek(config, SoftmaxRouting(normalize, num_groups, top_groups, scale), interleaved=True)


@architecture("DeepseekV3ForCausalLM", names=DEEPSEEK_NAMES)
def deepseek_v3(config: ModelConfig) -> ModelSpec:
    hf = config.fields
    model = _deepseek(
        config, sigmoid_routing(hf, 2.5, num_groups=8, top_groups=4), interleaved=hf.boolean("rope_interleave", True)
    )
    return without_extra_layers(hf, model)


def sigmoid_routing(hf: Fields, scale: float, num_groups: int = 1, top_groups: int = 1) -> SigmoidRouting:
    """V3's routing, with this scale and these groups where the config does not give them."""
    normalize = hf.boolean("norm_topk_prob", True)
    return SigmoidRouting(
        normalize, *_groups(hf, num_groups, top_groups), scale=hf.number("routed_scaling_factor", scale)
    )


def without_extra_layers(hf: Fields, model: ModelSpec) -> ModelSpec:
    """The model, whose checkpoint may hold layers past its last that predict tokens after the next."""
    extra, count = hf.integer("num_nextn_predict_layers", 1, 0, MAX_LAYERS), len(model.layers)
    return replace(model, unused_weights=tuple(f"model.layers.{count + i}." for i in range(extra)))


def expert_layers(hf: Fields, routing: RoutingSpec, num_dense: int) -> tuple[FfnSpec, ...]:
    """The feed-forward of each layer: so many dense ones, then experts with shared ones beside them."""
    num_experts, top_k = expert_counts(hf, "n_routed_experts")
    activation = hf.string("hidden_act", "silu")
    expert_width, num_shared = hf.integer("moe_intermediate_size"), hf.integer("n_shared_experts", 0, minimum=0)
    shared = MlpSpec(expert_width * num_shared, activation) if num_shared else None
    sparse = MoeSpec(num_experts, top_k, MlpSpec(expert_width, activation), routing, shared)
    dense = MlpSpec(hf.integer("intermediate_size"), activation)
    return tuple(dense if i < num_dense else sparse for i in range(num_layers(hf)))


def _deepseek(config: ModelConfig, routing: RoutingSpec, interleaved: bool) -> ModelSpec:
    hf = config.fields
    mixer, norm = latent_attention(hf, interleaved), NormSpec(hf.number("rms_norm_eps", 1e-6, minimum=0.0))
    ffns = expert_layers(hf, routing, hf.integer("first_k_dense_replace", 0, minimum=0))
    return llama_model(config, tuple(BlockSpec(mixer, ffn, norm) for ffn in ffns))


def latent_attention(hf: Fields, interleaved: bool) -> MlaSpec:
    nope_dim, rope_dim = hf.integer("qk_nope_head_dim"), hf.integer("qk_rope_head_dim")
    q_rank, bias = hf.optional_integer("q_lora_rank"), hf.boolean("attention_bias", False)
    if bias and q_rank is None:
        raise hf.error("attention_bias", "is not supported without q_lora_rank")
    return MlaSpec(
        num_heads=hf.integer("num_attention_heads"),
        q_rank=q_rank,
        rank=hf.integer("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=hf.integer("v_head_dim"),
        scale=(nope_dim + rope_dim) ** -0.5 * _temperature(hf) ** 2,
        rope=rope_spec(hf, rope_dim, interleaved=interleaved),
        norm=NormSpec(LATENT_EPS),
        bias=bias,
    )


def _temperature(hf: Fields) -> float:
    """Of yarn's, the part that all dimensions share scales the scores, not the tables of the rotary embedding."""
    rope = rope_parameters(hf)
    weight = rope.number("mscale_all_dim", 0.0, 0.0, MAX_MSCALE)
    if rope.string("rope_type") == "default" or not weight:
        return 1.0
    return yarn_temperature(rope.number("factor", minimum=0.01), weight)


def _groups(hf: Fields, num_groups: int | None, top_groups: int | None) -> tuple[int, int]:
    """Into how many groups the experts fall, and how many of them a token's experts may come from.

    The given ones hold where the config has none; without them it must have its own.
    """
    num_groups, top_groups = hf.integer("n_group", num_groups), hf.integer("topk_group", top_groups)
    num_experts, top_k = expert_counts(hf, "n_routed_experts")
    if num_experts % num_groups:
        raise hf.error("n_group", f"({num_groups}) does not divide n_routed_experts ({num_experts})")
    if top_groups > num_groups:
        raise hf.error("topk_group", f"({top_groups}) is more than n_group ({num_groups})")
    if num_groups > num_experts // 2:
        raise hf.error("n_group", f"({num_groups}) leaves groups of a single expert")
    if top_k > num_experts // num_groups * top_groups:
        raise hf.error("num_experts_per_tok", f"({top_k}) is more than the experts of {top_groups} groups")
    return num_groups, top_groups
