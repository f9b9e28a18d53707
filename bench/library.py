"""Models of other libraries, small, built from their configuration; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

from steadygrad.testing import Case, Patient

WORDS = 100


def _words(count: int = 4, length: int = 16) -> Tensor:
    return torch.randint(3, WORDS, (count, length))


def _pixels(count: int = 4, size: int = 32, channels: int = 3) -> Tensor:
    coarse = torch.randn(count, channels, 4, 4)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")
    return smooth + 0.3 * torch.randn(count, channels, size, size)


def _hf(model: nn.Module, batch: Mapping[str, Tensor], lr: float = 1e-3) -> Case:
    """Give a Hugging Face model a batch with labels; its own loss and AdamW."""
    return Case(
        model, dict(batch), lambda m: m(**batch).loss, torch.optim.AdamW(model.parameters(), lr=lr)
    )


def _causal(config: hf.PreTrainedConfig) -> Case:
    words = _words()
    return _hf(hf.AutoModelForCausalLM.from_config(config), {"input_ids": words, "labels": words})


def _masked(config: hf.PreTrainedConfig) -> Case:
    words = _words()
    model = hf.AutoModelForMaskedLM.from_config(config)
    seen = torch.where(torch.rand(words.shape) < 0.15, torch.full_like(words, 2), words)
    labels = torch.where(seen == 2, words, torch.full_like(words, -100))
    mask = torch.ones_like(words)
    return _hf(model, {"input_ids": seen, "attention_mask": mask, "labels": labels})


def _sentences(config: hf.PreTrainedConfig) -> Case:
    model = hf.AutoModelForSequenceClassification.from_config(config)
    mask = (torch.arange(16) < torch.tensor([[16], [9], [12], [5]])).long()
    labels = torch.tensor([0, 1, 1, 0])
    return _hf(model, {"input_ids": _words(), "attention_mask": mask, "labels": labels})


def _vision(config: hf.PreTrainedConfig) -> Case:
    model = hf.AutoModelForImageClassification.from_config(config)
    labels = torch.arange(8) % config.num_labels
    return _hf(model, {"pixel_values": _pixels(8), "labels": labels})


def _gpt2() -> Case:
    return _causal(hf.GPT2Config(vocab_size=WORDS, n_embd=64, n_layer=4, n_head=4, n_positions=64))


def _small(layers: int = 4) -> dict[str, int]:
    return {
        "vocab_size": WORDS,
        "hidden_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 64,
    }


def _t5() -> Case:
    config = hf.T5Config(vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)
    config.decoder_start_token_id = 0
    model = hf.T5ForConditionalGeneration(config)
    return _hf(model, {"input_ids": _words(), "labels": _words(4, 8)})


def _whisper() -> Case:
    config = hf.WhisperConfig(
        vocab_size=WORDS,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        num_mel_bins=16,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = hf.WhisperForConditionalGeneration(config)
    return _hf(model, {"input_features": torch.randn(4, 16, 100), "labels": _words(4, 8)})


def _resnet() -> Case:
    return _vision(
        hf.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 64, 64],
            depths=[2, 2, 2, 2],
            layer_type="basic",
            num_labels=4,
        )
    )


def _vit() -> Case:
    return _vision(
        hf.ViTConfig(
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=128,
            image_size=32,
            patch_size=8,
            num_labels=4,
        )
    )


def _swin() -> Case:
    return _vision(
        hf.SwinConfig(
            image_size=32,
            patch_size=2,
            embed_dim=16,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
            num_labels=4,
        )
    )


def _convnext() -> Case:
    return _vision(
        hf.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_labels=4)
    )


def _mobilenet() -> Case:
    return _vision(hf.MobileNetV2Config(image_size=32, depth_multiplier=0.35, num_labels=4))


def _mamba() -> Case:
    return _causal(
        hf.MambaConfig(vocab_size=WORDS, hidden_size=64, num_hidden_layers=3, state_size=8)
    )


def _wave() -> Case:
    config = hf.Wav2Vec2Config(
        **_small(2),
        conv_dim=(32, 32, 32),
        conv_stride=(5, 4, 2),
        conv_kernel=(10, 8, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        num_labels=3,
        classifier_proj_size=32,
        mask_time_prob=0.0,
    )
    model = hf.Wav2Vec2ForSequenceClassification(config)
    return _hf(model, {"input_values": torch.randn(4, 4000), "labels": torch.tensor([0, 1, 2, 0])})


def _supervised(model: nn.Module, inputs: Mapping[str, object], target: Tensor) -> Case:
    """Compare a model's first output with a target by mean squared error."""

    def loss(m: nn.Module) -> Tensor:
        return F.mse_loss(m(**inputs)[0], target)

    return Case(model, inputs, loss, torch.optim.AdamW(model.parameters(), lr=1e-4))


