"""Errors, shared types, caption templates and hardware probing; imports no other sub-package."""
