"""The bundle's CuTe DSL kernels on the emulator."""
