"""Training of the embedded bases, from rendering to the finished pipeline folder."""
