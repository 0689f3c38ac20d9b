"""CPU kernels in C++, compiled on the machine that runs them; without a compiler torch's operators serve instead."""
