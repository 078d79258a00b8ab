"""Faster forms of what `unetdiff.models` computes, exchanged into a built network.

`accelerate_training_(unet)` exchanges modules for subclasses with the same parameters, names and numbers (to rounding);
`accelerate_inference_(unet)` also folds BatchNorm and packs convolutions. The trainer, the pipelines and the benchmark
call them; the models never import this package. Every form falls back to the plain forward pass on a GPU, under a
compiler, an export, a transform of torch.func or torch's FlopCounterMode, and where a bypassed module has a hook.

| plain                                     | exchanged for                                            | pays on a CPU            |
|-------------------------------------------|----------------------------------------------------------|--------------------------|
| `ResnetBlock`: norm, SiLU, convolution    | one node that saves its input only (`norm_silu_conv`);   | training: time, memory;  |
|                                           | without gradients a few images at a time                 | sampling                 |
| GroupNorm of attention blocks, of heads   | moments and gradients as sums per channel                | maps below 32 x 32       |
| `Upsample`, `PyramidUpBlock` (nearest):   | transposed convolution with summed weights               | from 2,048 pixels        |
| upsampling, skip, 3x3 convolution         | (`upsample_conv`), or products per tap (`taps`)          | small maps, 128 channels |
| `Attention`                               | matrix products up to 256 x 256 pairs, else torch's      | everywhere; on a GPU     |
|                                           | fused kernel; over one token its value alone             | the fused kernel         |
| `FeedForward`                             | a few images at a time without gradients                 | sampling                 |
| `Upsample2d` (transposed)                 | no copy of a map that has the skip's size already        | training, inference      |
| convolution and BatchNorm                 | one convolution (`fold_batch_norm`)                      | inference, on a GPU too  |
| convolutions of classic and pretrained    | weights packed in oneDNN's layout, with ReLU and sum in  | inference                |
| networks                                  | the same pass (`packing`)                                |                          |
| freed memory                              | kept by the process (`allocator`)                        | training                 |

Private names of torch: `torch.ops.mkldnn._*` (`packing.OPERATORS`) for packing, and `accelerate.PRIVATE_NAMES` for the
rest. In a torch that lacks one of them, nothing that needs them is exchanged.
"""
