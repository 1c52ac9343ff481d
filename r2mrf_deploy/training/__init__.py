"""Training in PyTorch: defocus synthesised on sharp photographs, the papers' loss, and a quick training from nothing."""
