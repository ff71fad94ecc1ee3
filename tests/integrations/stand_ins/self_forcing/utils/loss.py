"""Self-Forcing's loss of the critic."""


class FlowPredLoss:
    def __call__(self, x, x_pred, noise, noise_pred, alphas_cumprod, timestep, **kwargs):
        return (kwargs["flow_pred"] - (noise - x)).square().mean()
