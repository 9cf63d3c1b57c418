"""The operations that cost the time: a plain reference, a CPU form and a Triton form of each, under one name."""
