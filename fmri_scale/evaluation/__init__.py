"""What a released checkpoint is used for: features, probes, attribution."""
