"""Carries out a graph of stages, in this process or in several, and resumes what was stopped."""
