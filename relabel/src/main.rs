//! The relabel command.
fn main() {}
