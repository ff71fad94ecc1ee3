"""FastVideo's streaming loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
from fastvideo.train.methods.distribution_matching.self_forcing import SelfForcingMethod


class StreamingLongTuningMethod(SelfForcingMethod):
    def _sample_score_timestep(self, batch_size, *, device):
        steps = int(self.student.num_train_timesteps)
        t = torch.randint(0, steps, [batch_size], device=device, dtype=torch.long, generator=self.cuda_generator)
        return self.student.shift_and_clamp_timestep(t).clamp(self._score_min_timestep, self._score_max_timestep)

    def _dmd_loss_masked(self, generator_pred_x0, batch, *, chunk_mask):
        x = generator_pred_x0
        with torch.no_grad():
            t = self._sample_score_timestep(len(x), device=x.device)
            fake, real = self._scores(x, batch, t, self._real_score_cfg)
            mean = (x.float() - real.float()).abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-6)
            g = torch.nan_to_num((fake - real) / mean).float()
        return self._masked_mean(0.5 * (x.float() - (x.float() - g).detach()) ** 2, chunk_mask)

    def _masked_mean(self, values, mask):
        if mask is None:
            return values.mean()
        kept = mask.to(values.dtype)[..., None, None, None].expand_as(values)
        return (values * kept).sum() / kept.sum().clamp(min=1)
