//! Labelled images: reading, splitting, augmenting, loading in parallel.
