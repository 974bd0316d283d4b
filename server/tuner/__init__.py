"""The next round's hyperparameters: searched on virtual federations, corrected by real rounds."""
