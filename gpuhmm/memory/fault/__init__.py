"""``handle_mm_fault()`` as a change of page tables and page state: one module for each kernel file or path.

Functions have the kernel's names and its order of tests, take one :class:`gpuhmm.memory.fault.vm_fault.Fault`
(``struct vm_fault``) and return VM_FAULT_* bits.
"""
