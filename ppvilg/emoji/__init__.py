"""The small world of emoji scenes: what it draws and says, the data made of it, and what judges pictures of it.

Nothing is imported here, so that scenes and captions stay free of Paddle, which the detector needs.
"""
