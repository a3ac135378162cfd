"""Steps of behaviour contracts: record one, check one, and the models that both need."""
