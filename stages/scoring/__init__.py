"""How good a network is: accuracies, confusions, and the files that say so."""
