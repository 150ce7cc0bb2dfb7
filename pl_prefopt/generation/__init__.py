"""Sampling responses of a policy: engines, and files of samples."""

from pl_prefopt.generation.base import Engine, FinishReason, RefusedPromptError, Sample, Sampling, sample_seed
from pl_prefopt.generation.decoding import end_token_ids, end_tokens, pick, plain_settings, room
from pl_prefopt.generation.sampler import SETTINGS_FILE, SampleFolder, Sampler
from pl_prefopt.generation.server import OpenAIServer, Server
from pl_prefopt.generation.shards import Format, ShardWriter, read_shards, shard_files, write_shard
from pl_prefopt.generation.transformers_engine import TransformersEngine

__all__ = [
    "SETTINGS_FILE",
    "Engine",
    "FinishReason",
    "Format",
    "OpenAIServer",
    "RefusedPromptError",
    "Sample",
    "SampleFolder",
    "Sampler",
    "Sampling",
    "Server",
    "ShardWriter",
    "TransformersEngine",
    "end_token_ids",
    "end_tokens",
    "pick",
    "plain_settings",
    "read_shards",
    "room",
    "sample_seed",
    "shard_files",
    "write_shard",
]
