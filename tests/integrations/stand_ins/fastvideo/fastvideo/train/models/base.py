from fastvideo.models.utils import pred_noise_to_pred_video


class ModelBase:
    @property
    def num_train_timesteps(self):
        return int(self.noise_scheduler.num_train_timesteps)

    def predict_x0(self, noisy_latents, timestep, batch, *, conditional, cfg_uncond=None, attn_kind="dense"):
        velocity = self.predict_noise(
            noisy_latents, timestep, batch, conditional=conditional, cfg_uncond=cfg_uncond, attn_kind=attn_kind
        )
        flat = velocity.flatten(0, 1), noisy_latents.flatten(0, 1)
        return pred_noise_to_pred_video(*flat, timestep, self.noise_scheduler).unflatten(0, velocity.shape[:2])
