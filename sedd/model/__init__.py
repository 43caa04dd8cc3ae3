"""The denoising transformer. Needs torch and numpy only."""
