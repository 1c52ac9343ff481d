"""Training in PyTorch: what is learned from, the papers' loss, recipes, and the loop on Lightning."""
