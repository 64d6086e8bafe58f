//! The task file: what is estimated, from which data, by which model, trained how.
