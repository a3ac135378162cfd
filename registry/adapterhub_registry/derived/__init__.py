"""What follows from the weights of builds: records, comparisons, relatives, maps of the adapters of a base."""
