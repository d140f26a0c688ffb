"""Building blocks of defenses and attacks: context, adapters, perturbations, surrogates, perceptual bounds."""
