"""Planning a run's memory before anything is loaded."""

from pl_prefopt.planning.devices import Device, device_of
from pl_prefopt.planning.dry_run import DryRun
from pl_prefopt.planning.memory_tracker import MemoryTracker
from pl_prefopt.planning.plan import Plan
from pl_prefopt.planning.sharing import Sharing, sharing_of

__all__ = ["Device", "DryRun", "MemoryTracker", "Plan", "Sharing", "device_of", "sharing_of"]
