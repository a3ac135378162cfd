"""What finds an adapter among installed ones by more than its name. Costs nothing to import."""
