"""Training state on disk: written aside, verified, then named."""
