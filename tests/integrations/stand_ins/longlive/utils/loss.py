"""LongLive's loss of the critic, which may leave out frames."""


class FlowPredLoss:
    def __call__(self, x, x_pred, noise, noise_pred, alphas_cumprod, timestep, gradient_mask=None, **kwargs):
        error = (kwargs["flow_pred"] - (noise - x)).square()
        return error.mean() if gradient_mask is None else error[gradient_mask].mean()
