"""``python -m gpuhmm``: the command line."""

from gpuhmm.cli import main

main()
