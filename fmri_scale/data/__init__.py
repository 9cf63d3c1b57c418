"""From a corpus to batches of int8 clips: order, reading, decoding."""
