"""Objectives: hyper-parameters, declared needs, and one call into `pl_prefopt.functional`."""
