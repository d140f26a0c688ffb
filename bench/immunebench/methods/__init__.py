"""What defenses and attacks are written in: context, adapters, perturbations, surrogates, bounds."""
