import torch


class FlowMatchScheduler:
    def __init__(self, shift):
        line = torch.linspace(1.0, 0.0, 1001)[:-1]
        self.sigmas = shift * line / (1 + (shift - 1) * line)
        self.timesteps = 1000 * self.sigmas

    def add_noise(self, original_samples, noise, timestep):
        nearest = torch.argmin((self.timesteps[None, :] - timestep[:, None]).abs(), dim=1)
        sigma = self.sigmas[nearest].view(-1, 1, 1, 1)
        return ((1 - sigma) * original_samples + sigma * noise).type_as(noise)
