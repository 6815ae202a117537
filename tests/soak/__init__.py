"""Long runs: a real gateway process under load over HTTPS, killed again and again. `make soak`."""
