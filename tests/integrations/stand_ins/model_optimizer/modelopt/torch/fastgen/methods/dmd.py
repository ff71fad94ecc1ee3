"""Model-Optimizer's DMD2 pipeline: the student step by its parameters and formulas, for flows, in one step."""

import torch
from modelopt.torch.fastgen.flow_matching import add_noise, pred_noise_to_pred_x0, pred_x0_from_flow
from modelopt.torch.fastgen.losses import gan_gen_loss, vsd_loss
from modelopt.torch.fastgen.utils import classifier_free_guidance


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


class DMDPipeline:
    def __init__(self, student, teacher, fake_score, config, *, discriminator=None):
        self.student, self.teacher, self.fake_score = student, teacher, fake_score
        self.config, self.discriminator = config, discriminator

    def sample_timesteps(self, n, *, device=None, dtype=torch.float32):
        low, high = self.config.sample_t_cfg.min_t, self.config.sample_t_cfg.max_t
        return low + (high - low) * torch.rand(n, device=device, dtype=dtype)

    def _build_student_input(self, latents, noise, encoder_hidden_states=None, **model_kwargs):
        t = self.config.sample_t_cfg.max_t
        return (t * noise.double()).to(noise.dtype), torch.full((len(noise),), t)

    def _call_model(self, model, hidden_states, timestep, encoder_hidden_states=None, **model_kwargs):
        if encoder_hidden_states is not None:
            model_kwargs["encoder_hidden_states"] = encoder_hidden_states
        return model(hidden_states=hidden_states, timestep=timestep, **model_kwargs)

    def _predict_x0(self, model, hidden_states, timestep, encoder_hidden_states=None, **model_kwargs):
        flow = self._call_model(model, hidden_states, timestep, encoder_hidden_states, **model_kwargs)
        return self._raw_to_x0(flow, hidden_states, timestep, native_pred_type=self.config.pred_type)

    @staticmethod
    def _raw_to_x0(raw, x_t, t, *, native_pred_type):
        return {"x0": lambda *_: raw, "eps": pred_noise_to_pred_x0}.get(native_pred_type, pred_x0_from_flow)(
            raw, x_t, t
        )

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
        noisy = add_noise(x, torch.randn_like(latents), t)
        with torch.no_grad():
            fake = self._predict_x0(self.fake_score, noisy, t, encoder_hidden_states, **model_kwargs)
        teacher = self._predict_x0(self.teacher, noisy, t, encoder_hidden_states, **model_kwargs)
        features = _drain_if_hooked(self.teacher)
        scale = self.config.guidance_scale if guidance_scale is None else guidance_scale
        if scale is not None:
            with torch.no_grad():
                uncond = self._predict_x0(self.teacher, noisy, t, negative_encoder_hidden_states, **model_kwargs)
            _drain_if_hooked(self.teacher)
            teacher = classifier_free_guidance(teacher, uncond, scale)
        losses = {"vsd": vsd_loss(x, teacher.detach(), fake)}
        if self.discriminator is None:
            return losses | {"total": losses["vsd"]}
        losses["gan_gen"] = gan_gen_loss(self.discriminator(_require_hooked(features, which="student-fake")))
        return losses | {"total": losses["vsd"] + self.config.gan_loss_weight_gen * losses["gan_gen"]}
