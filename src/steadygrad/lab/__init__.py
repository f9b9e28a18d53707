"""Measure published results about exploding and vanishing gradients again.

An experiment is one file named after its paper, and one line in `catalogue.EXPERIMENTS`.
"""
