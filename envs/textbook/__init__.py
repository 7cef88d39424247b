"""The finite problems of the textbooks (Sutton & Barto, 2nd ed.; S. Zhao), each with its exact transition table `P`."""
