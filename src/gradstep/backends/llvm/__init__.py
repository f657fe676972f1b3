"""LLVM code, written from a kernel spec."""
