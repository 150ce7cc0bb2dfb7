"""What a run will cost, found out before it loads anything."""

from pl_prefopt.planning.devices import Device, device_of
from pl_prefopt.planning.ledger import Ledger
from pl_prefopt.planning.plan import Plan
from pl_prefopt.planning.rehearsal import Rehearsal
from pl_prefopt.planning.sharing import Sharing, sharing_of

__all__ = ["Device", "Ledger", "Plan", "Rehearsal", "Sharing", "device_of", "sharing_of"]
