"""Creation of new tasks, entries and artefacts, and export of models and pictures."""
