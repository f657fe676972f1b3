"""Generated kernels on NVIDIA's devices."""
