//! The waypoint's binary.

fn main() {}
