"""A tiny language model under the Trainer of transformers."""

import sys

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

config = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=32)
model = GPT2LMHeadModel(config)
rows = [{"input_ids": (ids := torch.randint(0, 64, (16,))), "labels": ids} for _ in range(32)]
arguments = TrainingArguments(
    sys.argv[1],
    per_device_train_batch_size=4,
    gradient_accumulation_steps=2,
    max_steps=4,
    bf16="--bf16" in sys.argv,
    report_to=[],
    use_cpu=True,
)
Trainer(model, arguments, train_dataset=rows).train()
