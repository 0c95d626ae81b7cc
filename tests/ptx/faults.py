"""What the interpreter has to say: a Fault ends a launch, a report is counted and the launch goes on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class Fault(Exception):
    """What a GPU would stop at, or what this interpreter does not know."""


class Unknown(Fault):
    """An instruction, or a form of one, that the interpreter does not have."""


@dataclass
class Reports:
    """Findings and how often: (kernel, what, instruction) -> events."""

    found: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    # Counted beside the findings, because compilers do it and GPUs bear it:
    # ROUNDING  two lanes that hold one sum, added up in different orders or of products that one of them
    #           has not rounded, store it to one place; which of them wins is the hardware's choice
    # PROXY     wgmma reads what cp.async has copied with no fence.proxy.async between, as the manual
    #           asks; Triton 3.6 and the tutorials of CUTLASS do so
    remarks: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def note(self, kernel: str, what: str, text: str) -> None:
        to = self.remarks if what.startswith(("ROUNDING", "PROXY")) else self.found
        to[kernel, what, text] += 1

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        return "\n".join(
            f"{kernel}: {what} ({count} times), first of them: {text}"
            for (kernel, what, text), count in self.found.most_common()
        )
