from fdkernels.adversarial.api import discriminator_loss, generator_loss, gradient_penalty

__all__ = ["discriminator_loss", "generator_loss", "gradient_penalty"]
