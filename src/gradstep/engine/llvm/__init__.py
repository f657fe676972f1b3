"""Kernels: the LLVM code that is written for an outline, and its compilation."""
