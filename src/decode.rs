//! From image files to frames.
