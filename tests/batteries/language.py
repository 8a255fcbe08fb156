"""Models of transformers: language, sequence to sequence, speech, pictures and text."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import fnloop as fl

from .ctc import ctc
from .entry import Entry

VOCABULARY, LENGTH, EXAMPLES = 61, 12, 4
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL |= {"intermediate_size": 24, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
SMALL |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
EXPERTS = {"experts_implementation": "batched_mm", "num_key_value_heads": 2}
EXPERTS |= {"num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8}


def made(model: str, **settings: Any) -> nn.Module:
    """A model of transformers by the name of its class, from settings alone."""
    kind = getattr(importlib.import_module("transformers"), model)
    return kind(kind.config_class(**settings))


def tokens() -> dict[str, torch.Tensor]:
    """As many tokens in each example: the mean over tokens is the mean over examples."""
    ids = torch.randint(3, VOCABULARY, (EXAMPLES, LENGTH))
    return {"input_ids": ids, "labels": ids.clone()}


def padded_tokens() -> dict[str, torch.Tensor]:
    """Examples of different lengths; what is padded is no label."""
    lengths = torch.randint(4, LENGTH, (EXAMPLES, 1))
    mask = (torch.arange(LENGTH) < lengths).long()
    ids = torch.randint(3, VOCABULARY, (EXAMPLES, LENGTH)) * mask
    labels = torch.where(mask > 0, ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def pictures(size: int = 32) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.randn(EXAMPLES, 3, size, size),
        "labels": torch.randint(3, (EXAMPLES,)),
    }


def classes() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (EXAMPLES, LENGTH))
    return {"input_ids": ids, "labels": torch.randint(3, (EXAMPLES,))}


def translation() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (2, EXAMPLES, LENGTH))
    return {"input_ids": ids[0], "labels": ids[1]}


def own_loss(model: Any, batch: Any) -> torch.Tensor:
    """The loss that the model computes itself."""
    return model(**batch).loss


def next_token_loss(model: Any, batch: Any) -> fl.Mean:
    """The model's own loss, with the number of tokens that it is the mean of."""
    count = (batch["labels"][:, 1:] != -100).sum()
    return fl.Mean(model(**batch).loss * count, count)


def captured_loss(model: Any, batch: Any) -> torch.Tensor:
    """Asks for what the model captures by hooks."""
    out = model(**batch, output_attentions=True, output_hidden_states=True)
    spread = sum(a.square().mean() for a in out.attentions)
    return out.loss + 0.01 * spread + 0.01 * sum(h.square().mean() for h in out.hidden_states)


def class_loss(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch["input_ids"]).logits, batch["labels"])


def sound() -> dict[str, torch.Tensor]:
    return {
        "input_values": torch.randn(EXAMPLES, 400),
        "labels": torch.randint(1, 9, (EXAMPLES, 3)),
        "lengths": torch.randint(1, 4, (EXAMPLES,)),
    }


def speech_loss(model: Any, batch: Any) -> fl.Mean:
    """CTC outside of the model, which picks the labels by a mask; a sum over the examples."""
    scores = model(batch["input_values"]).logits.log_softmax(-1).transpose(0, 1)
    frames = torch.full((scores.shape[1],), scores.shape[0])
    return fl.Mean(ctc(scores, batch["labels"], frames, batch["lengths"]), len(frames))


def spoken() -> dict[str, torch.Tensor]:
    return {
        "input_features": torch.randn(EXAMPLES, 8, 32),
        "labels": torch.randint(3, VOCABULARY, (EXAMPLES, LENGTH)),
    }


def captioned() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (EXAMPLES, LENGTH))
    return {"input_ids": ids, "pixel_values": torch.randn(EXAMPLES, 3, 32, 32)}


def contrastive_loss(model: Any, batch: Any) -> torch.Tensor:
    return model(**batch, return_loss=True).loss


def clip() -> nn.Module:
    text = {**SMALL, "projection_dim": 16}
    vision = {k: SMALL[k] for k in ("hidden_size", "num_hidden_layers", "intermediate_size")}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 16}
    return made("CLIPModel", text_config=text, vision_config=vision, projection_dim=16)


def gpt2(**more: Any) -> nn.Module:
    small = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": VOCABULARY}
    small |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return made("GPT2LMHeadModel", **small, bos_token_id=1, eos_token_id=2, **more)


