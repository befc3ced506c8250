"""The classic networks that people learn from, written out to be read; `registry` finds them by name without torch."""
