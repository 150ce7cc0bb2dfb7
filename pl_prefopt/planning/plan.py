"""What a rehearsal found."""

from __future__ import annotations

from dataclasses import dataclass

from pl_prefopt.planning.parts import PARTS


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a step takes of one device.

    Attributes:
        parameters: of the policy, with its adapter.
        trained: of these.
        phases: by phase of a step, the bytes of each part when they are most together.
        paged: bytes of optimiser states that may move to main memory; ``phases`` counts them too.
    """

    parameters: int
    trained: int
    phases: dict[str, dict[str, int]]
    paged: int = 0

    @property
    def fullest(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of each part in the fullest phase, in the order of ``PARTS``."""
        found = self.phases[self.fullest]
        return {part: found[part] for part in PARTS if found.get(part)}

    @property
    def peak(self) -> int:
        """Bytes at the highest peak."""
        return sum(self.parts.values())
