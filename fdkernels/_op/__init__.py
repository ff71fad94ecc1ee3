"""What every op shares: its argument list and all that follows from it, registration, autograd, views, checks."""
