"""Content-addressed artifacts on disk: stages, their digests, bookmarks of unfinished stages."""
