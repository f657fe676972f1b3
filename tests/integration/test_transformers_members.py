"""Which weights of transformers' models are matrices, embeddings and heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t

import gradstep
from gradstep.compose import members as kinds

TEXT = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
}
T5 = {"vocab_size": 48, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
GPT2 = {"vocab_size": 48, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 16}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1}
VIT = {"image_size": 32, "patch_size": 8, "num_labels": 5}

#: A model; its heads and its embeddings by name, and how many matrices it has.
MODELS: dict[str, tuple[Callable[[], Any], set[str], set[str], int]] = {
    "Llama": (
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=False)),
        {"lm_head.weight"},
        {"model.embed_tokens.weight"},
        7,
    ),
    "Llama, tied": (
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=True)),
        set(),
        {"model.embed_tokens.weight"},
        7,
    ),
    "GPT-2": (
        lambda: t.GPT2LMHeadModel(t.GPT2Config(**GPT2, **TOKENS)),
        set(),
        {"transformer.wte.weight", "transformer.wpe.weight"},
        4,
    ),
    "BERT": (
        lambda: t.BertForSequenceClassification(t.BertConfig(**TEXT)),
        {"classifier.weight"},
        {f"bert.embeddings.{n}_embeddings.weight" for n in ("word", "position", "token_type")},
        7,
    ),
    "T5": (
        lambda: t.T5ForConditionalGeneration(t.T5Config(**T5)),
        set(),
        {
            "shared.weight",
            *(
                f"{n}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
                for n in ("encoder", "decoder")
            ),
        },
        16,
    ),
    "ViT": (
        lambda: t.ViTForImageClassification(t.ViTConfig(**{**TEXT, **VIT})),
        {"classifier.weight"},
        {"vit.embeddings.position_embeddings"},
        6,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_heads_and_embeddings_are_known(name: str) -> None:
    make, heads, embeddings, count = MODELS[name]
    model = make()
    found = {
        kind: {m.name for m in kinds.members(model) if kinds.READY[kind](m)} for kind in kinds.READY
    }
    assert found["heads"] == heads
    assert found["embeddings"] == embeddings
    assert len(found["matrices"]) == count
    assert sum(map(len, found.values())) == len(list(model.parameters()))  # each is one thing


@pytest.mark.parametrize("name", ["Llama", "BERT"])
def test_muon_takes_the_matrices_alone(name: str) -> None:
    model = MODELS[name][0]()
    optimizer = gradstep.partition({"matrices": gradstep.Muon, "rest": gradstep.AdamW}, model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    names = {id(p): name for name, p in model.named_parameters()}
    moved = {names[id(p)] for part in optimizer.param_groups[:1] for p in part["params"]}
    assert len(moved) == MODELS[name][3] and not moved & MODELS[name][1]
