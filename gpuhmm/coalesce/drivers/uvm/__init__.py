"""The rules by which NVIDIA's UVM driver coalesces faults, as decisions: who drives them is elsewhere.

They follow the driver 595.45.04 (kernel-open/nvidia-uvm), restated for one GPU and the CPU.
"""
