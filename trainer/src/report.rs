//! Pictures of a run: curves, confusion, error against label.
