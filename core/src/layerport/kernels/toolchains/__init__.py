"""The compilers of kernels, each behind one file, each in a process of its own."""
