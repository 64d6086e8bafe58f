//! Convolution and normalisation kernels for training on a CPU, with their gradients.
