"""Show a run elsewhere while it goes on: in TensorBoard, or in a tracker of experiments."""
