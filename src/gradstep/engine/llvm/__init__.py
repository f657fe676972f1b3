"""Kernels: the LLVM code that is written for a kernel spec, and its compilation."""
