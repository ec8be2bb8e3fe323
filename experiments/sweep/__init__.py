"""W&B sweep files, carried out without W&B's servers."""
