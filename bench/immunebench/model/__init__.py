"""Latent diffusion and its numerics: networks, text conditions, optimisers, precision, memory."""
