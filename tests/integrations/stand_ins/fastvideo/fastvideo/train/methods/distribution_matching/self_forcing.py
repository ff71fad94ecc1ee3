"""FastVideo's Self-Forcing loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
from fastvideo.models.utils import pred_noise_to_pred_video
from fastvideo.train.methods.distribution_matching.dmd2 import DMD2Method


class SelfForcingMethod(DMD2Method):
    def _sf_add_noise(self, clean_latents, noise, timestep):
        flat = clean_latents.flatten(0, 1), noise.flatten(0, 1)
        return self._sf_scheduler.add_noise(*flat, timestep).unflatten(0, clean_latents.shape[:2])

    def _predict_x0_with_scheduler(self, model, noisy_latents, timestep, batch, *, conditional, attn_kind):
        velocity = model.predict_noise(
            noisy_latents, timestep, batch, conditional=conditional, cfg_uncond=self._cfg_uncond, attn_kind=attn_kind
        )
        flat = velocity.flatten(0, 1), noisy_latents.flatten(0, 1)
        return pred_noise_to_pred_video(*flat, timestep, self._sf_scheduler).unflatten(0, velocity.shape[:2])

    def _scores(self, x, batch, timestep, guided=True):
        noisy = self._sf_add_noise(x, self._noise_like(x), timestep)

        def score(model, conditional):
            return self._predict_x0_with_scheduler(
                model, noisy, timestep, batch, conditional=conditional, attn_kind="dense"
            )

        fake, real = score(self.critic, True), score(self.teacher, True)
        if guided:
            uncond = score(self.teacher, False)
            real = uncond + (real - uncond) * self._guidance()
        return fake, real

    def _dmd_loss(self, generator_pred_x0, batch):
        x, steps = generator_pred_x0, int(self.student.num_train_timesteps)
        with torch.no_grad():
            t = torch.randint(0, steps, [1], device=x.device, dtype=torch.long, generator=self.cuda_generator)
            fake, real = self._scores(x, batch, self.student.shift_and_clamp_timestep(t))
            g = torch.nan_to_num((fake - real) / (x - real).abs().mean()).float()
        return 0.5 * torch.mean((x.float() - (x.float() - g).detach()) ** 2)
