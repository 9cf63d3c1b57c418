"""The backbone, its decoder and the masked autoencoder; no input/output, no distribution."""
