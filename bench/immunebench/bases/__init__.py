"""Download, verification and conversion of model weights, and checks of a base's diffusers folder."""
