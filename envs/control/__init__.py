"""Small problems with continuous states, compiled: mountain car, CartPole, Acrobot and the puddle world."""
