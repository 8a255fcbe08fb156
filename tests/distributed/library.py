"""Models of a library, unchanged, that ranks share: run by ``test_library.py``."""

from __future__ import annotations

import pytest
import torch

import fnloop as fl
from tests.batteries.torchvision_names import declare
from tests.distributed.laws import assert_close, assert_same_everywhere
from tests.distributed.scenario import main, scenario
from tests.distributed.shared import meshes

declare()
pytest.importorskip("transformers")

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM  # noqa: E402


def gpt2(attention):
    """A small GPT-2, whose projections are fused and transposed, without dropout."""
    none = {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "attn_implementation": attention,
    }
    sizes = {"vocab_size": 31, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **none, **sizes))


def llama(attention):
    """A small Llama, with rotations, a gate, and fewer heads for keys than for queries."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 2}
    sizes = {"vocab_size": 31, "hidden_size": 32, "intermediate_size": 64}
    return LlamaForCausalLM(LlamaConfig(attn_implementation=attention, **heads, **sizes))


def loss(model, tokens):
    """The model's own."""
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def trained(step, state):
    """The whole state, and the losses."""
    g, losses = torch.Generator().manual_seed(0), []
    for _ in range(4):
        state, metrics = step(state, torch.randint(0, 31, (8, 12), generator=g))
        losses.append(fl.metrics.numbers(metrics))
    return fl.gather(state), losses


@scenario
def transformers_are_the_ones_of_one_process(mesh):
    one = fl.pipe(loss, fl.grad, fl.update(fl.optim.sgd(0.5)))
    for model in (gpt2, llama):
        for attention in ("eager", "sdpa"):
            expected = trained(one, one.init(lambda m=model, a=attention: m(a), seed=1))
            for own in meshes(mesh):
                for plan in ("tensor", ("zero2", "tensor")):
                    step = fl.shard(one, own, plan)
                    state = step.init(lambda m=model, a=attention: m(a), seed=1)
                    found = trained(step, state)
                    assert_close(expected, found, atol=1e-5)
                    assert_same_everywhere(mesh, found[0])
            # Every matrix of a block is cut, and neither embeddings nor norms.
            whole = sum(
                p.numel() for n, p in expected[0].params.items() if p.ndim == 2 and "mlp" in n
            )
            step = fl.shard(one, meshes(mesh)[0], "tensor")
            state = step.init(lambda m=model, a=attention: m(a), seed=1)
            cut = zip(state.params.names, state.params.storages, strict=True)
            assert sum(s.numel() for n, s in cut if s.ndim == 2 and "mlp" in n) * mesh.data == whole


if __name__ == "__main__":
    main()
