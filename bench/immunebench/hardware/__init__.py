"""Hardware checks: which profiles this machine supports, and the memory and time that methods need."""
