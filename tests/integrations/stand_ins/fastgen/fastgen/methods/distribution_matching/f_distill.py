"""FastGen's f-distill model: its weight, by parameters and formula."""

import torch
from fastgen.methods.common_loss import variational_score_distillation_loss

WEIGHTS = {
    "rkl": lambda r: torch.tensor(1.0),
    "kl": lambda r: r,
    "js": lambda r: r / (1 + r),
    "sf": lambda r: 1 / (1 + r),
    "neyman": lambda r: 1 / r,
    "sh": lambda r: r.sqrt(),
    "jf": lambda r: 1 + r,
}


class FdistillModel:
    def _get_f_div_weighting_h(self, fake_logits, t):
        options, schedule = self.config.f_distill, self.net.noise_scheduler
        ratio = fake_logits.float().mean(1).clamp(-10, 10).exp().clamp(options.ratio_lower, options.ratio_upper)
        if options.ratio_normalization:
            width = (schedule.max_t - schedule.min_t) / self.bin_num
            index = ((t.double() - schedule.min_t) / width).floor().long().clamp(0, self.bin_num - 1)
            count, total = (torch.bincount(index, v, self.bin_num).float() for v in (torch.ones_like(ratio), ratio))
            mixed = options.ratio_ema_rate * self.net.bins.float() + (1 - options.ratio_ema_rate) * total / (
                count + 1e-6
            )
            bins = torch.where(count > 0, mixed, self.net.bins.float())
            self.net.bins.copy_(bins)
            ratio = ratio / (bins[index] + 1e-6)
        h = self.f_div_weighting_function(ratio)
        return (h / (h.sum() / len(h) + 1e-6)).to(fake_logits.dtype)

    def student_loss(self, gen_data, teacher_x0, fake_score_x0, fake_logits, t):
        """As FastGen's student step calls the two, by the names that this module imported."""
        h = self._get_f_div_weighting_h(fake_logits, t)
        return variational_score_distillation_loss(gen_data, teacher_x0, fake_score_x0, additional_scale=h)
