"""`python -m vlm_guard.kernels.benchmark`."""

from vlm_guard.kernels.benchmark.run import main

main()
