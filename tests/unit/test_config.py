"""Every field of a HookedTransformerConfig is honoured or refused with a sentence."""

import math

import pytest
from pydantic import ValidationError

from circuits.models.config import HookedTransformerConfig

ATTN = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 10, "d_vocab": 20, "attn_only": True}
MLP = ATTN | {"attn_only": False, "act_fn": "relu"}
ROTARY = ATTN | {"positional_embedding_type": "rotary"}


def test_defaults_that_depend_on_other_fields():
    cfg = HookedTransformerConfig(**MLP)
    assert (cfg.d_vocab_out, cfg.d_mlp, cfg.rotary_dim) == (20, 64, None)
    assert cfg.initializer_range == pytest.approx(0.2)  # 0.8 / sqrt(16)
    assert cfg.attn_scale == pytest.approx(math.sqrt(8))
    assert HookedTransformerConfig(**ROTARY).rotary_dim == 8
    assert HookedTransformerConfig(**ATTN).d_mlp is None
    assert HookedTransformerConfig(**ATTN, use_attn_scale=False).attn_scale == -1.0
    assert HookedTransformerConfig(**ATTN, initializer_range=0.0).initializer_range == 0.0


@pytest.mark.parametrize(
    "fields", [ATTN, MLP, ROTARY, ATTN | {"use_attn_scale": False}], ids=["attn", "mlp", "rotary", "unscaled"]
)
def test_a_config_survives_json(fields):
    cfg = HookedTransformerConfig(**fields)
    assert HookedTransformerConfig.model_validate_json(cfg.model_dump_json()) == cfg
    assert HookedTransformerConfig.parse(cfg.model_dump()) == cfg


def test_a_config_does_not_change():
    cfg = HookedTransformerConfig(**ATTN)
    with pytest.raises(ValidationError, match="frozen"):
        cfg.n_layers = 3


SENTENCES = [
    *((ATTN | {size: 0}, f"{size} is 0; it must be a positive integer") for size in ("n_layers", "d_model", "n_heads", "d_head")),
    *((ATTN | {size: -2}, f"{size} is -2; it must be a positive integer") for size in ("n_ctx", "d_vocab", "d_vocab_out")),
    (ATTN | {"n_layers": "two"}, "n_layers is 'two'; input should be a valid integer"),
    (ATTN | {"d_model": "wide"}, "d_model is 'wide'; input should be a valid integer"),
    (ATTN | {"d_head": None}, "d_head is None; input should be a valid integer"),
    ({k: v for k, v in ATTN.items() if k != "n_ctx"}, "n_ctx is missing; give it a value"),
    (ATTN | {"window_size": 4}, r"window_size is not a field here \(given 4\); drop it"),
    (ATTN | {"gated_mlp": True}, r"gated_mlp is not a field here \(given True\); drop it"),
    (ATTN | {"attn_only": False}, "a model with MLPs needs act_fn, one of relu, .*; or set attn_only=True"),
    (ATTN | {"act_fn": "relu"}, "attn_only=True has no MLP, so d_mlp, act_fn and parallel_attn_mlp must stay unset"),
    (ATTN | {"d_mlp": 3}, "attn_only=True has no MLP"),
    (ATTN | {"parallel_attn_mlp": True}, "attn_only=True has no MLP"),
    (ATTN | {"use_hook_mlp_in": True}, "use_hook_mlp_in is set but attn_only=True has no MLP; drop one of them"),
    (MLP | {"act_fn": "tanh"}, "act_fn is 'tanh'; input should be 'relu'"),
    (MLP | {"d_mlp": 0}, "d_mlp is 0; it must be a positive integer"),
    (ATTN | {"normalization_type": "BN"}, "normalization_type is 'BN'; input should be 'LN', 'LNPre', 'RMS' or 'RMSPre'"),
    (ATTN | {"normalization_type": None, "final_rms": True}, "final_rms is set but normalization_type is None; choose a norm"),
    (ATTN | {"eps": -1e-5}, "eps is -1e-05; it must not be negative"),
    (ATTN | {"eps": math.nan}, "eps is nan; it must not be negative"),
    (
        ATTN | {"positional_embedding_type": "alibi"},
        "positional_embedding_type is 'alibi'; input should be 'standard', 'shortformer'",
    ),
    (ATTN | {"positional_init": "zero"}, "positional_init is 'zero'; input should be 'gpt2' or 'sinusoidal'"),
    (
        ROTARY | {"positional_init": "sinusoidal"},
        "positional_init='sinusoidal' needs learned positions: 'standard' or 'shortformer'",
    ),
    (ROTARY | {"rotary_dim": 3}, "rotary_dim is 3; it must be even and at most d_head = 8"),
    (ROTARY | {"rotary_dim": 10}, "rotary_dim is 10; it must be even and at most d_head = 8"),
    (ROTARY | {"rotary_base": 0}, r"rotary_base is 0\.0; it must be positive"),
    (ATTN | {"rotary_dim": 4}, "rotary_dim is set but positional_embedding_type is not 'rotary'; set one or drop the other"),
    (ATTN | {"rotary_base": 500.0}, "rotary_base is set but positional_embedding_type is not 'rotary'"),
    (ATTN | {"rotary_adjacent_pairs": True}, "rotary_adjacent_pairs is set but positional_embedding_type is not 'rotary'"),
    (ATTN | {"smeared_keys": "perhaps"}, "smeared_keys is 'perhaps'; input should be a valid boolean"),
    (ATTN | {"attn_scale": -3.0}, r"attn_scale is -3\.0; it must be positive, or -1 for sqrt\(d_head\)"),
    (ATTN | {"attn_scale": 3.0, "use_attn_scale": False}, r"attn_scale is 3\.0 but use_attn_scale=False divides by 1"),
    (ATTN | {"attn_scores_soft_cap": 0.0}, r"attn_scores_soft_cap is 0\.0; it must be positive, or -1 for none"),
    (ATTN | {"output_logits_soft_cap": math.inf}, "output_logits_soft_cap is inf; it must be positive, or -1 for none"),
    (
        ATTN | {"use_attn_in": True, "use_split_qkv_input": True},
        "use_attn_in and use_split_qkv_input exclude each other; choose one",
    ),
    (ATTN | {"attention_dir": "bidirectional"}, "attention_dir is 'bidirectional'; input should be 'causal'"),
    (ATTN | {"initializer_range": -0.5}, r"initializer_range is -0\.5; it must not be negative"),
    (ATTN | {"init_mode": "xavier_normal"}, "init_mode is 'xavier_normal'; input should be 'gpt2'"),
    (ATTN | {"seed": "lucky"}, "seed is 'lucky'; input should be a valid integer"),
    (ATTN | {"dtype": "float16"}, "dtype is 'float16'; input should be 'float32' or 'float64'"),
]


@pytest.mark.parametrize(("fields", "sentence"), SENTENCES, ids=[sentence.split(";")[0] for _, sentence in SENTENCES])
def test_refused_with_one_sentence_that_says_where(fields, sentence):
    with pytest.raises(ValueError, match=f"^run/config.json: {sentence}") as caught:
        HookedTransformerConfig.parse(fields, origin="run/config.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError):
        HookedTransformerConfig(**fields)


def test_several_faults_are_all_named():
    with pytest.raises(ValueError, match=r"config: n_layers is 'a'; .*; window_size is not a field here"):
        HookedTransformerConfig.parse(ATTN | {"n_layers": "a", "window_size": 1})
