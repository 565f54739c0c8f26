"""Arithmetic that a training step spends its time in, each with a plain path for the CPU.

`nf4`, `fp8`     frozen weights in 4 and 8 bits: quantize, dequantize, multiply
`elementwise`    RMSNorm, SwiGLU and rotary embeddings: Liger's kernels on a GPU
`cross_entropy`  the gradient of softmax cross-entropy, written over the logits
`device`         the Triton kernels of the above; imported only where there is a GPU
"""
