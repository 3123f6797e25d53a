"""The batches of an epoch, and the candidates they are chosen from."""
