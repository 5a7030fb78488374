"""Evaluation by people: pairs of pictures, an offline page for voters, what their votes say."""
