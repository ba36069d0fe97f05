//! Culvert: control.
