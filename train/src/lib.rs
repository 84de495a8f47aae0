//! `train`: Diffusion-DPO on consensus labels with a moving reference.
