import torch


def pred_noise_to_pred_video(pred_noise, noise_input_latent, timestep, scheduler):
    t = timestep.expand(len(pred_noise)) if timestep.numel() == 1 else timestep.flatten()
    nearest = torch.argmin((scheduler.timesteps.double()[None, :] - t[:, None]).abs(), dim=1)
    sigma = scheduler.sigmas.double()[nearest].view(-1, 1, 1, 1)
    return (noise_input_latent.double() - sigma * pred_noise.double()).to(pred_noise.dtype)
