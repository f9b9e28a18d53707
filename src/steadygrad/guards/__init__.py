"""Guards stand between backward and step: gradients go on as they are, clipped, or not at all."""
