"""One LightningModule per method family."""

from pl_prefopt.modules.base import PreferenceModule
from pl_prefopt.modules.checkpoint_files import read_checkpoint
from pl_prefopt.modules.checkpoint_io import SafeCheckpointIO
from pl_prefopt.modules.dpo import DPOModule
from pl_prefopt.modules.fsdp2 import FSDP2Strategy
from pl_prefopt.modules.meta_reward import MetaRewardModule
from pl_prefopt.modules.mppo import MPPOModule
from pl_prefopt.modules.mrpo import MRPOModule
from pl_prefopt.modules.peer_review import PeerDPOModule, PeerRewardModule
from pl_prefopt.modules.reference_free import ReferenceFreeModule
from pl_prefopt.modules.reward import RewardModule
from pl_prefopt.modules.reward_scorer import RewardScorer
from pl_prefopt.modules.schedule import Schedule
from pl_prefopt.modules.self_refined import SrModule
from pl_prefopt.modules.token_level import TokenLevelModule

__all__ = [
    "DPOModule",
    "FSDP2Strategy",
    "MPPOModule",
    "MRPOModule",
    "MetaRewardModule",
    "PeerDPOModule",
    "PeerRewardModule",
    "PreferenceModule",
    "ReferenceFreeModule",
    "RewardModule",
    "RewardScorer",
    "SafeCheckpointIO",
    "Schedule",
    "SrModule",
    "TokenLevelModule",
    "read_checkpoint",
]
