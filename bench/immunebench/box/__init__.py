"""Runs code in a process of its own that sees and may do little: bubblewrap, or Landlock with a seccomp filter."""
