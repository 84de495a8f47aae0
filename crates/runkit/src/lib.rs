//! runkit
