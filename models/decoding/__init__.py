"""Speculative decoding: the decoder, what its policy sees, and the records that policies are trained on."""
