"""Build models of others from their configuration, with random weights: nothing is downloaded."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steadygrad.core.nearest import meant
from steadygrad.launch.build import seeded, users_code
from steadygrad.replay.captured import CannotLook, Captured

BATCH = 4
LENGTH = 64  # tokens, where the configuration does not ask for fewer
SECOND = 16_000  # samples of sound, at the usual rate
ENCODER_DECODER = ("AutoModelForSpeechSeq2Seq", "AutoModelForSeq2SeqLM")
HEADS = (
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForImageClassification",
    "AutoModel",
)
"""Classes that may build a configuration, those with a loss of their own first. Every decoder is
left for the second: an encoder can be built as one, but is not trained as one."""


def hugging_face(name: str, seed: int) -> Captured:
    """Build a transformers model from the name of its type, or a directory with a config.json."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _need("transformers", f"hf:{name}", "pip install transformers")
    config = _configuration(name)
    with users_code(), seeded(seed):
        model = _with_head(config)
        inputs = _inputs(model, config)
    if "labels" not in inputs:
        return Captured(model, None, inputs)

    def loss(one: nn.Module) -> Tensor:
        found: Tensor = one(**inputs).loss
        return found

    return Captured(model, loss, inputs)


def timm_model(name: str, seed: int) -> Captured:
    """Build a timm model by its name, with random weights."""
    _need("torchvision", f"timm:{name}", "pip install torchvision timm, both built for your torch")
    _need("timm", f"timm:{name}", "pip install timm")
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        advice = meant(name, timm.list_models())
        raise CannotLook(f"expected a model that timm knows, got {name}{advice}")
    with users_code(), seeded(seed):
        model = timm.create_model(name, pretrained=False)
        size = model.default_cfg.get("input_size", (3, 224, 224))
        return Captured(model, None, (torch.randn(BATCH, *size),))


def _need(package: str, target: str, command: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise CannotLook(f"expected {package} to be installed for {target}, it is not: {command}")


def _configuration(name: str) -> Any:  # a transformers configuration
    from transformers import CONFIG_MAPPING, AutoConfig

    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CannotLook(f"expected {name} to hold a config.json, it does not")
        with users_code():
            return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if name not in CONFIG_MAPPING:
        advice = meant(name, CONFIG_MAPPING.keys())
        raise CannotLook(
            f"expected a model type of transformers or a directory with a config.json, got "
            f"{name}{advice}"
        )
    return AutoConfig.for_model(name)


def _with_head(config: Any) -> nn.Module:
    """Build the model, with the head of its usual task where it has one."""
    import transformers

    for name in getattr(config, "architectures", None) or ():
        if name in dir(transformers):
            named: nn.Module = getattr(transformers, name)(config)
            return named
    both = bool(getattr(config, "is_encoder_decoder", False))
    for head in (*ENCODER_DECODER, *HEADS) if both else HEADS:
        kind = getattr(transformers, head)
        if type(config) in kind._model_mapping:
            model: nn.Module = kind.from_config(config, trust_remote_code=False)
            return model
    raise CannotLook(
        f"expected a configuration that one of {', '.join(HEADS)} can build, got "
        f"{type(config).__name__}"
    )


def _inputs(model: nn.Module, config: Any) -> dict[str, Tensor]:
    main = str(getattr(model, "main_input_name", "input_ids"))
    text = getattr(config, "text_config", None) or config
    makers = {"pixel_values": _pixels, "input_features": _features, "input_values": _waves}
    given = {main: makers[main](config)} if main in makers else {main: _tokens(text)}
    accepted = _parameters_of(model)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in accepted:
        given["decoder_input_ids"] = _tokens(text)
    if "labels" in accepted:
        given["labels"] = _labels(given, config)
    return given


def _parameters_of(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


def _labels(given: dict[str, Tensor], config: Any) -> Tensor:
    tokens = given.get("decoder_input_ids", given.get("input_ids"))
    return torch.randint(int(config.num_labels), (BATCH,)) if tokens is None else tokens.clone()


def _tokens(config: Any) -> Tensor:
    longest = getattr(config, "max_position_embeddings", None) or LENGTH
    return torch.randint(int(config.vocab_size), (BATCH, min(LENGTH, int(longest))))


def _pixels(config: Any) -> Tensor:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", None) or 224
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    return torch.randn(BATCH, int(getattr(vision, "num_channels", 3)), *sides)


def _features(config: Any) -> Tensor:
    length = 2 * int(getattr(config, "max_source_positions", 1500))
    return torch.randn(BATCH, int(getattr(config, "num_mel_bins", 80)), length)


def _waves(_: Any) -> Tensor:
    return torch.randn(BATCH, SECOND)
