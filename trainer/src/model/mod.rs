//! Image encoders, adapter and regressor as trainable modules.
pub mod head;
