"""The latent diffusion model and its numerics: networks, text conditioning, optimisers, precision, memory."""
