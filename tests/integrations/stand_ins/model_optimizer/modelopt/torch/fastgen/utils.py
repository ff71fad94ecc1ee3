"""Model-Optimizer's guidance."""


def classifier_free_guidance(cond_pred, uncond_pred, guidance_scale):
    return cond_pred + (guidance_scale - 1) * (cond_pred - uncond_pred)