def seq2seq(model: str) -> nn.Module:
    small = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": VOCABULARY}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    small |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "bos_token_id": 1, "eos_token_id": 2}
    small |= {"dropout": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
    small |= {"decoder_start_token_id": 2, "forced_eos_token_id": None}
    if model.startswith("Whisper"):
        small |= {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
    else:
        small |= {"max_position_embeddings": 32}
    return made(model, **small)


def wav2vec2() -> nn.Module:
    still = ("attention_dropout", "hidden_dropout", "feat_proj_dropout", "final_dropout")
    settings = {name: 0.0 for name in (*still, "activation_dropout", "layerdrop")}
    settings |= {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 4)}
    settings |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    settings |= {"num_feat_extract_layers": 2, "apply_spec_augment": False, "vocab_size": 9}
    small = {k: v for k, v in SMALL.items() if k != "max_position_embeddings"}
    return made("Wav2Vec2ForCTC", **{**small, **settings})


def _of(
    name: str, model: str, batch: Any, loss: Any, *, settings: Any = None, **more: Any
) -> Entry:
    return Entry(
        name, "transformers", lambda: made(model, **(settings or SMALL)), batch, loss, **more
    )


DEBERTA = {**SMALL, **STILL, "num_labels": 3, "relative_attention": True}
DEBERTA |= {"pos_att_type": ["c2p", "p2c"], "cls_dropout": 0.0, "pooler_dropout": 0.0}

LANGUAGE = [
    Entry("gpt2", "transformers", gpt2, tokens, own_loss, "tied weights", inductor=True),
    Entry(
        "gpt2, padded", "transformers", gpt2, padded_tokens, next_token_loss,
        "a mean over tokens", "fl.Mean with the number of labels",
    ),
    Entry(
        "gpt2, captured", "transformers", lambda: gpt2(attn_implementation="eager"),
        tokens, captured_loss, "output_attentions, output_hidden_states",
        'attn_implementation="eager", which transformers asks for',
    ),
    _of("llama", "LlamaForCausalLM", tokens, own_loss, tests="rotary embeddings"),
    _of(
        "gemma2", "Gemma2ForCausalLM", tokens, own_loss, tests="a sliding window, soft caps",
        settings={**SMALL, "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 4},
    ),
    _of(
        "mixtral", "MixtralForCausalLM", tokens, own_loss, tests="a mixture of experts",
        settings={**SMALL, **EXPERTS, "num_local_experts": 4}, inductor=True,
        remedy='experts_implementation="batched_mm"',
    ),
    _of(
        "mixtral, grouped", "MixtralForCausalLM", tokens, own_loss,
        tests="experts by grouped matrix products",
        settings={**SMALL, **EXPERTS, "num_local_experts": 4,
                  "experts_implementation": "grouped_mm"},
        refused="grouped_mm",
    ),
    _of(
        "qwen2-moe", "Qwen2MoeForCausalLM", tokens, own_loss,
        tests="experts, with a shared one; the routers' loss",
        settings={
            **SMALL, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 12,
            "output_router_logits": True,
        },
        remedy='experts_implementation="batched_mm"',
        uncut="the routers' loss is of the whole batch",
    ),
    _of(
        "mamba", "MambaForCausalLM", tokens, own_loss, tests="a state-space model",
        settings={**SMALL, "state_size": 4, "time_step_rank": 2},
    ),
    _of(
        "bert", "BertForSequenceClassification", classes, own_loss, tests="a classifier",
        settings={**SMALL, **STILL, "num_labels": 3},
    ),
    _of(
        "albert", "AlbertForSequenceClassification", classes, own_loss,
        tests="one layer used many times",
        settings={**SMALL, **STILL, "num_labels": 3, "embedding_size": 8,
                  "classifier_dropout_prob": 0.0},
    ),
    _of(
        "deberta-v2", "DebertaV2ForSequenceClassification", classes, class_loss,
        tests="relative positions", remedy="the loss outside of the model",
        settings=DEBERTA,
    ),
    _of(
        "deberta-v2, own loss", "DebertaV2ForSequenceClassification", classes, own_loss,
        tests="picks the labelled examples by a mask", settings=DEBERTA,
        refused="the shape of a result depends on values",
    ),
    _of(
        "t5", "T5ForConditionalGeneration", translation, own_loss, tests="encoder and decoder",
        settings={"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2,
                  "vocab_size": VOCABULARY, "dropout_rate": 0.0, "pad_token_id": 0,
                  "eos_token_id": 2, "decoder_start_token_id": 0},
        inductor=True,
    ),
    Entry(
        "bart", "transformers", lambda: seq2seq("BartForConditionalGeneration"), translation,
        own_loss, "encoder and decoder", "layerdrop 0: it is drawn by Python",
    ),
    Entry(
        "whisper", "transformers", lambda: seq2seq("WhisperForConditionalGeneration"), spoken,
        own_loss, "speech to text", "layerdrop 0: it is drawn by Python",
    ),
    Entry(
        "wav2vec2", "transformers", wav2vec2, sound, speech_loss, "CTC, weight norm",
        "CTC outside of the model, as an operation of known shapes; no spec_augment, which draws "
        "by NumPy",
    ),
    _of(
        "vit", "ViTForImageClassification", pictures, own_loss, tests="a picture in patches",
        settings={**{k: v for k, v in SMALL.items() if "token" not in k and "size" not in k},
                  **STILL, "hidden_size": 16, "intermediate_size": 24, "image_size": 32,
                  "patch_size": 8, "num_labels": 3},
        inductor=True,
    ),
    _of(
        "swin", "SwinForImageClassification", pictures, own_loss, tests="shifted windows",
        settings={"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 1],
                  "num_heads": [2, 2], "window_size": 4, "num_labels": 3, **STILL,
                  "drop_path_rate": 0.0},
    ),
    _of(
        "convnext", "ConvNextForImageClassification", pictures, own_loss, tests="layer scale",
        settings={"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_labels": 3,
                  "drop_path_rate": 0.0},
    ),
    Entry(
        "clip", "transformers", clip, captioned, contrastive_loss, "two towers, a contrast",
        uncut="each example is compared with all others of the batch",
    ),
]  # fmt: skip
