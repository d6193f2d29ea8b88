"""The patterns by name, with their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from gpuhmm.coalesce.patterns import graphs, multigrid, stencils, streaming, tiles, transforms
from gpuhmm.coalesce.patterns.program_areas import Workload


@dataclass(frozen=True)
class Pattern:
    """A pattern: the function that makes it, and its parameters with their defaults."""

    make: Callable[..., Workload]
    parameters: dict[str, int]
    summary: str

    def __call__(self, **settings: int | str) -> Workload:
        """Return the workload; numbers may be given as words.  ValueError for unknown parameters."""
        given: dict[str, int] = {}
        for name, value in settings.items():
            if name not in self.parameters:
                raise ValueError(f"the parameters are {', '.join(self.parameters)} (got {name!r})")
            try:
                given[name] = int(value) if isinstance(value, str) else value
            except ValueError:
                raise ValueError(f"{name} must be a whole number (got {value!r})") from None
        return self.make(**given)


def _pattern(make: Callable[..., Workload]) -> Pattern:
    parameters = {name: one.default for name, one in inspect.signature(make).parameters.items()}
    return Pattern(make, parameters, (inspect.getdoc(make) or "").split("\n")[0])


#: All patterns: what each one reads and writes, in the words of its function.
PATTERNS: dict[str, Pattern] = {
    "vector-add": _pattern(streaming.vector_add),
    "stream": _pattern(streaming.stream),
    "regular": _pattern(streaming.regular),
    "random": _pattern(streaming.random),
    "strided": _pattern(streaming.strided),
    "sgemm": _pattern(tiles.sgemm),
    "jacobi2d": _pattern(stencils.jacobi2d),
    "gauss-seidel": _pattern(stencils.gauss_seidel),
    "cufft": _pattern(transforms.cufft),
    "hpgmg": _pattern(multigrid.hpgmg),
    "bfs": _pattern(graphs.bfs),
}


def workload(name: str, **settings: int | str) -> Workload:
    """Return a pattern's workload.  ValueError for names and parameters that are not known."""
    if name not in PATTERNS:
        raise ValueError(f"a pattern must be one of {', '.join(PATTERNS)} (got {name!r})")
    return PATTERNS[name](**settings)
