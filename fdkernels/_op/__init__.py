"""The code that every op shares: argument lists and what follows from them, registration, autograd, views, checks."""
