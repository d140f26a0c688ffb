"""Submissions: checks of entries and records, runs that submit and that verify, bundles of closed methods."""
