"""Allocations of a record -> live bytes over its operations, the peak, and what is alive there. Imports no torch."""
