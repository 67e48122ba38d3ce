"""Foreign models become ours with the same logits, or are refused by name: 4.x bridges, and Hugging Face folders through them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from circuits import Checkpoints, from_hf, from_transformer_lens
from circuits.models.checkpoints import save_weights
from circuits.models.convert import to_transformer_lens_state
from circuits.models.hooked import HookedTransformer

TOKENS = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
SMALL = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "n_ctx": 32, "d_vocab": 50}
NATIVE = {
    "attn_only": {"attn_only": True, "normalization_type": "LN"},
    "no_norm": {"attn_only": True, "normalization_type": None},
    "rotary_rms": {"attn_only": True, "normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 4},
    "mlp": {"normalization_type": "LNPre", "act_fn": "gelu_new", "d_mlp": 24},
    "capped": {"attn_only": True, "normalization_type": "LN", "attn_scores_soft_cap": 0.7, "output_logits_soft_cap": 1.3},
}


def native(**fields: Any) -> Any:
    """A 4.x native bridge with weights far from their initial symmetry."""
    from transformer_lens import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**(SMALL | {"device": "cpu"} | fields)))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in bridge.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, generator=rng))
    return bridge.eval()


@pytest.mark.parametrize("name", NATIVE)
def test_a_native_bridge_becomes_ours(name: str):
    bridge = native(**NATIVE[name])
    before = {key: value.clone() for key, value in bridge.state_dict().items()}
    ours = from_transformer_lens(bridge)
    with torch.no_grad():
        expected, found = bridge(TOKENS), ours(TOKENS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert not ours.training and float(expected.abs().max()) > 0.1
    assert all(torch.equal(value, before[key]) for key, value in bridge.state_dict().items())
    pattern = bridge.run_with_cache(TOKENS)[1]["blocks.1.attn.hook_pattern"]
    torch.testing.assert_close(ours.run_with_cache(TOKENS)[1]["pattern", 1], pattern, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attn_only": True, "use_attn_scale": False}, "use_attn_scale"),
        ({"attn_only": True, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"attn_only": True, "use_local_attn": True, "window_size": 4}, "use_local_attn"),
        ({"attn_only": True, "n_key_value_heads": 1}, "n_key_value_heads is 1"),
        ({"act_fn": "gelu", "gated_mlp": True}, "gated_mlp"),
    ],
)
def test_a_bridge_that_cannot_be_represented_is_refused_by_field(fields: dict[str, Any], named: str):
    bridge = native(normalization_type="LN", **fields)
    with pytest.raises(ValueError, match=named):
        from_transformer_lens(bridge)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", ["gpt2", torch.nn.Linear(2, 2), HookedTransformer(SMALL | {"attn_only": True})])
def test_only_transformer_lens_models_convert(given: Any):
    with pytest.raises(TypeError, match=r"need a transformer-lens HookedTransformer \(3\.9\) or TransformerBridge \(4\.x\)"):
        from_transformer_lens(given)


def hugging_face(kind: str, seed: int) -> Any:
    """An untrained Hugging Face model, its weights drawn from ``seed``."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    special = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, n_positions=32, **special))
    else:
        shape = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, max_position_embeddings=32, rotary_pct=0.5, **special))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=rng))
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("kind", ["gpt2", "neox"])
def test_a_hugging_face_folder_becomes_ours(kind: str, tmp_path: Path):
    theirs = hugging_face(kind, seed=2)
    theirs.save_pretrained(tmp_path)
    ours = from_hf(tmp_path)
    expected = logits(theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours(TOKENS), expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))
    assert float(expected.abs().max()) > 0.1


def test_revisions_in_folders_are_a_run(tmp_path: Path):
    """Pythia's layout, ``step<n>`` by ``step<n>``, from the folder to the models."""
    models = {step: hugging_face("neox", seed=step) for step in (0, 512)}
    for step, model in models.items():
        model.save_pretrained(tmp_path / f"step{step}")
    run = Checkpoints.from_hub(tmp_path, ["step512", 0])
    assert run.steps == (0, 512)
    for step, ours in run:
        with torch.no_grad():
            assert np.allclose(ours(TOKENS), logits(models[step]), atol=1e-5)
    assert run.cfg.positional_embedding_type == "rotary" and run.cfg.rotary_dim == 4


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_cannot_be_loaded_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"transformer-lens cannot load .*{name} .*pass a folder") as caught:
        from_hf(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_smeared_keys_have_no_transformer_lens_state():
    model = HookedTransformer(SMALL | {"attn_only": True, "smeared_keys": True})
    with pytest.raises(ValueError, match="smeared_keys, which transformer-lens cannot compute"):
        to_transformer_lens_state(model)


def test_a_saved_state_of_3_9_loads_with_its_buffers(tmp_path: Path):
    model = HookedTransformer(SMALL | {"attn_only": True, "positional_embedding_type": "shortformer"}).eval()
    state = to_transformer_lens_state(model)
    assert {"blocks.0.attn.mask", "blocks.1.attn.IGNORE"} <= set(state)
    save_weights(tmp_path / "step_1.safetensors", state)
    other = HookedTransformer(model.cfg.model_copy(update={"seed": 7})).eval()
    from safetensors.torch import load_file

    other.load_state_dict(load_file(tmp_path / "step_1.safetensors"))
    assert torch.equal(other(TOKENS), model(TOKENS))
