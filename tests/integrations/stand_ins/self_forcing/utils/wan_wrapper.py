"""Self-Forcing's wrapper: a network that predicts a velocity returns it with its x0."""

import torch
from torch import nn


def sigma_at(scheduler, timestep):
    nearest = torch.argmin((scheduler.timesteps.double()[None, :] - timestep[:, None]).abs(), dim=1)
    return scheduler.sigmas.double()[nearest].view(-1, 1, 1, 1)


class WanDiffusionWrapper(nn.Module):
    def _convert_flow_pred_to_x0(self, flow_pred, xt, timestep):
        return (xt.double() - sigma_at(self.scheduler, timestep) * flow_pred.double()).to(flow_pred.dtype)

    @staticmethod
    def _convert_x0_to_flow_pred(scheduler, x0_pred, xt, timestep):
        return ((xt.double() - x0_pred.double()) / sigma_at(scheduler, timestep)).to(x0_pred.dtype)

    def forward(self, noisy_image_or_video, conditional_dict, timestep, clean_x=None):
        given = {} if clean_x is None else {"clean_x": clean_x.transpose(1, 2), "aug_t": None}
        flow = self.model(
            noisy_image_or_video.transpose(1, 2),
            t=timestep[:, 0] if self.uniform_timestep else timestep,
            context=conditional_dict["prompt_embeds"],
            seq_len=self.seq_len,
            **given,
        ).transpose(1, 2)
        flat = (each.flatten(0, 1) for each in (flow, noisy_image_or_video, timestep))
        return flow, self._convert_flow_pred_to_x0(*flat).unflatten(0, flow.shape[:2])
