"""`fmri-shards report`: one HTML page by which a person judges a corpus.

gather.py counts and finds outliers in the two tables, brains.py reads mean images and looks for mirrored and shifted
cohorts, figures.py draws, page.py puts it together. Nothing on the page comes from anywhere but the corpus.
"""
