"""Faster forms of what the plain network and losses compute, exchanged into a finished network or loss.

`accelerate_training_(unet)` exchanges modules for subclasses with the same parameters, names and numbers (to rounding);
`accelerate_inference_(unet)` also folds BatchNorm and packs convolutions. The trainer, the pipelines and the benchmark
call them; the models never import this package.

Most of it is for CPUs. On a GPU only fused attention, folded BatchNorm, channels-last weights and the losses take
effect. Every other
form falls back to the plain forward pass there, under a compiler, an export, a transform of torch.func or torch's
FlopCounterMode, and where a bypassed module has a hook.

| plain                                    | exchanged for                                 | pays on a CPU          |
|------------------------------------------|-----------------------------------------------|------------------------|
| `ResnetBlock`: norm, SiLU, convolution   | one node that saves its input only; without   | training (time and     |
|                                          | gradients a few images at a time              | memory), sampling      |
| GroupNorm of attention blocks and heads  | moments and gradients as sums per channel     | maps below 32 x 32     |
| `Upsample`, `PyramidUpBlock` (nearest)   | transposed convolution with summed weights,   | from 2,048 pixels      |
|                                          | or products per tap (`taps`)                  | from 128 channels      |
| `Attention`                              | torch's fused kernel (on a GPU, too), for few | up to 256 x 256 pairs  |
|                                          | pairs products; for one context token its     | of query and key       |
|                                          | value                                         |                        |
| `FeedForward`                            | GELU(gate) computed again for the gradient;   | training (memory),     |
|                                          | without gradients a few images at a time      | sampling               |
| `Upsample2d` (transposed)                | no copy of a map that fits the skip already   | training, inference    |
| convolution and BatchNorm                | one convolution (`fold_batch_norm`)           | inference, GPU too     |
| convolutions of classic and pretrained   | weights packed in oneDNN's layout, with ReLU  | inference              |
| encoders and their decoders              | and sum in the same pass (`packing`)          |                        |
| losses of a segmentation head            | statistics of the logits as they lie          | training               |
|                                          | in memory (`losses`)                          |                        |
| freed memory                             | kept by the process (`allocator`)             | training               |

Private names of torch: `torch.ops.mkldnn._*` (`packing.OPERATORS`) for packing, and `accelerate.PRIVATE_NAMES` for the
rest. In a torch that lacks one of them, nothing that needs them is exchanged.
"""