def _diffusion() -> Case:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    noise = torch.randn(4, 3, 16, 16)
    inputs = {"sample": _pixels(4, 16) + noise, "timestep": torch.tensor([1, 100, 500, 900])}
    return _supervised(model, {**inputs, "return_dict": False}, noise)


def _autoencoder() -> Case:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(16, 32),
        norm_num_groups=8,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    x = _pixels(4)
    return _supervised(model, {"sample": x, "return_dict": False}, x)


def _graph(kind: str) -> Case:
    from torch_geometric.nn import GAT, GCN, GIN

    model = {"gcn": GCN, "gat": GAT, "gin": GIN}[kind](16, 32, 2, 4)
    community = torch.arange(80) % 4
    x = torch.randn(4, 16)[community] + torch.randn(80, 16)
    ends = torch.randint(80, (2, 1200))
    keep = (community[ends[0]] == community[ends[1]]) | (torch.rand(1200) < 0.1)
    edges = ends[:, keep]

    def loss(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x, edges), community)

    return Case(model, (x, edges), loss, torch.optim.Adam(model.parameters(), lr=1e-2))


def _segment(model: nn.Module, size: int = 32) -> Case:
    x = _pixels(2, size, 1)
    mask = (x > 0).float()

    def loss(m: nn.Module) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(x), mask)

    return Case(model, x, loss, torch.optim.Adam(model.parameters(), lr=1e-3))


def _monai_unet() -> Case:
    from monai.networks.nets import UNet

    return _segment(
        UNet(2, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=2, norm="batch")
    )


def _basic_unet() -> Case:
    from monai.networks.nets import BasicUNet

    return _segment(BasicUNet(2, 1, 1, features=(8, 8, 16, 32, 32, 8)))


def _swin_unetr() -> Case:
    from monai.networks.nets import SwinUNETR

    return _segment(SwinUNETR(1, 1, feature_size=12, spatial_dims=2, depths=(1, 1, 1, 1)), 64)


def _x_decoder() -> Case:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=64, depth=4, heads=4, rotary_pos_emb=True, ff_glu=True)
    model = TransformerWrapper(num_tokens=WORDS, max_seq_len=64, attn_layers=layers)
    words = _words(4, 17)

    def loss(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(words[:, :-1]).transpose(1, 2), words[:, 1:])

    return Case(model, words[:, :-1], loss, torch.optim.Adam(model.parameters(), lr=1e-3))


def _x_vit() -> Case:
    from x_transformers import Encoder, ViTransformerWrapper

    layers = Encoder(dim=64, depth=4, heads=4, use_rmsnorm=True)
    model = ViTransformerWrapper(image_size=32, patch_size=8, num_classes=4, attn_layers=layers)
    x, y = _pixels(8), torch.arange(8) % 4

    def loss(m: nn.Module) -> Tensor:
        return F.cross_entropy(m(x), y)

    return Case(model, x, loss, torch.optim.Adam(model.parameters(), lr=1e-3))


_BUILDERS: dict[str, Callable[[], Case]] = {
    "gpt2": _gpt2,
    "llama": lambda: _causal(hf.LlamaConfig(**_small(), num_key_value_heads=2)),
    "mixtral": lambda: _causal(
        hf.MixtralConfig(**_small(2), num_key_value_heads=2, num_local_experts=4)
    ),
    "gpt-neox": lambda: _causal(hf.GPTNeoXConfig(**_small())),
    "mamba": _mamba,
    "bert": lambda: _masked(hf.BertConfig(**_small())),
    "distilbert": lambda: _masked(
        hf.DistilBertConfig(vocab_size=WORDS, dim=64, n_layers=3, n_heads=4, hidden_dim=128)
    ),
    "deberta": lambda: _sentences(hf.DebertaV2Config(**_small())),
    "electra": lambda: _sentences(hf.ElectraConfig(**_small(), embedding_size=32)),
    "roberta": lambda: _sentences(hf.RobertaConfig(**_small())),
    "t5": _t5,
    "whisper": _whisper,
    "wav2vec2": _wave,
    "vit": _vit,
    "swin": _swin,
    "resnet": _resnet,
    "convnext": _convnext,
    "mobilenet-v2": _mobilenet,
    "diffusers-unet": _diffusion,
    "diffusers-autoencoder": _autoencoder,
    "pyg-gcn": lambda: _graph("gcn"),
    "pyg-gat": lambda: _graph("gat"),
    "pyg-gin": lambda: _graph("gin"),
    "monai-unet": _monai_unet,
    "monai-basic-unet": _basic_unet,
    "monai-swin-unetr": _swin_unetr,
    "x-transformers-decoder": _x_decoder,
    "x-transformers-vit": _x_vit,
}

LIBRARY: tuple[Patient, ...] = tuple(Patient(name, make) for name, make in _BUILDERS.items())
