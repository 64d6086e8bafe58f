//! The fine-grained cross-modal ranking loss and its plain counterparts.
