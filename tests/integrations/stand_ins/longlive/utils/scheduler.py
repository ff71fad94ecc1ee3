"""LongLive's FlowMatchScheduler, which is that of Self-Forcing."""

from tests.integrations.stand_ins.self_forcing.utils.scheduler import FlowMatchScheduler  # noqa: F401
