"""What the machine is and does: devices and their kernels, the allocator, files that are written whole.

Imports nothing of llmtrain; every other package may import it.
"""
