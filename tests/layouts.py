"""Functions that put the same values into another memory layout."""

import torch


def channels_last(v):
    return v.to(memory_format=torch.channels_last if v.dim() == 4 else torch.channels_last_3d)


def sliced(v):
    wide = v.new_full((*v.shape[:-1], 2 * v.shape[-1]), torch.nan)
    wide[..., ::2] = v
    return wide[..., ::2]


def batch_sliced(v):
    """Dense samples with gaps between them."""
    wide = v.new_full((v.shape[0], 2, *v.shape[1:]), torch.nan)
    wide[:, 1] = v
    return wide[:, 1]


def misaligned(v):
    buffer = v.new_full((v.numel() + 1,), torch.nan)
    buffer[1:] = v.reshape(-1)
    return buffer[1:].view(v.shape)


def transposed(v):
    return v.transpose(-1, -2).contiguous().transpose(-1, -2)


def batch_last(v):
    return v.permute(*range(1, v.dim()), 0).contiguous().permute(v.dim() - 1, *range(v.dim() - 1))


def frames_first(v):
    """In memory: (B, F, C, ...)."""
    return v.transpose(1, 2).contiguous().transpose(1, 2)


LAYOUTS = {f.__name__: f for f in (channels_last, sliced, batch_sliced, misaligned, transposed, batch_last)}
VIDEO_LAYOUTS = {"contiguous": torch.Tensor.contiguous, "frames_first": frames_first, **LAYOUTS}
# For tensors of any rank. The gaps between the elements hold NaN.
STRIDES = {f.__name__: f for f in (sliced, batch_sliced, misaligned)}
