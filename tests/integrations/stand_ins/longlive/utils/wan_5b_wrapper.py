"""LongLive's WanDiffusionWrapper, which is that of Self-Forcing."""

from tests.integrations.stand_ins.self_forcing.utils.wan_wrapper import WanDiffusionWrapper  # noqa: F401
