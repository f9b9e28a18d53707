"""Readers of tensors: from a model and one batch to numbers at sites."""
