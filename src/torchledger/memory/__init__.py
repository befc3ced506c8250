"""Memory: what is alive when, where the peak is, and what an allocator makes of it. Imports no torch."""
