"""Absorbing-state discrete diffusion: noise, graph, loss and samplers. Needs torch only."""
