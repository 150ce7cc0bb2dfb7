"""The result of a dry run."""

from __future__ import annotations

from dataclasses import dataclass

from pl_prefopt.planning.parts import PARTS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The memory that a training step needs on one device.

    Attributes:
        parameters: the number of the policy's parameters, its adapter's included.
        trained: the number of trained parameters among them.
        phases: by phase of a step, the bytes of each part at the phase's peak.
        paged: bytes of optimiser states that may be paged to main memory; ``phases`` includes them.
    """

    parameters: int
    trained: int
    phases: dict[str, dict[str, int]]
    paged: int = 0

    @property
    def fullest(self) -> str:
        """The phase with the highest peak."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of each part in the fullest phase, in the order of ``PARTS``."""
        found = self.phases[self.fullest]
        return {part: found[part] for part in PARTS if found.get(part)}

    @property
    def peak(self) -> int:
        """The bytes of the highest peak."""
        return sum(self.parts.values())
