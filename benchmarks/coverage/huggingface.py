"""Architectures of Hugging Face transformers, built from small configs: nothing is downloaded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from case import Built, Case
from torch import Tensor

Inputs = Callable[[Any], dict[str, Tensor]]

BATCH, LENGTH, VOCABULARY, IMAGE = 2, 10, 200, 32
SAMPLES = 2000
"""Audio samples of one example."""


def _ids(low: int = 5) -> Tensor:
    return torch.randint(low, VOCABULARY, (BATCH, LENGTH))


def _text(_config: Any) -> dict[str, Tensor]:
    return {"input_ids": _ids(), "attention_mask": torch.ones(BATCH, LENGTH, dtype=torch.long)}


def _encoder_decoder(_config: Any) -> dict[str, Tensor]:
    return {"input_ids": _ids(), "decoder_input_ids": _ids()}


def _image(_config: Any) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE)}


def _large_image(_config: Any) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(BATCH, 3, 2 * IMAGE, 2 * IMAGE)}


def _image_and_text(config: Any) -> dict[str, Tensor]:
    return {**_text(config), **_image(config)}


def _image_and_ids(config: Any) -> dict[str, Tensor]:
    return {"input_ids": _ids(), **_image(config)}


def _audio(_config: Any) -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, SAMPLES)}


def _spectrogram(config: Any) -> dict[str, Tensor]:
    frames = torch.randn(BATCH, config.num_mel_bins, 2 * config.max_source_positions)
    return {"input_features": frames, "decoder_input_ids": _ids()}


def _patched_spectrogram(config: Any) -> dict[str, Tensor]:
    return {"input_values": torch.randn(BATCH, config.max_length, config.num_mel_bins)}


@dataclass(frozen=True)
class _Row:
    """One architecture: model class, config class, what its config says, and what it reads."""

    model: str
    config: str
    inputs: Inputs
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN_DECODER = {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
_T5 = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
_VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": IMAGE,
    "patch_size": 8,
}
_SPEECH = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 2, 2),
    "conv_kernel": (10, 3, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 40,
}
_TOWER = {k: v for k, v in _ENCODER.items() if k != "vocab_size"}
_TWO_TOWERS = {
    "text_config": {**_ENCODER, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "vision_config": {**_VISION, "num_channels": 3},
    "projection_dim": 48,
}
_RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "layer_type": "basic"}

_ENCODERS = (
    _Row("BertForSequenceClassification", "BertConfig", _text, _ENCODER),
    _Row("BertForMaskedLM", "BertConfig", _text, _ENCODER),
    _Row("RobertaForSequenceClassification", "RobertaConfig", _text, _ENCODER),
    _Row("AlbertForSequenceClassification", "AlbertConfig", _text, {**_ENCODER, "embedding_size": 32}),
    _Row(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _text,
        {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128},
    ),
    _Row("ElectraForSequenceClassification", "ElectraConfig", _text, {**_ENCODER, "embedding_size": 32}),
    _Row(
        "DebertaForSequenceClassification",
        "DebertaConfig",
        _text,
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    _Row(
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _text,
        {**_ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16},
    ),
    _Row("MPNetForSequenceClassification", "MPNetConfig", _text, _ENCODER),
    _Row("XLMRobertaForSequenceClassification", "XLMRobertaConfig", _text, _ENCODER),
    _Row("CamembertForSequenceClassification", "CamembertConfig", _text, _ENCODER),
    _Row("ErnieForSequenceClassification", "ErnieConfig", _text, _ENCODER),
    _Row("SqueezeBertForSequenceClassification", "SqueezeBertConfig", _text, {**_ENCODER, "embedding_size": 64}),
    _Row(
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        _text,
        {**_ENCODER, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
    ),
    _Row("RoFormerForSequenceClassification", "RoFormerConfig", _text, {**_ENCODER, "embedding_size": 64}),
    _Row("ConvBertForSequenceClassification", "ConvBertConfig", _text, {**_ENCODER, "embedding_size": 64}),
    _Row(
        "FunnelForSequenceClassification",
        "FunnelConfig",
        _text,
        {
            "vocab_size": VOCABULARY,
            "block_sizes": [1, 1],
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
            "num_decoder_layers": 1,
        },
    ),
    _Row("FNetForSequenceClassification", "FNetConfig", lambda c: {"input_ids": _ids()}, _ENCODER),
    _Row(
        "XLNetForSequenceClassification",
        "XLNetConfig",
        _text,
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    ),
    _Row(
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _text,
        {**_ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    _Row(
        "NystromformerForSequenceClassification",
        "NystromformerConfig",
        _text,
        {**_ENCODER, "num_landmarks": 5, "segment_means_seq_len": LENGTH},
    ),
)
_DECODERS = (
    _Row("GPT2LMHeadModel", "GPT2Config", _text, _GPT),
    _Row(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        _text,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 128,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "window_size": 8,
        },
    ),
    _Row("GPTJForCausalLM", "GPTJConfig", _text, {**_GPT, "rotary_dim": 8}),
    _Row("GPTNeoXForCausalLM", "GPTNeoXConfig", _text, _PLAIN_DECODER),
    _Row("GPTBigCodeForCausalLM", "GPTBigCodeConfig", _text, _GPT),
    _Row("CodeGenForCausalLM", "CodeGenConfig", _text, {**_GPT, "rotary_dim": 8}),
    _Row(
        "OPTForCausalLM",
        "OPTConfig",
        _text,
        {
            **{k: v for k, v in _PLAIN_DECODER.items() if k != "intermediate_size"},
            "ffn_dim": 128,
            "word_embed_proj_dim": 64,
        },
    ),
    _Row(
        "BloomForCausalLM",
        "BloomConfig",
        _text,
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
    _Row(
        "FalconForCausalLM",
        "FalconConfig",
        _text,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    _Row(
        "MptForCausalLM",
        "MptConfig",
        _text,
        {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    _Row("LlamaForCausalLM", "LlamaConfig", _text, _DECODER),
    _Row("MistralForCausalLM", "MistralConfig", _text, _DECODER),
    _Row("MixtralForCausalLM", "MixtralConfig", _text, {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}),
    _Row("Qwen2ForCausalLM", "Qwen2Config", _text, _DECODER),
    _Row("Qwen3ForCausalLM", "Qwen3Config", _text, {**_DECODER, "head_dim": 16}),
    _Row(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _text,
        {**_DECODER, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
    _Row("GemmaForCausalLM", "GemmaConfig", _text, {**_DECODER, "head_dim": 16}),
    _Row("Gemma2ForCausalLM", "Gemma2Config", _text, {**_DECODER, "head_dim": 16}),
    _Row("Gemma3ForCausalLM", "Gemma3TextConfig", _text, {**_DECODER, "head_dim": 16}),
    _Row("PhiForCausalLM", "PhiConfig", _text, _DECODER),
    _Row("Phi3ForCausalLM", "Phi3Config", _text, _DECODER),
    _Row("StableLmForCausalLM", "StableLmConfig", _text, _DECODER),
    _Row("OlmoForCausalLM", "OlmoConfig", _text, _DECODER),
    _Row("Olmo2ForCausalLM", "Olmo2Config", _text, _DECODER),
    _Row("CohereForCausalLM", "CohereConfig", _text, _DECODER),
    _Row("Starcoder2ForCausalLM", "Starcoder2Config", _text, _DECODER),
    _Row("GraniteForCausalLM", "GraniteConfig", _text, _DECODER),
    _Row("SmolLM3ForCausalLM", "SmolLM3Config", _text, _DECODER),
    _Row("PersimmonForCausalLM", "PersimmonConfig", _text, _PLAIN_DECODER),
    _Row("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", _text, _GPT),
    _Row("CTRLLMHeadModel", "CTRLConfig", _text, {**_GPT, "dff": 128}),
    _Row(
        "XGLMForCausalLM",
        "XGLMConfig",
        _text,
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 128,
            "max_position_embeddings": 64,
        },
    ),
    _Row(
        "MambaForCausalLM",
        "MambaConfig",
        lambda c: {"input_ids": _ids()},
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    _Row(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        lambda c: {"input_ids": _ids()},
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
)
_ENCODER_DECODERS = (
    _Row("T5ForConditionalGeneration", "T5Config", _encoder_decoder, _T5),
    _Row("MT5ForConditionalGeneration", "MT5Config", _encoder_decoder, _T5),
    _Row("LongT5ForConditionalGeneration", "LongT5Config", _encoder_decoder, _T5),
    _Row("BartForConditionalGeneration", "BartConfig", _encoder_decoder, _SEQ2SEQ),
    _Row("MBartForConditionalGeneration", "MBartConfig", _encoder_decoder, _SEQ2SEQ),
    _Row("MarianMTModel", "MarianConfig", _encoder_decoder, _SEQ2SEQ),
    _Row("PegasusForConditionalGeneration", "PegasusConfig", _encoder_decoder, _SEQ2SEQ),
    _Row("BlenderbotForConditionalGeneration", "BlenderbotConfig", _encoder_decoder, _SEQ2SEQ),
    _Row("M2M100ForConditionalGeneration", "M2M100Config", _encoder_decoder, _SEQ2SEQ),
    _Row(
        "ProphetNetForConditionalGeneration",
        "ProphetNetConfig",
        _encoder_decoder,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    _Row(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _spectrogram,
        {
            **{k: v for k, v in _SEQ2SEQ.items() if k != "max_position_embeddings"},
            "num_mel_bins": 16,
            "max_source_positions": 20,
            "max_target_positions": 64,
        },
    ),
)
_AUDIO = (
    _Row("Wav2Vec2ForCTC", "Wav2Vec2Config", _audio, _SPEECH),
    _Row("HubertForCTC", "HubertConfig", _audio, _SPEECH),
    _Row("WavLMForCTC", "WavLMConfig", _audio, _SPEECH),
    _Row(
        "ASTForAudioClassification",
        "ASTConfig",
        _patched_spectrogram,
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "max_length": 40,
            "num_mel_bins": 32,
        },
    ),
)
_IMAGES = (
    _Row("ViTForImageClassification", "ViTConfig", _image, _VISION),
    _Row("DeiTForImageClassification", "DeiTConfig", _image, _VISION),
    _Row("BeitForImageClassification", "BeitConfig", _image, {**_VISION, "use_relative_position_bias": True}),
    _Row("Data2VecVisionForImageClassification", "Data2VecVisionConfig", _image, _VISION),
    _Row("Dinov2ForImageClassification", "Dinov2Config", _image, _VISION),
    _Row(
        "SwinForImageClassification",
        "SwinConfig",
        _image,
        {
            "image_size": IMAGE,
            "patch_size": 2,
            "embed_dim": 32,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _Row(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        _large_image,
        {
            "num_encoder_blocks": 4,
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 4, 4],
            "decoder_hidden_size": 64,
        },
    ),
    _Row("ResNetForImageClassification", "ResNetConfig", _image, _RESNET),
    _Row(
        "ConvNextForImageClassification",
        "ConvNextConfig",
        _image,
        {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]},
    ),
    _Row(
        "MobileViTForImageClassification",
        "MobileViTConfig",
        _large_image,
        {
            "image_size": 2 * IMAGE,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64],
            "num_attention_heads": 4,
        },
    ),
    _Row(
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        _large_image,
        {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]},
    ),
    _Row(
        "DPTForSemanticSegmentation",
        "DPTConfig",
        _image,
        {
            **_VISION,
            "neck_hidden_sizes": [16, 24, 32, 40],
            "fusion_hidden_size": 32,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
        },
    ),
    _Row(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        _image,
        {
            **_VISION,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
        },
    ),
    _Row(
        "LevitForImageClassification",
        "LevitConfig",
        _large_image,
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
)
_MULTIMODAL = (
    _Row("CLIPModel", "CLIPConfig", _image_and_text, _TWO_TOWERS),
    _Row(
        "SiglipModel",
        "SiglipConfig",
        _image_and_ids,
        {
            "text_config": {**_ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "projection_size": 64},
            "vision_config": _VISION,
        },
    ),
    _Row("BlipForConditionalGeneration", "BlipConfig", _image_and_ids, _TWO_TOWERS),
    _Row("ViltForImageAndTextRetrieval", "ViltConfig", _image_and_text, {**_ENCODER, **_VISION}),
)


def _build(row: _Row) -> Built:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, row.config)(**row.settings)
    model = getattr(transformers, row.model)(config).eval()
    return model, row.inputs(config)


def _detr() -> Built:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(**_RESNET, out_features=["stage4"])  # pyright: ignore[reportCallIssue]
    config = DetrConfig(
        use_timm_backbone=False,  # pyright: ignore[reportCallIssue]
        use_pretrained_backbone=False,  # pyright: ignore[reportCallIssue]
        backbone=None,  # pyright: ignore[reportCallIssue]
        backbone_config=backbone,
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=8,
    )
    return DetrForObjectDetection(config).eval(), _large_image(config)


_KINDS = {
    "encoder": _ENCODERS,
    "decoder": _DECODERS,
    "encoder-decoder": _ENCODER_DECODERS,
    "audio": _AUDIO,
    "vision": _IMAGES,
    "multimodal": _MULTIMODAL,
}


def cases() -> list[Case]:
    """All architectures, in the order of the tables above."""
    with contextlib.suppress(ImportError):  # transformers imports torchvision where it is installed
        from torchvision_models import provide_operators

        provide_operators()
    found = [
        Case("transformers", row.name or row.model, lambda row=row: _build(row))
        for rows in _KINDS.values()
        for row in rows
    ]
    found.append(Case("transformers", "DetrForObjectDetection", _detr))
    return found
