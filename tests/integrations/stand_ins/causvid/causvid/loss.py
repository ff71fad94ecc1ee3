"""CausVid's loss of the critic, which is that of Self-Forcing."""

from tests.integrations.stand_ins.self_forcing.utils import loss


class FlowPredLoss:
    __call__ = loss.FlowPredLoss.__call__
