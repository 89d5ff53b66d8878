//! Credentials (being written).

/// Who we are to each registry.
#[derive(Debug, Clone, Default)]
pub struct Credentials {}
