"""Does masked pretraining pay at equal compute? A matrix of runs, and what follows from it."""
