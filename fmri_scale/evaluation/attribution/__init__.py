"""Which regions does a model use? Effects of regions on features, tested against permuted labels; errors by region."""
