"""Does training text hold benchmark rows? Overlap of 13-grams, after GPT-3's appendix C (arXiv 2005.14165)."""
