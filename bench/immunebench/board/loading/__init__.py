"""Load and validate the inputs of boards and pages: records, scores reported in papers, measured capacity."""
