"""Names of vision transformers."""

from jaxkd.models.weights.rules import Rule, Table

VIT = Table(
    ("timm",),
    "vit",
    (
        Rule("class_token", "cls_token"),
        Rule("distilled_token", "dist_token", optional=True),
        Rule("register_tokens", "reg_token", optional=True),
        Rule("positions", "pos_embed"),
        Rule("stem_conv", "patch_embed.proj"),
        Rule("stage{i}_block/norm{k}", "blocks.{i-1}.norm{k}"),
        Rule("stage{i}_block/scale{k}", "blocks.{i-1}.ls{k}.gamma", optional=True),
        Rule("stage{i}_block/qkv", "blocks.{i-1}.attn.qkv"),
        Rule("stage{i}_block/projection", "blocks.{i-1}.attn.proj"),
        Rule("stage{i}_block/mlp{k}", "blocks.{i-1}.mlp.fc{k}"),
        Rule("last_norm", "norm"),
        Rule("head", "head"),
        Rule("distilled_head", "head_dist", optional=True),
    ),
)

_LAYER = "encoder.layers.encoder_layer_{i-1}"

TORCHVISION_VIT = Table(
    ("torchvision",),
    "vit",
    (
        Rule("class_token", "class_token"),
        Rule("positions", "encoder.pos_embedding"),
        Rule("stem_conv", "conv_proj"),
        Rule("stage{i}_block/norm{k}", f"{_LAYER}.ln_{{k}}"),
        Rule("stage{i}_block/qkv", f"{_LAYER}.self_attention.in_proj_{{leaf}}"),
        Rule("stage{i}_block/projection", f"{_LAYER}.self_attention.out_proj"),
        Rule("stage{i}_block/mlp{k}", f"{_LAYER}.mlp.{{3k-3}}"),
        Rule("last_norm", "encoder.ln"),
        Rule("head", "heads.head"),
    ),
)

_HF_LAYER = "vit.encoder.layer.{i-1}"

_HF_QKV = tuple(
    f"{_HF_LAYER}.attention.attention.{part}" for part in ("query", "key", "value")
)

TRANSFORMERS_VIT = Table(
    ("transformers",),
    "vit",
    (
        Rule("class_token", "vit.embeddings.cls_token"),
        Rule("positions", "vit.embeddings.position_embeddings"),
        Rule("stem_conv", "vit.embeddings.patch_embeddings.projection"),
        Rule("stage{i}_block/norm1", f"{_HF_LAYER}.layernorm_before"),
        Rule("stage{i}_block/norm2", f"{_HF_LAYER}.layernorm_after"),
        Rule("stage{i}_block/qkv", _HF_QKV),
        Rule("stage{i}_block/projection", f"{_HF_LAYER}.attention.output.dense"),
        Rule("stage{i}_block/mlp1", f"{_HF_LAYER}.intermediate.dense"),
        Rule("stage{i}_block/mlp2", f"{_HF_LAYER}.output.dense"),
        Rule("last_norm", "vit.layernorm"),
        Rule("head", "classifier"),
    ),
)
