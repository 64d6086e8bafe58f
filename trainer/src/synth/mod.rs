//! Rendered data sets with exact labels.
