"""CPU kernels and layouts."""
