"""One suite that every backend must pass: operations, whole programs, law 1, token choice, and what must be refused."""
