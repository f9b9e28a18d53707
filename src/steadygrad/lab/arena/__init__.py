"""Let initialisations, activations, norms, optimizers and architectures compete.

A contestant is one choice of each; it competes in settings, which are depths, widths and gains.
Attempts at training it are made in rounds, and the longest are ranked.
"""
