"""FastVideo's DMD2 loss by its parameters and formula, with the roundings that its dtypes imply."""

import torch
import torch.nn.functional as F
from fastvideo.train.models.base import ModelBase  # noqa: F401
from fastvideo.train.utils.config import get_optional_float


class DMD2Method:
    def _sample_score_timestep(self, device):
        steps = int(self.student.num_train_timesteps)
        t = torch.randint(0, steps, [1], device=device, dtype=torch.long, generator=self.cuda_generator)
        return self.student.shift_and_clamp_timestep(t).clamp(self._score_min_timestep, self._score_max_timestep)

    def _guidance(self):
        name = "real_score_guidance_scale"
        found = get_optional_float(self.method_config, name, where=f"method.{name}")
        return 1.0 if found is None else found

    def _noise_like(self, x):
        return torch.randn(x.shape, device=x.device, dtype=x.dtype, generator=self.cuda_generator)

    def _dmd_loss(self, generator_pred_x0, batch):
        x = generator_pred_x0
        with torch.no_grad():
            t = self._sample_score_timestep(x.device)
            noisy = self.student.add_noise(x, self._noise_like(x), t)

            def score(model, conditional):
                options = {"conditional": conditional, "cfg_uncond": self._cfg_uncond, "attn_kind": "dense"}
                return model.predict_x0(noisy, t, batch, **options)

            fake, cond, uncond = score(self.critic, True), score(self.teacher, True), score(self.teacher, False)
            real = uncond + (cond - uncond) * self._guidance()
            g = torch.nan_to_num((fake - real) / (x - real).abs().mean()).float()
        return 0.5 * F.mse_loss(x.float(), (x.float() - g).detach())
