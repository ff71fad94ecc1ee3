"""Model-Optimizer's DMD2 pipeline: the student step by its parameters and formulas, for flows, in one step."""

import torch
from modelopt.torch.fastgen.losses import gan_gen_loss, vsd_loss

from tests.integrations.stand_ins.fastgen.fastgen.methods.common_loss import expand


def _drain_if_hooked(module):
    captured = getattr(module, "_fastgen_captured", None)
    if captured is None:
        return None
    features = list(captured)
    captured.clear()
    return features


def _require_hooked(features, *, which):
    if features is None:
        raise RuntimeError(which)
    return features


def in_float64(function, *values):
    return function(*(v.double() for v in values)).to(values[0].dtype)


class DMDPipeline:
    def __init__(self, student, teacher, fake_score, config, *, discriminator=None):
        self.student, self.teacher, self.fake_score = student, teacher, fake_score
        self.config, self.discriminator = config, discriminator

    def sample_timesteps(self, n, *, device=None, dtype=torch.float32):
        low, high = self.config.sample_t_cfg.min_t, self.config.sample_t_cfg.max_t
        return low + (high - low) * torch.rand(n, device=device, dtype=dtype)

    def _build_student_input(self, latents, noise, encoder_hidden_states=None, **model_kwargs):
        t = self.config.sample_t_cfg.max_t
        return in_float64(lambda v: t * v, noise), torch.full((len(noise),), t)

    def _call_model(self, model, hidden_states, timestep, encoder_hidden_states=None, **model_kwargs):
        if encoder_hidden_states is not None:
            model_kwargs["encoder_hidden_states"] = encoder_hidden_states
        return model(hidden_states=hidden_states, timestep=timestep, **model_kwargs)

    def _predict_x0(self, model, hidden_states, timestep, encoder_hidden_states=None, **model_kwargs):
        flow = self._call_model(model, hidden_states, timestep, encoder_hidden_states, **model_kwargs)
        return in_float64(lambda x, u, t: x - expand(t, x.dim()) * u, hidden_states, flow, timestep)

    def compute_student_loss(
        self,
        latents,
        noise,
        encoder_hidden_states=None,
        *,
        negative_encoder_hidden_states=None,
        negative_encoder_hidden_states_mask=None,
        guidance_scale=None,
        **model_kwargs,
    ):
        start, t = self._build_student_input(latents, noise, encoder_hidden_states, **model_kwargs)
        x = self._predict_x0(self.student, start, t, encoder_hidden_states, **model_kwargs)
        t = self.sample_timesteps(len(latents), device=latents.device)
        eps = torch.randn_like(latents)
        noisy = in_float64(lambda x, e, s: (1 - expand(s, x.dim())) * x + expand(s, x.dim()) * e, x, eps, t)
        with torch.no_grad():
            fake = self._predict_x0(self.fake_score, noisy, t, encoder_hidden_states, **model_kwargs)
        teacher = self._predict_x0(self.teacher, noisy, t, encoder_hidden_states, **model_kwargs)
        features = _drain_if_hooked(self.teacher)
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if scale is not None:
            with torch.no_grad():
                uncond = self._predict_x0(self.teacher, noisy, t, negative_encoder_hidden_states, **model_kwargs)
            _drain_if_hooked(self.teacher)
            teacher = teacher + (scale - 1) * (teacher - uncond)
        losses = {"vsd": vsd_loss(x, teacher.detach(), fake)}
        if self.discriminator is None:
            return losses | {"total": losses["vsd"]}
        losses["gan_gen"] = gan_gen_loss(self.discriminator(_require_hooked(features, which="student-fake")))
        return losses | {"total": losses["vsd"] + self.config.gan_loss_weight_gen * losses["gan_gen"]}
