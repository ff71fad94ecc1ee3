def get_x0_from_noise(sample, model_output, alphas_cumprod, timestep):
    level = alphas_cumprod[timestep].view(-1, 1, 1, 1)
    return (sample - (1 - level).sqrt() * model_output) / level.sqrt()
