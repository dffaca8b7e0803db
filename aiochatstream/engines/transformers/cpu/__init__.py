"""Kernels and weight layouts for CPUs."""
