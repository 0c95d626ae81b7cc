"""`make cuda-check`: every GPU kernel compiled ahead of time, its machine code read and compared.

    compiled.py  compiles and remembers       sass.py      reads machine code
    predict.py   formulas                     kernel_table.py  the part of the READMEs
    resources.py the command

No GPU is needed. Not here: whether kernels are right (tests/ptx, tests/gpu), times (benchmarks).
"""
