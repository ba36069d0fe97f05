//! Culvert: cli.
