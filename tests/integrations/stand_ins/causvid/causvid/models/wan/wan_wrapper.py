"""CausVid's wrapper: its conversion is Self-Forcing's."""

from tests.integrations.stand_ins.self_forcing.utils.wan_wrapper import WanDiffusionWrapper as SelfForcings


class WanDiffusionWrapper:
    _convert_flow_pred_to_x0 = SelfForcings._convert_flow_pred_to_x0
    _convert_x0_to_flow_pred = staticmethod(SelfForcings._convert_x0_to_flow_pred)
